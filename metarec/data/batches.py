"""Event ranges -> packed batches of pairs (`core.batch`, `data.packing`), out of the arrays on disk or on a GPU.

A prefix is item[begin:event], its latest `max_len` events. As a target, an item outside the vocabulary (-1) stays, to count
as a miss.

Shapes: T tasks, N pairs a task.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.data.packing import pack

Ints = NDArray[np.int64]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batcher:
    """Makes batches out of `item` int32 [E] and the pairs' `begin` and `event` int64 [P].

    `device`: where batches are made. On a GPU the three arrays are copied there once, and a batch is gathered from them; on
    the CPU they stay what they are, memory maps where the log is large. `reliability`: pairs [T, N] -> what each may count
    (`data.reliability`); without it, batches carry none.
    """

    item: NDArray[np.int32]
    pair_begin: Ints
    pair_event: Ints
    max_len: int
    reliability: Callable[[Ints], NDArray[np.float64]] | None = None
    device: torch.device = CPU

    @cached_property
    def _resident(self) -> tuple[Tensor, Tensor, Tensor]:
        item, begin, event = (_shared(part).to(self.device) for part in (self.item, self.pair_begin, self.pair_event))
        return item, begin, event

    def _items_at(self, events: Tensor) -> Tensor:
        return self._resident[0][events].long()

    def pairs(self, pairs: Ints) -> PairBatch:
        """pairs int64 [T, N], rising within a task."""
        n_tasks, n_pairs = pairs.shape
        asked = self._placed(pairs.ravel())
        _, begin, event = self._resident
        at = event[asked].long()
        task = torch.arange(n_tasks, device=self.device).repeat_interleave(n_pairs)
        return pack(self._items_at, n_tasks, task, begin[asked].long().maximum(at - self.max_len), at)

    def _placed(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(self.device)

    def episodes(self, user: Ints, first_pair: Ints, n_support: int, n_query: int, skip: int = 0) -> EpisodeBatch:
        """Support = the `n_support` pairs behind the first `skip`, query = the `n_query` after them; [T] each."""
        span = first_pair[:, None] + skip + np.arange(n_support + n_query)
        support, query = span[:, :n_support], span[:, n_support:]
        scores = None if self.reliability is None else torch.from_numpy(self.reliability(support)).float()
        return EpisodeBatch(
            self.pairs(support),
            self.pairs(query),
            self._placed(user),
            None if scores is None else scores.to(self.device),
        )

    def sessions(self, begin: Ints, end: Ints) -> PairBatch:
        """Every (prefix -> next) pair of whole sessions as one task, each session read once.

        A session of more than `max_len` + 1 events is read in overlapping pieces: each target once, behind at least
        half of `max_len` events (one pass over the whole would show the model longer prefixes than it is asked about).
        """
        return self.pieces(*cut_long(begin, end, self.max_len))

    def pieces(self, first: Ints, last: Ints, start: Ints) -> PairBatch:
        """Pieces of sessions as `cut_long` gives them: the targets [first, last) behind events from `start` on."""
        counts = last - first
        event = self._placed(ranges(first, counts))
        return pack(self._items_at, 1, torch.zeros_like(event), self._placed(np.repeat(start, counts)), event)


def _shared(part: NDArray[np.int32] | Ints) -> Tensor:
    """The same memory as a tensor; a map that may only be read is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(part)


def ranges(begin: Ints, counts: Ints) -> Ints:
    """begin[0], begin[0] + 1, ... (counts[0] numbers), begin[1], ..."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts) + np.repeat(begin, counts)


def cut_long(begin: Ints, end: Ints, max_len: int) -> tuple[Ints, Ints, Ints]:
    """Sessions [begin, end) -> pieces (first target, end of targets, start of the prefix), in session order."""
    half = max(max_len // 2, 1)
    rest = np.maximum(end - begin - 1 - max_len, 0)
    pieces = 1 + -(-rest // half)
    number = ranges(np.zeros_like(begin), pieces)
    b, e = np.repeat(begin, pieces), np.repeat(end, pieces)
    first = np.where(number == 0, b + 1, b + 1 + max_len + (number - 1) * half)
    last = np.minimum(np.where(number == 0, b + 1 + max_len, first + half), e)
    start = np.maximum(b, np.where(number == 0, b, first + half - 1 - max_len))
    return first, last, start
