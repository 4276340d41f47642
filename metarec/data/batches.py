"""Event ranges -> packed batches of pairs (`core.batch`, `data.packing`), out of the arrays on disk or on a GPU.

A prefix is item[begin:event], its latest `max_len` events. As a target, an item outside the vocabulary (-1) stays, to count
as a miss; so does one that no training user has (`dataset.vocabulary=all`), to be found or missed, but a model does not read
it: of that input it has learned nothing.

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
from metarec.data.history import BREAK, Laid, Stream, behind
from metarec.data.packing import pack
from metarec.data.recall import Log, remembered
from metarec.ragged import ranges

Ints = NDArray[np.int64]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batcher:
    """Makes batches out of `item` int32 [E] and the pairs' `begin` and `event` int64 [P].

    `device`: where batches are made. On a GPU the three arrays are copied there once, and a batch is gathered from them; on
    the CPU they stay what they are, memory maps where the log is large. `reliability`: pairs [T, N] -> what each may count
    (`data.reliability`); without it, batches carry none. `stream`: prefixes reach back over the user's history
    (`data.history`): in episodes over the support, else over all earlier sessions. `n_read`: items numbered above it are
    left out of prefixes (None: none is). `recall`: episodes say what is known ahead of every pair (`data.recall`).
    """

    item: NDArray[np.int32]
    pair_begin: Ints
    pair_event: Ints
    max_len: int
    reliability: Callable[[Ints], NDArray[np.float64]] | None = None
    device: torch.device = CPU
    stream: Stream | None = None
    n_read: int | None = None
    recall: bool = False

    @cached_property
    def _resident(self) -> tuple[Tensor, Tensor, Tensor]:
        item, begin, event = (_shared(part).to(self.device) for part in (self.item, self.pair_begin, self.pair_event))
        return item, begin, event

    @cached_property
    def _stream(self) -> Tensor:
        assert self.stream is not None
        return _shared(self.stream.item).to(self.device)

    def _items_at(self, events: Tensor) -> Tensor:
        return self._resident[0][events].long()

    def pairs(self, pairs: Ints) -> PairBatch:
        """pairs int64 [T, N], rising within a task."""
        n_tasks, n_pairs = pairs.shape
        task = torch.arange(n_tasks, device=self.device).repeat_interleave(n_pairs)
        if self.stream is not None:
            target = np.asarray(self.pair_event[pairs.ravel()], dtype=np.int64)
            place = self.stream.at(target)
            first = np.maximum(self.stream.user_begin(target), place - self.max_len)
            return pack(self._tokens_at, n_tasks, task, self._placed(first), self._placed(place), self.n_read)
        asked = self._placed(pairs.ravel())
        _, begin, event = self._resident
        at = event[asked].long()
        return pack(self._items_at, n_tasks, task, begin[asked].long().maximum(at - self.max_len), at, self.n_read)

    def _tokens_at(self, places: Tensor) -> Tensor:
        return self._stream[places].long()

    def behind(self, support: Ints, query: Ints, *, breaks: bool) -> tuple[PairBatch, PairBatch]:
        """Pairs int64 [T, K] and [T, Q], rising: the support in front of every prefix, joined by breaks or by nothing."""
        laid = behind(self.ends(support), self.ends(query), self.max_len, breaks)
        return self._packed(laid[0]), self._packed(laid[1])

    def ends(self, pairs: Ints) -> tuple[Ints, Ints]:
        """First event of the session, event of the target, of pairs of any shape."""
        return np.asarray(self.pair_begin[pairs], dtype=np.int64), np.asarray(self.pair_event[pairs], dtype=np.int64)

    def _packed(self, laid: Laid) -> PairBatch:
        source, (n_tasks, n_pairs) = self._placed(laid.source), laid.at.shape

        def items_at(places: Tensor) -> Tensor:
            events = source[places]
            return torch.where(events == BREAK, 0, self._items_at(events.clamp(min=0)))

        task = torch.arange(n_tasks, device=self.device).repeat_interleave(n_pairs)
        begin, at = self._placed(laid.begin.ravel()), self._placed(laid.at.ravel())
        return pack(items_at, n_tasks, task, begin, at, self.n_read)

    def _placed(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(self.device)

    def episodes(self, user: Ints, first_pair: Ints, n_support: int, n_query: int, skip: int = 0) -> EpisodeBatch:
        """Support = the `n_support` pairs behind the first `skip`, query = the `n_query` after them; [T] each."""
        span = first_pair[:, None] + skip + np.arange(n_support + n_query)
        support, query = span[:, :n_support], span[:, n_support:]
        scores = None if self.reliability is None else torch.from_numpy(self.reliability(support)).float()
        alone = self.stream is None
        parts = (self.pairs(support), self.pairs(query)) if alone else self.behind(support, query, breaks=True)
        if self.recall:
            if not alone:
                raise ValueError("no recall with a stream: its prefixes hold the support already")
            log = Log(self.item, self.max_len, self.n_read)
            parts = remembered(*parts, self.ends(support), self.ends(query), log)
        reliability = None if scores is None else scores.to(self.device)
        return EpisodeBatch(*parts, self._placed(user), reliability, support, query)

    def sessions(self, begin: Ints, end: Ints) -> PairBatch:
        """Every (prefix -> next) pair of whole sessions as one task, each session read once.

        A session of more than `max_len` + 1 events is read in overlapping pieces: each target once, behind at least
        half of `max_len` events (one pass over the whole would show the model longer prefixes than it is asked about).
        """
        return self.pieces(*cut_long(begin, end, self.max_len))

    def pieces(self, first: Ints, last: Ints, start: Ints) -> PairBatch:
        """Pieces of sessions as `cut_long` gives them: the targets [first, last) behind events from `start` on.

        With a stream: pieces of it; its breaks are no targets (0: no pair).
        """
        counts = last - first
        event = self._placed(ranges(first, counts))
        at = self._items_at if self.stream is None else self._tokens_at
        return pack(at, 1, torch.zeros_like(event), self._placed(np.repeat(start, counts)), event, self.n_read)


def _shared(part: NDArray[np.int32] | Ints) -> Tensor:
    """The same memory as a tensor; a map that may only be read is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(part)


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
