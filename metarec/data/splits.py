"""Which users train, which validate, which test; and what the split can promise about time.

    user_time      user-disjoint and a global time cut: training users' events before T1, validation users' in
                   [T1, T2), test users' from T2 on; T1, T2 are quantiles of the times of all kept events. No leak.
    user_disjoint  user-disjoint only (the published MOOC protocol); training may see later events than the test.
    leave_one_out  every user trains, on all but the last two events: the validation and the test target.
    column         user-disjoint as the log's own column says (a published split). Where it names no validation users,
                   the second of split.fractions is the share of its training users that validate and do not train.
                   What the publishers cut at is not in the log: only a clock can show a leak.

Users are split by shuffling the sorted ids with numpy.random.RandomState(seed), a stream that numpy keeps frozen.
Flaws of splits that ignore time: Hidasi & Czapp 2023, arXiv:2307.14951; Ji et al. 2020, arXiv:2010.11060.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from metarec.data.spec import DatasetSpec, split_column
from metarec.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from metarec.data.store import Prepared

RULES = {
    "source": ("log", "synthetic", "episode_tables"),
    "ties": ("item", "row", "order"),
    "duplicates": ("error", "drop", "keep"),
    "history": ("sessions", "user"),
    "vocabulary": ("training", "all"),
    "sessions.by": ("auto", "gap", "user", "column"),
    "sessions.order": ("real", "shuffled"),
    "split.by": ("auto", "user_time", "user_disjoint", "leave_one_out", "column"),
}
WORDS = ("train", "val", "valid", "validation", "test")  # of the split column; the middle three are one split


def spec_problems(spec: DatasetSpec) -> list[ConfigError]:
    """Every option out of range, before anything is read (`prepare` raises the first)."""
    values = {"source": spec.source, "ties": spec.ties, "duplicates": spec.duplicates,
              "history": spec.history, "vocabulary": spec.vocabulary,
              "sessions.by": spec.sessions.by, "sessions.order": spec.sessions.order,
              "split.by": spec.split.by}  # fmt: skip
    found = []
    for key, value in values.items():
        if value not in RULES[key]:
            near = nearest(str(value), RULES[key])
            way_out = f"did you mean {near}?" if near else f"choose one of {', '.join(RULES[key])}"
            found.append(ConfigError(f"dataset.{key}", value, "no such choice", way_out))

    def need(holds: bool, key: str, value: object, what: str, fix: str) -> None:
        if not holds:
            found.append(ConfigError(f"dataset.{key}", value, what, fix))

    shape, split, sessions = spec.episodes, spec.split, spec.sessions
    for key, number in (("n_support", shape.n_support), ("n_query", shape.n_query), ("stride", shape.stride)):
        need(number >= 1, f"episodes.{key}", number, "must be 1 or more", "give a whole number from 1 on")
    need(
        sessions.min_events >= 2,
        "sessions.min_events",
        sessions.min_events,
        "a session of one event has no pair",
        "give 2 or more",
    )
    gap = sessions.gap_minutes
    need(math.isfinite(gap) and 0 < gap < 1e9, "sessions.gap_minutes", gap,
         "must be a positive number of minutes", "30 is usual")  # fmt: skip
    need(0 <= sessions.shuffle_seed < 2**32, "sessions.shuffle_seed", sessions.shuffle_seed, "must lie in [0, 2^32)",
         "20260107 is the default")  # fmt: skip
    need(sessions.order != "shuffled" or spec.source in ("log", "synthetic"), "sessions.order", "shuffled",
         f"source={spec.source} gives what it has in an order of its own: there are no events to reorder",
         "say real, or shuffle the log that it was made of")  # fmt: skip
    for key, number in (("min_user_events", spec.core.min_user_events), ("min_item_events", spec.core.min_item_events)):
        need(number >= 0, f"core.{key}", number, "must not be negative", "0 switches it off")
    fractions, cuts = list(split.fractions), list(split.time_quantiles)
    need(len(fractions) == 3 and all(0 < f < 1 for f in fractions), "split.fractions", fractions,
         "needs three shares above 0: train, validation, test", "such as [0.7,0.1,0.2]")  # fmt: skip
    need(len(fractions) != 3 or abs(sum(fractions) - 1) < 1e-9, "split.fractions", fractions,
         f"the shares sum to {sum(fractions):g}, not to 1", "such as [0.7,0.1,0.2]")  # fmt: skip
    need(len(cuts) == 2 and 0 < cuts[0] < cuts[-1] < 1, "split.time_quantiles", cuts,
         "needs two rising shares between 0 and 1", "such as [0.7,0.8]")  # fmt: skip
    need(0 <= split.seed < 2**32, "split.seed", split.seed, "must lie in [0, 2^32)", "20260107 is the published one")
    need(re.fullmatch(r"\d+(\.\d+)? ?[KMGT](i?B)", spec.memory_limit, re.IGNORECASE) is not None, "memory_limit",
         spec.memory_limit, "is no amount of memory", "such as 1500MB or 4GB")  # fmt: skip
    has_column = spec.columns.session is not None or spec.source == "synthetic"
    need(has_column or sessions.by != "column", "sessions.by", "column",
         "no session column is named", "say dataset.columns.session=NAME, or dataset.sessions.by=gap|user")  # fmt: skip
    need(split_column(spec) is not None or split.by != "column", "split.by", "column", "no split column is named",
         "say dataset.columns.split=NAME, or dataset.split.by=user_disjoint|user_time|leave_one_out")  # fmt: skip
    return found


def session_rule(spec: DatasetSpec, has_clock: bool) -> str:
    """``gap``, ``user`` or ``column``; ConfigError for a gap in a log without a clock."""
    if spec.sessions.by == "auto":
        if spec.columns.session is not None or spec.source == "synthetic":
            return "column"
        return "gap" if has_clock else "user"
    if spec.sessions.by == "gap" and not has_clock:
        raise ConfigError("dataset.sessions.by", "gap", "the log has an order and no clock, so no gap in minutes",
                          "say dataset.sessions.by=user, or give a column of times")  # fmt: skip
    return spec.sessions.by


def split_rule(spec: DatasetSpec, has_clock: bool) -> str:
    """``user_time``, ``user_disjoint``, ``leave_one_out`` or ``column``; ConfigError for a time cut without a clock."""
    if split_column(spec) is not None:
        return "column"
    if spec.split.by == "auto":
        return "user_time" if has_clock else "user_disjoint"
    if spec.split.by == "user_time" and not has_clock:
        raise ConfigError("dataset.split.by", "user_time", "the log has an order and no clock, so no time to cut at",
                          "say dataset.split.by=user_disjoint, or give a column of times")  # fmt: skip
    return spec.split.by


def assign_users(n_users: int, fractions: list[float], seed: int) -> np.ndarray:
    """Split of each user in the order of sorted ids, int8 [n_users]: 0 train, 1 validation, 2 test."""
    order = list(range(n_users))
    np.random.RandomState(seed).shuffle(order)
    n_train, n_val = int(fractions[0] * n_users), int(fractions[1] * n_users)
    split = np.full(n_users, 2, dtype=np.int8)
    split[order[:n_train]] = 0
    split[order[n_train : n_train + n_val]] = 1
    return split


def with_validation(split: np.ndarray, share: float, seed: int) -> np.ndarray:
    """``split`` int8 [U] of sorted ids, with ``share`` of its training users (rounded down) validating instead."""
    training = np.flatnonzero(split == 0).tolist()
    np.random.RandomState(seed).shuffle(training)
    drawn = split.copy()
    drawn[training[: int(share * len(training))]] = 1
    return drawn


def quantile_position(quantile: float, n_events: int) -> int:
    """Position from 0, among the sorted event times, of the time that cuts at ``quantile``."""
    return min(int(quantile * n_events), n_events - 1)


def train_event_end(split_by: str, user_split: np.ndarray, user_events: np.ndarray, user_pairs: np.ndarray,
                    pair_event: np.ndarray) -> np.ndarray:  # fmt: skip
    """Per user the end of the events for training, int64 [U]; ``user_events`` int64 [U+1] are the users' event ranges.

    leave_one_out holds the targets of a user's last two pairs back: training ends before the target of the last but
    one. In one unbroken sequence that is the last but one event. A user of a single pair has no query and trains on
    all.
    """
    begin, end = user_events[:-1], user_events[1:]
    if split_by != "leave_one_out":
        return np.where(user_split == 0, end, begin)
    last = user_pairs[1:]
    two = last - user_pairs[:-1] >= 2
    cut = end.copy()
    cut[two] = pair_event[last[two] - 2]
    return cut


def describe(split_by: str, has_clock: bool, time_cuts: tuple[int, int] | None, n_late: int) -> tuple[bool, str]:
    """(leaky, one sentence): ``n_late`` counts the training events later than the earliest test target."""
    if split_by == "user_time" and time_cuts is not None:
        first, second = map(date, time_cuts)
        return False, f"user-disjoint and cut in time: training before {first}, validation before {second}, test after"
    kind = {"user_disjoint": "user-disjoint", "column": "user-disjoint by the log's own column"}.get(
        split_by, "leave-one-out"
    )
    if not has_clock:
        # a published split may well be one in time, but nothing here can show it
        unknown = "whether the test is later than the training is not known"
        return False, f"{kind}; order only: {unknown if split_by == 'column' else 'no time cut possible'}"
    if split_by == "leave_one_out" or n_late:
        return True, f"{kind}, leaky: {n_late:,} training events are later than the earliest test target"
    return False, f"{kind}; no training event is later than the earliest test target"


def date(microseconds: int) -> str:
    """A time as people read it, UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M:%S UTC")


