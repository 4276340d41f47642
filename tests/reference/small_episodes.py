"""Small random logs, packed by `Batcher` and, beside it, expanded in plain Python into one list a prefix.

Prefixes of one session are nested, some items are unknown (-1), and some prefixes hold no known item at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from metarec.core.batch import EpisodeBatch
from metarec.data.batches import Batcher

Pair = tuple[list[int], int]  # (prefix: known items only, target: -1 when unknown)


@dataclass(frozen=True)
class SmallLog:
    """A log of users with `n_pairs` pairs each; pairs of user u are u * n_pairs .. (u + 1) * n_pairs - 1."""

    batcher: Batcher
    sessions: list[tuple[int, int]]
    n_users: int
    n_pairs: int

    def expand(self, pairs: np.ndarray) -> list[Pair]:
        """Slow and obvious: the prefix of each pair, its latest `max_len` events, unknown items left out."""
        out = []
        for pair in pairs:
            begin, event = int(self.batcher.pair_begin[pair]), int(self.batcher.pair_event[pair])
            prefix = [int(item) for item in self.batcher.item[begin:event]][-self.batcher.max_len :]
            out.append(([item for item in prefix if item > 0], int(self.batcher.item[event])))
        return out

    def episodes(self, n_support: int, n_query: int, users: list[int] | None = None) -> EpisodeBatch:
        user = np.array(range(self.n_users) if users is None else users)
        return self.batcher.episodes(user, user * self.n_pairs, n_support, n_query)

    def plain_episodes(self, n_support: int, n_query: int) -> list[tuple[list[Pair], list[Pair]]]:
        """Of each user: support and query as plain lists."""
        pairs = np.arange(self.n_users * self.n_pairs).reshape(self.n_users, self.n_pairs)
        return [(self.expand(own[:n_support]), self.expand(own[n_support : n_support + n_query])) for own in pairs]


def small_log(
    seed: int, *, n_users: int = 4, n_pairs: int = 8, n_items: int = 11, longest: int = 9, max_len: int = 50,
    unknown: float = 0.15,
) -> SmallLog:  # fmt: skip
    """Sessions of 2 to `longest` events; each event is unknown with probability `unknown`."""
    rng = random.Random(seed)
    item: list[int] = []
    sessions, pair_begin, pair_event = [], [], []
    for _ in range(n_users):
        left = n_pairs
        while left > 0:
            begin, length = len(item), min(rng.randint(2, longest), left + 1)
            item += [-1 if rng.random() < unknown else rng.randint(1, n_items) for _ in range(length)]
            sessions.append((begin, begin + length))
            pair_begin += [begin] * (length - 1)
            pair_event += range(begin + 1, begin + length)
            left -= length - 1
    batcher = Batcher(np.array(item, np.int32), np.array(pair_begin), np.array(pair_event), max_len)
    return SmallLog(batcher, sessions, n_users, n_pairs)
