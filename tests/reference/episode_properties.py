"""What is looked at in the twelve properties of episodes: of prepared data, and of two preparations.

A check raises AssertionError where the property is broken. tests/data/test_properties.py draws the logs,
tests/data/test_properties_planted.py breaks the code.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any
from zlib import crc32

import numpy as np
from reference.prepare_reference import Row
from reference.small_logs import prepare_or_none, windows

from metarec.data import episodes, store
from metarec.data.episodes import EpisodeRanges
from metarec.data.spec import DatasetSpec
from metarec.data.store import Prepared
from metarec.pretrain import Pieces

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


def assert_equal_arrays(one: Prepared, two: Prepared) -> None:
    for name in store.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for split in store.SPLITS:
        assert one.episodes(split).sha256 == two.episodes(split).sha256


def relabelled(rows: list[Row], user: Change, item: Change) -> list[Row]:
    changed = deepcopy(rows)
    for row in changed:
        row.user, row.item = user(row.user), item(row.item)
    return changed


def prepared_again(rows: list[Row], spec: DatasetSpec) -> Prepared:
    """Of a log that is a changed one of which something is left."""
    prepared = prepare_or_none(rows, spec)
    assert prepared is not None
    return prepared


def behind_a_zero(name: Any) -> bool:
    """Whether an id is text with a leading zero: in such a log all are, and they are ordered as text, not as numbers."""
    return isinstance(name, str) and len(name) > 1 and name.startswith("0")


def spelt(like: Any, number: int) -> Any:
    """An id spelt as `like` is: a number, text, or text behind a zero."""
    return number if isinstance(like, int) else f"{'0' * behind_a_zero(like)}{number}"


def kept_order(name: Any, times: int, plus: int) -> Any:
    """Another id, in the same place among its like."""
    return f"k{name}" if behind_a_zero(name) else spelt(name, int(name) * times + plus)


def check_relabelling_that_keeps_the_order(one: Prepared, rows: list[Row], spec: DatasetSpec) -> None:
    """Property 9 whatever the times."""
    real = spec.sessions.order == "real"
    other = relabelled(
        rows,
        lambda user: f"user {kept_order(user, 1, 2_000)}" if real else user,
        lambda item: kept_order(item, 7, -50),
    )
    two = prepared_again(other, spec)
    assert_equal_arrays(one, two)
    to = {str(row.item): str(kept_order(row.item, 7, -50)) for row in rows}
    assert two.item_ids.tolist() == [to[item] for item in one.item_ids]


def check_any_relabelling(one: Prepared, rows: list[Row], spec: DatasetSpec, to: list[int]) -> None:
    """Property 9 of a log in which the times of a user are distinct."""
    by = spec.split.by
    users = {str(row.user): row.user for row in rows}
    nobody_drawn = by == "leave_one_out" or (by == "column" and {row.split for row in rows} - {"train", "test"})
    if nobody_drawn and spec.sessions.order == "real":
        mixed = sorted(users.values(), key=lambda user: crc32(str(user).encode()))
        users = dict(zip(sorted(users), mixed, strict=True))
    items = {str(row.item): spelt(row.item, to[int(row.item) // 5 - 1]) for row in rows}
    two = prepared_again(relabelled(rows, lambda u: users[str(u)], lambda i: items[str(i)]), spec)

    def renamed(item: str | None) -> str | None:
        return None if item is None else str(items[item])

    for split in store.SPLITS:
        expected = {
            str(users[user]): [[(tuple(map(renamed, x)), renamed(y), t) for x, y, t in window] for window in of_user]
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


def check_removal(one: Prepared, rows: list[Row], spec: DatasetSpec, gone: str) -> bool:
    """Property 10: the episodes of all others are the same; whether anything is left to compare."""
    others = [row for row in rows if str(row.user) != gone]
    two = prepare_or_none(others, spec)
    if two is None:
        return False
    by = spec.split.by
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
    return compared > 0


def check_future_events(one: Prepared, rows: list[Row], spec: DatasetSpec, user: str) -> bool:
    """Property 11: three more events of a user behind all others change no training window, and of nobody else anything;
    whether there is something to compare."""
    last, its = max(row.time for row in rows), next(row for row in rows if str(row.user) == user)
    pause = 0 if spec.sessions.order == "real" else 31 * 60_000_000  # a session of their own
    future = [
        Row(its.user, spelt(its.item, n), last + pause + n * 60_000_000, 0, 1, split=its.split) for n in (5, 10, 15)
    ]
    two = prepare_or_none([*rows, *future], spec)
    if two is None:
        return False
    before, after = windows(one, "train"), windows(two, "train")
    assert before.keys() <= after.keys()
    for name, of_user in before.items():
        assert all(same_where_both_know(*both) for both in zip(of_user, after[name], strict=False))
        assert len(of_user) <= len(after[name])
    if spec.split.by != "user_time":  # whose cuts go by all events
        for split in store.SPLITS:
            before, after = windows(one, split), windows(two, split)
            assert before.keys() - {user} == after.keys() - {user}
            for name in before.keys() - {user}:
                assert len(before[name]) == len(after[name])
                assert all(same_where_both_know(*both) for both in zip(before[name], after[name], strict=True))
    return True


def check_no_history(
    length: np.ndarray, stride: int, n_tasks: int, sampler: str, at: tuple[int, int], before: list[tuple[int, int]]
) -> None:
    """Property 12: the episodes of (seed, step) = `at`, and the pieces of a step of pretraining, are the same whatever was
    drawn before."""
    seed, step = at
    users = np.arange(len(length))
    ranges = EpisodeRanges(users, users * 1_000, length, stride, 1, 1)

    def fresh() -> Pieces:
        return Pieces(users * 1_000, users * 1_000 + length, users * 1_000, 7, seed)

    def drawn(seed: int, step: int) -> list[list[int]]:
        return [p.tolist() for p in episodes.sample(ranges, seed=seed, step=step, n_tasks=n_tasks, sampler=sampler)]

    first, pieces, used = drawn(seed, step), fresh().at(step).tolist(), fresh()
    for other, elsewhere in before:
        drawn(other, elsewhere)
        used.at(step + elsewhere % (2 * used.steps_per_epoch))
        np.random.seed(elsewhere % 2**32)  # noqa: NPY002 -- the generator that everybody shares
    assert drawn(seed, step) == first
    assert used.at(step).tolist() == pieces
