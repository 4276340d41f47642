"""Event ranges -> packed batches of pairs (`core.batch`), built by index arithmetic from the arrays on disk.

A prefix is item[begin:event], its latest `max_len` events; pairs of a task whose prefixes start at one event share one
sequence, and sequences that overlap share their events. Items outside the vocabulary (-1) are left out of a prefix; as
a target they stay, to count as a miss.

Shapes: T tasks, N pairs a task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.core.batch import EpisodeBatch, PairBatch, Sequences

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batcher:
    """Makes batches out of `item` int32 [E] and the pairs' `begin` and `event` int64 [P].

    `reliability`: pairs [T, N] -> what each may count (`data.reliability`); without it, batches carry none.
    """

    item: NDArray[np.int32]
    pair_begin: Ints
    pair_event: Ints
    max_len: int
    reliability: Callable[[Ints], NDArray[np.float64]] | None = None

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
        support, query = span[:, :n_support], span[:, n_support:]
        scores = None if self.reliability is None else self.reliability(support).astype(np.float32)
        return EpisodeBatch(
            self.pairs(support),
            self.pairs(query),
            torch.from_numpy(np.ascontiguousarray(user)),
            None if scores is None else torch.from_numpy(scores),
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
        event = ranges(first, counts)
        return self._pack(1, np.zeros(len(event), dtype=np.int64), np.repeat(start, counts), event)

    def _pack(self, n_tasks: int, task: Ints, begin: Ints, event: Ints) -> PairBatch:
        """task, begin, event int64 [P]: pairs grouped by task; neighbours with one begin share a sequence.

        Neighbouring sequences that overlap (the latest events of ever longer prefixes) read one stretch of events.
        """
        new = np.ones(len(task), dtype=bool)
        new[1:] = (begin[1:] != begin[:-1]) | (task[1:] != task[:-1])
        row_of_pair = np.cumsum(new) - 1
        row_task, row_begin, row_end = task[new], begin[new], event[_last_of(new)]

        opens = np.ones(len(row_task), dtype=bool)
        inside = (row_begin[1:] > row_begin[:-1]) & (row_begin[1:] < row_end[:-1])
        opens[1:] = ~inside | (row_task[1:] != row_task[:-1])
        stretch = np.cumsum(opens) - 1
        stretch_begin = row_begin[opens]
        spans = row_end[_last_of(opens)] - stretch_begin
        tokens = np.asarray(self.item[ranges(stretch_begin, spans)], dtype=np.int64)
        known = np.concatenate([[0], np.cumsum(tokens > 0)])  # how many known items stand ahead of a token
        row_at = (np.cumsum(spans) - spans - stretch_begin)[stretch] + row_begin  # the row's first token
        lengths = known[row_at + row_end - row_begin] - known[row_at]

        # known items of a task stand one behind the other
        token_task = np.repeat(row_task[opens], spans)[tokens > 0]
        ahead = np.searchsorted(token_task, np.arange(n_tasks))
        items = np.zeros((n_tasks, max(int(np.bincount(token_task, minlength=1).max()), 1)), dtype=np.int64)
        items[token_task, np.arange(len(token_task)) - ahead[token_task]] = tokens[tokens > 0]

        # rows of a task longest first: recurrent models then touch only what still runs
        order = np.lexsort((-lengths, row_task))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        rank -= np.searchsorted(row_task, row_task)
        starts = np.zeros((n_tasks, int(rank.max(initial=0)) + 1), dtype=np.int64)
        sizes = np.zeros_like(starts)
        starts[row_task, rank] = known[row_at] - ahead[row_task]
        sizes[row_task, rank] = lengths
        places = (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)

        row = row_of_pair
        depth = known[row_at[row] + event - begin] - known[row_at[row]]
        at = np.where(depth > 0, places[task, rank[row]] + depth, 0)
        target = np.asarray(self.item[event], dtype=np.int64)
        shape = (n_tasks, len(task) // n_tasks)  # every task has as many pairs
        return PairBatch(
            Sequences(torch.from_numpy(items), torch.from_numpy(starts), torch.from_numpy(sizes)),
            torch.from_numpy(at.reshape(shape)),
            torch.from_numpy(target.reshape(shape)),
        )


def _last_of(new: NDArray[np.bool_]) -> Ints:
    """The last number of every group, where `new` marks the first."""
    return np.append(np.flatnonzero(new), len(new))[1:] - 1


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
