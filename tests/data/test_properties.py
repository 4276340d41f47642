"""The twelve properties of episodes, over random small logs through the real preparation.

    METAREC_PROPERTY_EXAMPLES=20000 python -m pytest tests/data/test_properties.py     # the long run

Property 12 (the sampler has no memory) is in test_splits.py. Where a property needs a condition, it is said here:

    9   any relabelling of items if the times of a user are distinct; with ties, one that keeps the order of ids, since
        the tie rule goes by them. Users: one that keeps their order, since the split shuffles the sorted ids; any
        under leave_one_out, which assigns nobody, and under column, which assigns by name, if it names validation users.
    10  removing a user shuffles the others anew and takes items out of the vocabulary, so it is stated of what an
        episode is made of: the times and, where both vocabularies know them, the items of every user who stays in the
        split. Not of user_time, whose cuts are quantiles of all events.
    9, 10 under sessions.order=shuffled: of items alone, since a user's own name decides his permutations; 11: of future
        events in a session of their own, since a session that grows is permuted anew.
    11  of training windows: a validation or test episode is by definition made of the user's last pairs. The future
        events are of a user whom the split knows, since a new user shuffles the others anew.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference.prepare_reference import Row
from reference.small_logs import SPLIT, logs, prepare_or_none, quick, shape, windows

from metarec.data import guards, pipeline, splits, sql, store
from metarec.data.episodes import EpisodeRanges
from metarec.data.spec import Sessions
from metarec.data.store import Prepared

SHUFFLED = Sessions(order="shuffled")
ORDERS = st.sampled_from([Sessions(), SHUFFLED])
SPLIT_RULES = ["user_time", "user_disjoint", "leave_one_out", "column"]
Change = Callable[[Any], Any]


def check_single(prepared: Prepared, rows: list[Row], k: int, q: int) -> None:
    """Properties 1 to 7, from the arrays and the log alone."""
    log: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        log.setdefault((str(row.user), row.time), []).append(str(row.item))
    owned: dict[str, list[str]] = {}
    for row in rows:
        owned.setdefault(str(row.user), []).append(str(row.item))
    users_of = {}
    for split in store.SPLITS:
        ranges = prepared.episodes(split)
        n_query = 1 if prepared.split_by == "leave_one_out" and split != "train" else q
        users_of[split] = set(ranges.user.tolist())
        for user, first, n_windows in zip(ranges.user, ranges.first_pair, ranges.n_windows, strict=True):
            for start in range(first, first + n_windows * ranges.stride, ranges.stride):
                pairs = np.arange(start, start + k + n_query)
                assert (ranges.n_support, ranges.n_query) == (k, n_query)
                assert prepared.user_pairs[user] <= start  # 1: K + Q pairs, all of the user
                assert pairs[-1] < prepared.user_pairs[user + 1]
                targets = prepared.pair_event[pairs]
                assert targets[:k].max() < targets[k:].min()  # 2: the row of an event is its place in the total order
                assert (np.diff(prepared.time[targets]) >= 0).all()
                assert len(set(targets.tolist())) == k + n_query  # 3
                for begin, target in zip(prepared.pair_begin[pairs], targets, strict=True):
                    assert (prepared.time[begin:target] <= prepared.time[target]).all()
                    assert begin < target
    if prepared.split_by != "leave_one_out":
        a, b, c = (users_of[split] for split in store.SPLITS)
        assert not a & b | a & c | b & c  # 4
    training_items = set()
    for number, user in enumerate(prepared.user_ids.tolist()):
        first, last = prepared.session_offsets[prepared.user_sessions[[number, number + 1]]]
        for event in range(first, last):
            time, item = int(prepared.time[event]), int(prepared.item[event])
            assert item == -1 or 1 <= item <= prepared.n_items  # 6: never 0
            held = log[user, time] if prepared.order == "real" else owned[user]
            assert item == -1 or prepared.item_ids[item - 1] in held
            if event < prepared.train_event_end[number]:
                training_items.add(prepared.item_ids[item - 1])
                assert item > 0
            if prepared.split_by == "user_time":  # 5
                first_cut, second_cut = prepared.time_cuts or (0, 0)
                low, high = [(-(2**63), first_cut), (first_cut, second_cut), (second_cut, 2**63)][
                    prepared.user_split[number]
                ]
                assert low <= time < high
    assert sorted(training_items) == sorted(prepared.item_ids.tolist())  # 6
    steps = prepared.funnel  # 7
    assert steps[0]["rows"] == len(rows)
    assert len(rows) - sum(step["dropped"] for step in steps) == len(prepared.item) == steps[-1]["rows"]
    assert all(step["dropped"] >= 0 for step in steps)
    assert sum(prepared.counts["pairs"].values()) <= len(prepared.pair_event)
    if prepared.split_by != "leave_one_out":
        assert sum(prepared.counts["pairs"].values()) == len(prepared.pair_event)


@quick
@given(
    logs(),
    st.sampled_from(SPLIT_RULES),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from(["drop", "keep"]),
    ORDERS,
)
def test_1_to_7_single_log(rows: list[Row], by: str, k: int, q: int, duplicates: str, sessions: Sessions) -> None:
    prepared = prepare_or_none(rows, shape(k, q, by=by, duplicates=duplicates, sessions=sessions))
    assume(prepared is not None)
    assert prepared is not None
    check_single(prepared, rows, k, q)


def assert_equal_arrays(one: Prepared, two: Prepared) -> None:
    for name in store.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for split in store.SPLITS:
        assert one.episodes(split).sha256 == two.episodes(split).sha256


@quick
@given(logs(), st.sampled_from(SPLIT_RULES), st.randoms(use_true_random=False), ORDERS)
def test_8_order_of_rows(rows: list[Row], by: str, random: Any, sessions: Sessions) -> None:
    one = prepare_or_none(rows, shape(by=by, sessions=sessions))
    assume(one is not None)
    shuffled = list(rows)
    random.shuffle(shuffled)
    two = prepare_or_none(shuffled, shape(by=by, sessions=sessions))
    assert one is not None
    assert two is not None
    assert_equal_arrays(one, two)
    assert one.item_ids.tolist() == two.item_ids.tolist()
    assert one.user_ids.tolist() == two.user_ids.tolist()


def relabelled(rows: list[Row], user: Change, item: Change) -> list[Row]:
    changed = deepcopy(rows)
    for row in changed:
        row.user, row.item = user(row.user), item(row.item)
    return changed


@quick
@given(logs(text_ids=False), st.sampled_from(SPLIT_RULES), ORDERS)
def test_9_relabelling_that_keeps_the_order(rows: list[Row], by: str, sessions: Sessions) -> None:
    one = prepare_or_none(rows, shape(by=by, sessions=sessions))
    assume(one is not None)
    other = relabelled(rows, lambda u: f"user {u + 2000}" if sessions.order == "real" else u, lambda i: i * 7 - 50)
    two = prepare_or_none(other, shape(by=by, sessions=sessions))
    assert one is not None
    assert two is not None
    assert_equal_arrays(one, two)
    assert two.item_ids.tolist() == [str(int(item) * 7 - 50) for item in one.item_ids]


@quick
@given(logs(ties=False, text_ids=False), st.sampled_from(SPLIT_RULES), st.permutations([5, 10, 15, 20, 25, 30]), ORDERS)
def test_9_any_relabelling_of_items_at_distinct_times(
    rows: list[Row], by: str, to: list[int], sessions: Sessions
) -> None:
    one = prepare_or_none(rows, shape(by=by, sessions=sessions))
    assume(one is not None)
    users = {user: user for user in {row.user for row in rows}}
    nobody_drawn = by == "leave_one_out" or (by == "column" and {row.split for row in rows} - {"train", "test"})
    if nobody_drawn and sessions.order == "real":
        users = dict(zip(sorted(users), sorted(users, key=lambda user: user * 7 % 13), strict=True))
    other = relabelled(rows, lambda u: users[u], lambda i: to[i // 5 - 1])
    two = prepare_or_none(other, shape(by=by, sessions=sessions))
    assert one is not None
    assert two is not None

    def renamed(item: str | None) -> str | None:
        return None if item is None else str(to[int(item) // 5 - 1])

    for split in store.SPLITS:
        expected = {
            str(users[int(user)]): [
                [(tuple(map(renamed, x)), renamed(y), t) for x, y, t in window] for window in of_user
            ]
            for user, of_user in windows(one, split).items()
        }
        assert windows(two, split) == expected


def same_where_both_know(one: Any, two: Any) -> bool:
    """Windows of equal times whose items agree wherever both vocabularies hold them."""
    if len(one) != len(two):
        return False
    for pair, other in zip(one, two, strict=True):
        items, others = [*pair[0], pair[1]], [*other[0], other[1]]
        if len(items) != len(others) or pair[2] != other[2]:
            return False
        if any(a != b for a, b in zip(items, others, strict=True) if a is not None and b is not None):
            return False
    return True


@quick
@given(logs(), st.sampled_from(["user_disjoint", "leave_one_out", "column"]), st.data(), ORDERS)
def test_10_removing_a_user(rows: list[Row], by: str, data: st.DataObject, sessions: Sessions) -> None:
    one = prepare_or_none(rows, shape(1, 1, by=by, sessions=sessions))
    assume(one is not None)
    assert one is not None
    gone = data.draw(st.sampled_from(one.user_ids.tolist()))
    others = [row for row in rows if str(row.user) != gone]
    two = prepare_or_none(others, shape(1, 1, by=by, sessions=sessions))
    assume(two is not None)
    assert two is not None
    # where nobody is drawn, nobody moves
    all_stay = by == "leave_one_out" or (by == "column" and any((row.split or "").startswith("val") for row in others))
    compared = 0
    for split in store.SPLITS:
        before, after = windows(one, split), windows(two, split)
        for user in before.keys() & after.keys():
            compared += 1
            assert len(before[user]) == len(after[user])
            assert all(same_where_both_know(*both) for both in zip(before[user], after[user], strict=True))
        if all_stay:
            assert before.keys() - {gone} == after.keys()
    assert compared or not all_stay


@quick
@given(logs(), st.sampled_from([*((by, Sessions()) for by in SPLIT_RULES[:2]), ("user_disjoint", SHUFFLED)]), st.data())
def test_11_appending_future_events(rows: list[Row], rules: tuple[str, Sessions], data: st.DataObject) -> None:
    by, sessions = rules
    one = prepare_or_none(rows, shape(1, 1, by=by, sessions=sessions))
    assume(one is not None)
    assert one is not None
    user = data.draw(st.sampled_from(one.user_ids.tolist()))
    user = next(row.user for row in rows if str(row.user) == user)
    last = max(row.time for row in rows)
    item = type(rows[0].item)
    pause = 0 if sessions.order == "real" else 31 * 60_000_000  # a session of their own
    future = [Row(user, item(n), last + pause + n * 60_000_000, 0, 1) for n in (5, 10, 15)]
    two = prepare_or_none([*rows, *future], shape(1, 1, by=by, sessions=sessions))
    assume(two is not None)
    assert two is not None
    before, after = windows(one, "train"), windows(two, "train")
    assert before.keys() <= after.keys()
    for name, of_user in before.items():
        assert all(same_where_both_know(*both) for both in zip(of_user, after[name], strict=False))
        assert len(of_user) <= len(after[name])
    if by == "user_disjoint":
        for split in store.SPLITS:
            before, after = windows(one, split), windows(two, split)
            assert before.keys() - {str(user)} == after.keys() - {str(user)}
            for name in before.keys() - {str(user)}:
                assert len(before[name]) == len(after[name])
                assert all(same_where_both_know(*both) for both in zip(before[name], after[name], strict=True))


# --- each property fails on a planted fault --------------------------------------------------------------------------


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
        episodes = store.episodes_of
        monkeypatch.setattr(
            store, "episodes_of", lambda p, split, k: episodes(p, "val" if split == "test" else split, k)
        )
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
    for by in SPLIT_RULES:
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
