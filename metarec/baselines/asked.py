"""What is asked of a baseline: the prefixes of query pairs, and each user's support.

Support pairs nest, so their events overlap; here every event of the support stands once. A query of the session in which the
support ended has support events in its own prefix; `before` says how many are not, so that a history counts nothing twice.

Unknown items stay in their places (-1), since one published method counts them; all others look at what is known.

Shapes: T users, K support and Q query pairs of each, R = T * Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metarec.ragged import Ints, Ragged, distinct, ranges, running


@dataclass(frozen=True)
class Asked:
    user: Ints  # [T], the users' numbers; they key what is drawn at random
    n_query: int  # Q
    prefix: Ragged  # R rows: items of each query's prefix in time order
    support: Ragged  # T rows: items of the support's events in time order, targets included
    before: Ints  # [R]: how many support events stand before the query's prefix; the others are in it

    def __post_init__(self) -> None:
        sizes = (len(self.user), len(self.prefix), len(self.support), len(self.before))
        n = len(self.user)
        if sizes != (n, n * self.n_query, n, n * self.n_query):
            raise ValueError(f"{n} users with {self.n_query} queries each do not fit {sizes}")

    def __len__(self) -> int:
        return len(self.user)

    @staticmethod
    def of_pairs(
        item: NDArray[np.int32] | Ints, pair_begin: Ints, pair_event: Ints, user: Ints, support: Ints, query: Ints
    ) -> Asked:
        """From numbers of pairs, `support` [T, K] and `query` [T, Q], rising within a user.

        `item` [E], `pair_begin` and `pair_event` [P] as stored: prefix = item[begin:event], target = item[event].
        """
        asked = query.ravel()
        begin, length = pair_begin[asked], pair_event[asked] - pair_begin[asked]
        prefix = Ragged(_items(item, ranges(begin, length)), running(length))

        pairs, owner = support.ravel(), np.repeat(np.arange(len(user)), support.shape[1])
        length = pair_event[pairs] + 1 - pair_begin[pairs]
        every = ranges(pair_begin[pairs], length)
        owner, event = np.divmod(distinct(np.repeat(owner, length) * len(item) + every), max(len(item), 1))
        own = Ragged(event, running(np.bincount(owner, minlength=len(user))))
        row = np.arange(len(asked)) // max(query.shape[1], 1)
        earlier = np.array([np.searchsorted(own[t], first) for t, first in zip(row, begin, strict=True)], np.int64)
        return Asked(user, query.shape[1], prefix, Ragged(_items(item, event), own.offsets), earlier)

    @cached_property
    def prefixes(self) -> Ragged:
        """R rows: the known items of each query's prefix."""
        return self.prefix.where(self.prefix.values > 0)

    def histories(self, support: bool) -> Iterable[Ints]:
        """Of each query: the known items of its prefix, with the support in front of it if asked for."""
        return self._with_support if support else self.prefixes

    @cached_property
    def _with_support(self) -> list[Ints]:
        known = self.support.values > 0
        supports, so_far = self.support.where(known), running(known)
        begin = np.repeat(self.support.offsets[:-1], self.n_query)
        counts = so_far[begin + self.before] - so_far[begin]
        return [
            np.concatenate([supports[row // self.n_query][:count], self.prefixes[row]])
            for row, count in enumerate(counts)
        ]


def _items(item: NDArray[np.int32] | Ints, event: Ints) -> Ints:
    return np.asarray(item[event], dtype=np.int64)
