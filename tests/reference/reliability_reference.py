"""Session reliability a second time, slow and obvious: one pair after another, lists and sets, no array arithmetic.

Nothing of `metarec.data.reliability` is used. Known items only (> 0): events of others are not there.
"""

from __future__ import annotations

import math

from metarec.data.store import Prepared

Event = tuple[int, int]  # item, time


def known_events(item: list[int], time: list[int], begin: int, end: int) -> list[Event]:
    return [(item[event], time[event]) for event in range(begin, end) if item[event] > 0]


def duration(events: list[Event]) -> int:
    return events[-1][1] - events[0][1] if events else 0


def score(events: list[Event], p95_events: float, p95_duration: float | None) -> float:
    """Of the part of a session that ends with the target; p95_duration None = no clock."""
    variety = len({item for item, _ in events}) / len(events) if events else 1.0
    terms = [variety, 1.0 if p95_events == 0 else min(len(events) / p95_events, 1.0)]
    if p95_duration is not None:
        terms.append(1.0 if p95_duration == 0 else min(duration(events) / p95_duration, 1.0))
    return sum(terms) / len(terms)


def percentile_95(values: list[int]) -> float:
    """Between the two values around place .95 * (n - 1) in rising order, as far as the place lies between them."""
    rising, place = sorted(values), 0.95 * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(rising) - 1)
    return rising[low] + (place - low) * (rising[high] - rising[low])


def percentiles(prepared: Prepared) -> tuple[float, float]:
    """p95 of events and duration over the training users' sessions, each up to where training ends."""
    item, time = prepared.item.tolist(), prepared.time.tolist()
    counts, spans = [], []
    for user in range(prepared.n_users):
        for session in range(prepared.user_sessions[user], prepared.user_sessions[user + 1]):
            begin, end = prepared.session_offsets[session : session + 2].tolist()
            end = min(end, int(prepared.train_event_end[user]))
            if end - begin >= 2:
                events = known_events(item, time, begin, end)
                counts.append(len(events))
                spans.append(duration(events))
    return percentile_95(counts), percentile_95(spans)


def scores(prepared: Prepared) -> list[float]:
    """Of every pair of the log."""
    item, time = prepared.item.tolist(), prepared.time.tolist()
    p95_events, p95_duration = percentiles(prepared)
    return [
        score(known_events(item, time, begin, event + 1), p95_events, p95_duration if prepared.has_clock else None)
        for begin, event in zip(prepared.pair_begin.tolist(), prepared.pair_event.tolist(), strict=True)
    ]
