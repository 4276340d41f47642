"""Session reliability: how much a support pair may count, by the part of its session that ends with its own target.

    SRS = (min(n_events / p95, 1) + min(duration / p95, 1) + distinct items / n_events) / 3

over the events from the first of the session to the target of the pair: a later event may be a query, so none is looked
at. p95: the 95th percentile over the whole training sessions, of the number of events and of the duration each; a p95
of 0 makes its term 1 for all. A log that has an order and no clock has no duration: the mean of the two other terms.

Events are those that a model can read: of an item outside the vocabulary (-1), or one that no training user has, none is
counted, timed or told apart, so leaving such events out of the log changes no score. They are not cut to `max_len`: that a
session is long says the same whatever a model reads of it. The variety of no event at all is 1, so every score is in
(0, 1]. In `dataset=episode_tables` a session's first event has the time of its first label, which is no later than that of
any target.

Source: session reliability score (SRS), an extra of residual warm-start MAML; here of a session as far as its target.
Shapes: T tasks, N pairs a task, P parts (event ranges), E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarec.data.store import Prepared, train_sessions
from metarec.ragged import Ints, ranges

PERCENTILE = 95
EVENTS_AT_ONCE = 1_000_000  # of the training sessions: what is held in memory, not the result


@dataclass(frozen=True)
class Reliability:
    """`item` int32 [E], `time` int64 [E] (None: no clock), the pairs' `begin` and `event`; p95 in events and in the
    unit of `time`."""

    item: NDArray[np.int32]
    time: Ints | None
    pair_begin: Ints
    pair_event: Ints
    p95_events: float
    p95_duration: float

    def __call__(self, pairs: Ints) -> NDArray[np.float64]:
        """pairs int64 [T, N] -> their scores [T, N]; any order, any pair as often as wanted."""
        begin = np.asarray(self.pair_begin[pairs.ravel()], dtype=np.int64)
        end = np.asarray(self.pair_event[pairs.ravel()], dtype=np.int64) + 1
        n_events, duration, distinct = _extent(self.item, self.time, begin, end)
        terms = [_share(n_events, self.p95_events), np.where(n_events > 0, distinct / np.maximum(n_events, 1), 1.0)]
        if self.time is not None:
            terms.append(_share(duration, self.p95_duration))
        scores: NDArray[np.float64] = np.mean(terms, axis=0).reshape(pairs.shape)
        return scores


def reliability_of(prepared: Prepared) -> Reliability:
    """One pass over the training sessions, a piece at a time."""
    item, time = np.asarray(prepared.item), np.asarray(prepared.time) if prepared.has_clock else None
    if prepared.n_read is not None:
        item = np.where(item > prepared.n_read, -1, item)
    begin, end = train_sessions(prepared)
    piece = np.cumsum(end - begin) // EVENTS_AT_ONCE
    pieces = np.split(np.arange(len(begin)), np.flatnonzero(np.diff(piece)) + 1)
    found = [_extent(item, time, begin[own], end[own])[:2] for own in pieces]
    p95 = [float(np.percentile(np.concatenate(column), PERCENTILE)) for column in zip(*found, strict=True)]
    return Reliability(item, time, np.asarray(prepared.pair_begin), np.asarray(prepared.pair_event), *p95)


def _share(value: Ints, p95: float) -> NDArray[np.float64]:
    return np.minimum(value / p95, 1.0) if p95 > 0 else np.ones(len(value))


def _extent(item: NDArray[np.int32], time: Ints | None, begin: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
    """(events, time from the first to the last, distinct items) of the parts [begin, end), known items only; [P] each.

    Parts of one session are nested, so each session is read once, up to the end of its longest part: what a part holds
    is a difference of running counts, its distinct items the events that are the first of their item in the session.
    """
    first, row = np.unique(begin, return_inverse=True)
    size = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(size, row, end - begin)
    event = ranges(first, size)
    known = np.asarray(item[event]) > 0
    event = event[known]
    key = np.stack([np.repeat(first, size)[known], item[event]])
    new = np.zeros(len(event), dtype=np.int64)
    new[_first_of_each(key)] = 1

    before = np.concatenate([[0], np.cumsum(known)])  # known events ahead of an event read
    fresh = np.concatenate([[0], np.cumsum(new)])  # of them, those that are the first of their item
    opens = (np.cumsum(size) - size)[row]
    low, high = before[opens], before[opens + end - begin]
    n_events, distinct = high - low, fresh[high] - fresh[low]
    if time is None or len(event) == 0:
        return n_events, np.zeros_like(n_events), distinct
    at = np.asarray(time[event], dtype=np.int64)
    span = at[np.maximum(high, 1) - 1] - at[np.minimum(low, len(at) - 1)]
    return n_events, np.where(n_events > 0, span, 0), distinct


def _first_of_each(key: Ints) -> Ints:
    """Where each column of `key` [2, n] stands first."""
    order = np.lexsort(key[::-1])  # stable: equal columns stay in the order of the events
    ordered = key[:, order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    found: Ints = order[starts]
    return found
