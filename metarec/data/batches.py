"""Event ranges -> packed batches of pairs (`core.batch`), built by index arithmetic from the arrays on disk.

A prefix is item[begin:event], its latest `max_len` events; pairs of a task whose prefixes start at one event share one
sequence. Items outside the vocabulary (-1) are left out of a prefix; as a target they stay, to count as a miss.

Shapes: T tasks, N pairs a task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.core.batch import EpisodeBatch, PairBatch, Sequences

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batcher:
    """Makes batches out of `item` int32 [E] and the pairs' `begin` and `event` int64 [P]."""

    item: NDArray[np.int32]
    pair_begin: Ints
    pair_event: Ints
    max_len: int

    def pairs(self, pairs: Ints) -> PairBatch:
        """pairs int64 [T, N], rising within a task."""
        n_tasks, n_pairs = pairs.shape
        event = np.asarray(self.pair_event[pairs.ravel()], dtype=np.int64)
        begin = np.maximum(np.asarray(self.pair_begin[pairs.ravel()]), event - self.max_len)
        task = np.repeat(np.arange(n_tasks), n_pairs)
        return self._pack(n_tasks, task, begin, event)

    def episodes(self, user: Ints, first_pair: Ints, n_support: int, n_query: int, skip: int = 0) -> EpisodeBatch:
        """Support = the `n_support` pairs behind the first `skip`, query = the `n_query` after them; [T] each."""
        span = first_pair[:, None] + skip + np.arange(n_support + n_query)
        return EpisodeBatch(
            self.pairs(span[:, :n_support]), self.pairs(span[:, n_support:]), torch.from_numpy(np.ascontiguousarray(user))
        )

    def sessions(self, begin: Ints, end: Ints) -> PairBatch:
        """Every (prefix -> next) pair of whole sessions as one task, each session read once.

        A session of more than `max_len` + 1 events is read in overlapping pieces: each target once, behind at least
        half of `max_len` events (one pass over the whole would show the model longer prefixes than it is asked about).
        """
        first, last, start = cut_long(begin, end, self.max_len)
        counts = last - first
        event = _ranges(first, counts)
        return self._pack(1, np.zeros(len(event), dtype=np.int64), np.repeat(start, counts), event)

    def _pack(self, n_tasks: int, task: Ints, begin: Ints, event: Ints) -> PairBatch:
        """task, begin, event int64 [P]: pairs grouped by task; neighbours with one begin share a sequence."""
        new = np.ones(len(task), dtype=bool)
        new[1:] = (begin[1:] != begin[:-1]) | (task[1:] != task[:-1])
        row_of_pair = np.cumsum(new) - 1
        row_task, row_begin = task[new], begin[new]
        last_pair = np.append(np.flatnonzero(new)[1:], len(task)) - 1
        spans = event[last_pair] - row_begin
        tokens = np.asarray(self.item[_ranges(row_begin, spans)], dtype=np.int64)
        known_before = np.concatenate([[0], np.cumsum(tokens > 0)])
        row_at = np.cumsum(spans) - spans
        lengths = known_before[row_at + spans] - known_before[row_at]
        depth = known_before[row_at[row_of_pair] + event - begin] - known_before[row_at[row_of_pair]]

        # rows of a task longest first: recurrent models then touch only what still runs
        order = np.lexsort((-lengths, row_task))
        rank_in_task = np.arange(len(order)) - np.searchsorted(row_task[order], row_task[order])
        sorted_lengths = lengths[order]
        ahead = np.cumsum(sorted_lengths) - sorted_lengths
        starts_sorted = ahead - ahead[np.searchsorted(row_task[order], row_task[order])]
        n_rows = int(rank_in_task.max()) + 1 if len(order) else 1
        starts = np.zeros((n_tasks, n_rows), dtype=np.int64)
        lens = np.zeros((n_tasks, n_rows), dtype=np.int64)
        starts[row_task[order], rank_in_task] = starts_sorted
        lens[row_task[order], rank_in_task] = sorted_lengths
        row_start = np.empty_like(lengths)
        row_start[order] = starts_sorted

        width = max(int(lens.sum(1).max()), 1)
        items = np.zeros((n_tasks, width), dtype=np.int64)
        kept = tokens > 0
        row_of_token = np.repeat(np.arange(len(spans)), spans)[kept]
        place = row_start[row_of_token] + known_before[:-1][kept] - known_before[row_at[row_of_token]]
        items[row_task[row_of_token], place] = tokens[kept]

        at = np.where(depth > 0, row_start[row_of_pair] + depth, 0)
        target = np.asarray(self.item[event], dtype=np.int64)
        shape = (n_tasks, len(task) // n_tasks)  # every task has as many pairs
        return PairBatch(
            Sequences(torch.from_numpy(items), torch.from_numpy(starts), torch.from_numpy(lens)),
            torch.from_numpy(at.reshape(shape)),
            torch.from_numpy(target.reshape(shape)),
        )


def _ranges(begin: Ints, counts: Ints) -> Ints:
    """begin[0], begin[0] + 1, ... (counts[0] numbers), begin[1], ..."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts) + np.repeat(begin, counts)


def cut_long(begin: Ints, end: Ints, max_len: int) -> tuple[Ints, Ints, Ints]:
    """Sessions [begin, end) -> pieces (first target, end of targets, start of the prefix), in session order."""
    half = max(max_len // 2, 1)
    rest = np.maximum(end - begin - 1 - max_len, 0)
    pieces = 1 + -(-rest // half)
    number = _ranges(np.zeros_like(begin), pieces)
    b, e = np.repeat(begin, pieces), np.repeat(end, pieces)
    first = np.where(number == 0, b + 1, b + 1 + max_len + (number - 1) * half)
    last = np.minimum(np.where(number == 0, b + 1 + max_len, first + half), e)
    start = np.maximum(b, np.where(number == 0, b, first + half - 1 - max_len))
    return first, last, start