def require_episodes(prepared: Prepared, why: str) -> None:
    """DataError when a split has no user with an episode, naming the longest user; ``why`` ends the sentence."""
    for code, name in enumerate(("train", "val", "test")):
        ranges = prepared.episodes(name)
        if len(ranges.user):
            continue
        begin, end = prepared.user_pairs[:-1], prepared.user_pairs[1:]
        users = np.flatnonzero(prepared.user_split == (0 if prepared.split_by == "leave_one_out" else code))
        if name == "train":
            begin, end = prepared.train_pairs
        elif prepared.split_by == "leave_one_out" and name == "val":
            end = end - 1  # the last pair is the test query
        pairs = (end - begin)[users]
        longest = int(pairs.max(initial=0))
        k, q = ranges.n_support, ranges.n_query
        if longest == 0:
            held = "no user with a pair is left there"
            fix = "change dataset.split.fractions or time_quantiles, or give a longer log"
            if prepared.split_by == "column":
                fix = "name more of them in the split column, or relax the filter that dropped them"
                if name == "val":
                    fix += "; where the column names none, raise the second of dataset.split.fractions"
        else:
            user = prepared.user_ids[users[int(pairs.argmax())]]
            held = f"the longest of {len(users)} users there has {longest} (user {user})"
            fix = (
                f"say dataset.episodes.n_support={longest - q} or less"
                if longest > q
                else (
                    f"K+Q must not exceed {longest}: lower dataset.episodes.n_support and n_query"
                    if longest > 1
                    else "give a longer log"
                )
            )
        raise DataError(
            "dataset.episodes.n_support",
            k,
            f"no user of split {name} has the {k}+{q} pairs of an episode: {held}{why}",
            fix,
        )
