"""Preparation a second time, slow and obvious: lists and dictionaries, one user after another, no SQL and no array.

Only the rules of the protocol are shared with `metarec.data.prepare`; nothing of its code is. A log is a list of rows
(user, item, time in microseconds or order, order column, session) in file order.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from reference.shuffle_reference import order

from metarec.data.spec import DatasetSpec


@dataclass
class Row:
    user: Any
    item: Any
    time: int
    order: int = 0
    session: Any = None
    place: int = 0  # row of the file
    split: str | None = None  # of the split column
    number: int = 0  # of its session in the user, once it has one


@dataclass
class Expected:
    """What preparation must find, in raw ids. A pair is (user, items of the prefix, target, time of the target)."""

    steps: dict[str, int] = field(default_factory=dict)  # rows left after each step
    sessions: dict[Any, list[list[Row]]] = field(default_factory=dict)  # by user, in order
    split: dict[Any, str] = field(default_factory=dict)
    vocabulary: list[Any] = field(default_factory=list)
    cuts: tuple[int, int] | None = None
    pairs: dict[Any, list[tuple[Any, tuple[Any, ...], Any, int]]] = field(default_factory=dict)
    n_train_pairs: dict[Any, int] = field(default_factory=dict)
    training_events: dict[Any, list[Row]] = field(default_factory=dict)
    episodes: dict[str, list[list[tuple[Any, tuple[Any, ...], Any, int]]]] = field(default_factory=dict)


def in_id_order(ids: set[Any]) -> list[Any]:
    """As numbers if every id is a canonical whole number, else as text."""
    if all(isinstance(i, int) for i in ids):
        return sorted(ids)
    if all(re.fullmatch("0|-?[1-9][0-9]*", i) for i in ids):
        return sorted(ids, key=int)
    return sorted(ids)


def prepare_reference(rows: list[Row], spec: DatasetSpec, *, rule: str, split_by: str) -> Expected:
    """``rule``: gap, user or column; ``split_by``: user_time, user_disjoint, leave_one_out or column."""
    given = {row.user: {"valid": "val", "validation": "val"}.get(row.split or "", row.split) for row in rows}
    found = Expected()
    found.steps["input"] = len(rows)
    item_rank = {item: n for n, item in enumerate(in_id_order({row.item for row in rows}))}
    labels = {row.session for row in rows} - {None}
    label_rank = {label: n for n, label in enumerate(in_id_order(labels))}

    def place_in_order(row: Row) -> tuple[int, ...]:
        tie = {"item": 0, "row": row.place, "order": row.order}[spec.ties]
        label = label_rank[row.session] if rule == "column" else 0
        return (row.time, tie, item_rank[row.item], label)

    rows = sorted(rows, key=place_in_order)
    if spec.duplicates == "drop":
        seen, kept = set(), []
        for row in rows:
            if (row.user, row.item, row.time) not in seen:
                kept.append(row)
            seen.add((row.user, row.item, row.time))
        rows = kept
    found.steps["duplicates"] = len(rows)
    while True:
        users, items = Counter(row.user for row in rows), Counter(row.item for row in rows)
        kept = [
            row
            for row in rows
            if users[row.user] >= spec.core.min_user_events and items[row.item] >= spec.core.min_item_events
        ]
        if len(kept) == len(rows):
            break
        rows = kept
    found.steps["k-core"] = len(rows)

    by_user: dict[Any, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row.user, []).append(row)
    for user, events in by_user.items():
        found.sessions[user] = _sessions(events, spec, rule)
    found.steps["repeats"] = _n_events(found.sessions)
    _drop_short(found, spec)
    found.steps["short sessions"] = _n_events(found.sessions)

    users = in_id_order(set(by_user))  # sorted by the rule for the whole column
    users = [user for user in users if user in found.sessions]
    if split_by == "leave_one_out":
        found.split = dict.fromkeys(users, "train")
    elif split_by == "column":
        found.split = {user: str(given[user]) for user in users}
        if "val" not in given.values():
            training = [user for user in users if given[user] == "train"]
            np.random.RandomState(spec.split.seed).shuffle(training)
            for user in training[: int(spec.split.fractions[1] * len(training))]:
                found.split[user] = "val"
    else:
        shuffled = list(users)
        np.random.RandomState(spec.split.seed).shuffle(shuffled)
        n_train, n_val = (int(share * len(users)) for share in spec.split.fractions[:2])
        for n, user in enumerate(shuffled):
            found.split[user] = "train" if n < n_train else "val" if n < n_train + n_val else "test"
    if split_by == "user_time":
        _cut(found, spec)
    _pairs(found, spec, users, split_by)
    events = {row.item for rows_of in found.training_events.values() for row in rows_of}
    found.vocabulary = [item for item in in_id_order({row.item for row in _all(by_user)}) if item in events]
    return found


def _sessions(events: list[Row], spec: DatasetSpec, rule: str) -> list[list[Row]]:
    sessions: list[list[Row]] = []
    before = None
    for row in events:
        gap = spec.sessions.gap_minutes * 60e6
        opens = before is None or (rule == "gap" and row.time - before.time > gap)
        opens = opens or (rule == "column" and row.session != before.session)
        if opens:
            sessions.append([row])
        elif not (spec.sessions.drop_repeats and row.item == before.item):
            sessions[-1].append(row)
        before = row
    for number, session in enumerate(sessions, start=1):
        for row in session:
            row.number = number
    return sessions


def _drop_short(found: Expected, spec: DatasetSpec) -> None:
    for user, sessions in list(found.sessions.items()):
        found.sessions[user] = [session for session in sessions if len(session) >= spec.sessions.min_events]
    if not found.split:  # before the users are split, one without a session is out
        found.sessions = {user: sessions for user, sessions in found.sessions.items() if sessions}


def _cut(found: Expected, spec: DatasetSpec) -> None:
    times = sorted(row.time for sessions in found.sessions.values() for session in sessions for row in session)
    if not times:
        return
    first, second = (times[int(quantile * len(times))] for quantile in spec.split.time_quantiles)
    found.cuts = (first, second)
    limits = {"train": (-(2**63), first), "val": (first, second), "test": (second, 2**63)}
    for user, sessions in found.sessions.items():
        low, high = limits[found.split[user]]
        found.sessions[user] = [[row for row in session if low <= row.time < high] for session in sessions]
    found.steps["time cut"] = _n_events(found.sessions)
    _drop_short(found, spec)
    found.steps["cut sessions"] = _n_events(found.sessions)


def _pairs(found: Expected, spec: DatasetSpec, users: list[Any], split_by: str) -> None:
    k, q = spec.episodes.n_support, spec.episodes.n_query
    found.episodes = {"train": [], "val": [], "test": []}
    for user in users:
        if spec.sessions.order == "shuffled":
            found.sessions[user] = _shuffled(found.sessions[user], user, spec, split_by)
        pairs, targets, events = [], [], []
        for session in found.sessions[user]:
            for n, row in enumerate(session):
                if n:
                    pairs.append((user, tuple(r.item for r in session[:n]), row.item, row.time))
                    targets.append(len(events))
                events.append(row)
        found.pairs[user] = pairs
        if split_by == "leave_one_out":
            held = 2 if len(pairs) >= 2 else 0
            n_train = len(pairs) - held
            found.training_events[user] = events[: targets[-2]] if held else events
            if len(pairs) >= k + 1:
                found.episodes["test"].append(pairs[-k - 1 :])
            if len(pairs) >= k + 2:
                found.episodes["val"].append(pairs[-k - 2 : -1])
        else:
            n_train = len(pairs) if found.split[user] == "train" else 0
            found.training_events[user] = events if found.split[user] == "train" else []
            if found.split[user] != "train" and len(pairs) >= k + q:
                found.episodes[found.split[user]].append(pairs[-(k + q) :])
        found.n_train_pairs[user] = n_train
        for start in range(0, n_train - k - q + 1, spec.episodes.stride):
            found.episodes["train"].append(pairs[start : start + k + q])


def _shuffled(sessions: list[list[Row]], user: Any, spec: DatasetSpec, split_by: str) -> list[list[Row]]:
    """Items permuted inside of each session; under leave_one_out those from the last but one target on stay."""
    free = sum(map(len, sessions))
    if split_by == "leave_one_out":
        starts = [sum(map(len, sessions[:n])) for n in range(len(sessions))]
        targets = [start + n for start, session in zip(starts, sessions, strict=True) for n in range(1, len(session))]
        free = targets[-2] if len(targets) >= 2 else free
    other = []
    for session in sessions:
        moving = list(range(min(len(session), free)))
        free -= len(moving)
        came_from = order(str(user), session[0].number, spec.sessions.shuffle_seed, moving) if session else []
        items = [session[place].item for place in came_from] + [row.item for row in session[len(moving) :]]
        other.append([replace(row, item=item) for row, item in zip(session, items, strict=True)])
    return other


def _n_events(sessions: dict[Any, list[list[Row]]]) -> int:
    return sum(len(session) for of_user in sessions.values() for session in of_user)


def _all(by_user: dict[Any, list[Row]]) -> list[Row]:
    return [row for rows in by_user.values() for row in rows]
