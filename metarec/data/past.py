"""All that a user did before his query pairs, as far back as it is asked for: more to adapt on than an episode's support.

    pairs of a user   0 ... first ............ middle - 1 | middle ... middle + Q - 1
                              support, at most `most`     |  query

Users have different numbers of support pairs, and a batch is rectangular. A shorter one is filled up in front: its first
pair stands there again, with target 0, which no loss counts (`core.batch.PairBatch`), so that a user's loss, its gradient
and all that follows from them are what they are when he is alone. No sequence is added by it, for the pair that stands
there again reads the prefix that is there already.

Shapes: R users, T tasks, N support pairs of the task with the most of them, Q query pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.core.batch import EpisodeBatch
from metarec.data.batches import Batcher
from metarec.ragged import Ints


@dataclass(frozen=True)
class Past:
    """Users with their support [first, middle) and their query [middle, middle + Q), by numbers of pairs.

    user, first, middle int64 [R]. It is read like the episodes of a split (`evaluate.Judged`), in the order of `user`.
    """

    batcher: Batcher
    user: Ints
    first: Ints
    middle: Ints
    n_query: int
    chunk: int
    device: torch.device
    most: int | None = None  # pairs of a batch, filled up, but one user at least; None: as many as `chunk` users have

    def __len__(self) -> int:
        return len(self.user)

    @property
    def pairs(self) -> Ints:
        """How many support pairs each user has, int64 [R]."""
        return self.middle - self.first

    def of(self, rows: Ints, chunk: int | None = None) -> Past:
        """These users alone, rows int64 [n], in that order, `chunk` at a time."""
        return replace(
            self, user=self.user[rows], first=self.first[rows], middle=self.middle[rows], chunk=chunk or self.chunk
        )

    def by_length(self) -> Past:
        """The same users, those with few pairs first, so that a batch has little to fill up."""
        return self.of(np.argsort(self.pairs, kind="stable"))

    def batches(self) -> Iterator[EpisodeBatch]:
        """`chunk` users at a time, or `most` pairs, in order; support [T, N] with target 0 where a user has no pair,
        query [T, Q]."""
        begin = 0
        while begin < len(self):
            width = np.maximum.accumulate(self.pairs[begin : begin + self.chunk])
            fits = len(width) if self.most is None else int((width * np.arange(1, len(width) + 1) <= self.most).sum())
            end = begin + max(fits, 1)
            yield self.batch(np.arange(begin, end))
            begin = end

    def batch(self, rows: Ints) -> EpisodeBatch:
        """Users rows int64 [T] together, on `device`."""
        query = self.middle[rows, None] + np.arange(self.n_query)
        support, real = filled(self.first[rows], self.middle[rows])
        found = self.batcher.pairs(support)
        real_there = torch.from_numpy(real).to(found.target.device)
        own = replace(found, target=found.target.where(real_there, 0))
        user = torch.from_numpy(np.ascontiguousarray(self.user[rows]))
        batch = EpisodeBatch(own, self.batcher.pairs(query), user, None, support, query)
        return batch.to(self.device)


def filled(first: Ints, middle: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Ranges [first, middle), int64 [T] each, as one rectangle int64 [T, N], rising, and which of it is real, bool [T, N].

    What stands in front of a shorter range is its first number again.
    """
    width = int((middle - first).max(initial=1))
    place = middle[:, None] - width + np.arange(width)
    return np.maximum(place, first[:, None]), place >= first[:, None]
