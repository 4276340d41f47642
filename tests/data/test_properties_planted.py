"""The checks of test_properties.py fail where the fault that each is there for is planted, and hold where none is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.episode_properties import (
    assert_equal_arrays,
    check_no_history,
    check_single,
    relabelled,
    same_where_both_know,
)
from reference.prepare_reference import Row
from reference.small_logs import SPLIT, prepare_or_none, shape, windows

from metarec.data import episodes, guards, pipeline, splits, sql, store
from metarec.data.episodes import EpisodeRanges
from metarec.pretrain import Pieces


def fixed_log() -> list[Row]:
    """9 users of 24 events, five items in turn, all at the same times; one event of each user ties with the next."""
    rows = []
    for user in range(9):
        for n in range(24):
            time = 1_600_000_000 + (n - (n % 4 == 2)) * 60 + (n // 4) * 1_801
            item = (n * (user % 3 + 1)) % 5 * 5 + 5
            rows.append(Row(user, item, time * 1_000_000, n, n // 4, len(rows), SPLIT[user]))
    return rows


def test_order_of_rows_matters_when_ties_go_by_row() -> None:
    """The check of property 8 can fail: under ties=row it does."""
    rows = fixed_log()
    one = prepare_or_none(rows, shape(ties="row"))
    two = prepare_or_none(rows[::-1], shape(ties="row"))
    assert one is not None
    assert two is not None
    with pytest.raises(AssertionError):
        assert_equal_arrays(one, two)


@pytest.mark.parametrize("fault", ["two splits", "no cut", "vocabulary of all", "uncounted drop", "overlap"])
def test_properties_1_to_7_find_planted_faults(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(guards, "check", lambda prepared: None)  # the guards would find most of them first
    by = "user_time" if fault == "no cut" else "user_disjoint"
    if fault == "two splits":
        of = store.episodes_of
        monkeypatch.setattr(store, "episodes_of", lambda p, split, k: of(p, "val" if split == "test" else split, k))
    if fault == "no cut":
        monkeypatch.setattr(sql, "in_time", lambda table, columns, *cuts: f"SELECT {columns}, s FROM {table}")
    if fault == "vocabulary of all":
        index_items = pipeline.index_items

        def index_all(root: Path, codes: Path, n_codes: int, whole: bool) -> tuple[np.ndarray, int]:
            index_items(root, codes, n_codes, whole)
            return np.arange(n_codes), n_codes

        monkeypatch.setattr(pipeline, "index_items", index_all)
    if fault == "uncounted drop":
        in_order = sql.in_order
        monkeypatch.setattr(sql, "in_order", lambda table, order: in_order(f"{table} WHERE i <> 3", order))
    if fault == "overlap":
        last_pairs = store.last_pairs

        def one_early(user: np.ndarray, begin: np.ndarray, end: np.ndarray, **options: int) -> EpisodeRanges:
            return replace(last_pairs(user, begin, end, **options), n_support=options["n_support"] - 1)

        monkeypatch.setattr(store, "last_pairs", one_early)
    rows = fixed_log()
    rows.append(Row(last_user("val", rows), 999, max(row.time for row in rows) + 60_000_000, 24, 5, len(rows)))
    prepared = prepare_or_none(rows, shape(1, 1, by=by))
    assert prepared is not None
    with pytest.raises((AssertionError, IndexError)):
        check_single(prepared, rows, 1, 1)


def last_user(split: str, rows: list[Row]) -> int:
    """A user of ``split`` under user_disjoint."""
    code = splits.assign_users(len({row.user for row in rows}), [0.4, 0.3, 0.3], shape().split.seed)
    return int(np.flatnonzero(code == store.SPLITS.index(split))[-1])


def test_properties_hold_without_a_fault() -> None:
    for by in ("user_time", "user_disjoint", "leave_one_out", "column"):
        prepared = prepare_or_none(fixed_log(), shape(1, 1, by=by))
        assert prepared is not None
        check_single(prepared, fixed_log(), 1, 1)


def test_removal_is_noticed_when_episodes_depend_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of property 10 can fail: with sessions cut where another user pauses."""
    one = prepare_or_none(fixed_log(), shape(1, 1, by="leave_one_out"))
    monkeypatch.setattr(pipeline.splits, "session_rule", lambda spec, has_clock: "user")
    two = prepare_or_none([row for row in fixed_log() if row.user], shape(1, 1, by="leave_one_out"))
    assert one is not None
    assert two is not None
    before, after = windows(one, "train")["3"], windows(two, "train")["3"]
    assert not all(same_where_both_know(*both) for both in zip(before, after, strict=False))


def test_relabelling_is_noticed_when_names_decide() -> None:
    """The check of property 9 can fail: at equal times the item's name decides, and a relabelling may turn it round."""
    to = {5 * n: 30 - 5 * n for n in range(1, 6)}
    one = prepare_or_none(fixed_log(), shape(1, 1, by="user_disjoint"))
    two = prepare_or_none(relabelled(fixed_log(), lambda u: u, lambda i: to[i]), shape(1, 1, by="user_disjoint"))
    assert one is not None
    assert two is not None
    targets = [str(to[int(pair[1])]) for of_user in windows(one, "train").values() for w in of_user for pair in w]
    assert targets != [pair[1] for of_user in windows(two, "train").values() for w in of_user for pair in w]


def test_future_events_are_noticed_when_windows_count_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of property 11 can fail: with the training windows taken from a user's last pairs."""
    sliding = store.sliding_windows

    def from_the_end(user: np.ndarray, begin: np.ndarray, end: np.ndarray, **options: int) -> EpisodeRanges:
        return sliding(user, np.maximum(begin, end - options["n_support"] - options["n_query"]), end, **options)

    monkeypatch.setattr(store, "sliding_windows", from_the_end)
    rows = fixed_log()
    user, last = last_user("train", rows), max(row.time for row in rows)
    future = [Row(user, item, last + (n + 1) * 60_000_000, 30 + n, 6, 0) for n, item in enumerate((5, 10))]
    one = prepare_or_none(rows, shape(1, 1, by="user_disjoint"))
    two = prepare_or_none([*rows, *future], shape(1, 1, by="user_disjoint"))
    assert one is not None
    assert two is not None
    before, after = windows(one, "train")[str(user)], windows(two, "train")[str(user)]
    assert not all(same_where_both_know(*both) for both in zip(before, after, strict=False))


@pytest.mark.parametrize("of", ["episodes", "pieces"])
def test_history_is_noticed(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """The check of property 12 can fail: with a draw that counts the draws before it, and an order that is kept too long."""
    if of == "episodes":
        made, draw = itertools.count(), episodes.sample

        def counting(*args: Any, **options: Any) -> Any:
            return draw(*args, **options | {"step": options["step"] + next(made)})

        monkeypatch.setattr(episodes, "sample", counting)
    else:
        at = Pieces.at

        def of_the_last_epoch(self: Pieces, step: int) -> np.ndarray:
            if self._epoch >= 0:
                self._epoch = step // self.steps_per_epoch  # as if the order were that of this epoch
            return at(self, step)

        monkeypatch.setattr(Pieces, "at", of_the_last_epoch)
    with pytest.raises(AssertionError):
        check_no_history(np.array([5, 1, 9, 30, 2]), 3, 4, "user", (3, 17), [(4, 18), (5, 25)])
