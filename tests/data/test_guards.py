"""Each guard against a fault planted in sound arrays: it must fire, and say where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.prepare_reference import Row
from reference.small_logs import prepare_rows, shape

from metarec.data import guards, store
from metarec.data.store import Prepared
from metarec.errors import DataError


def rows_of_users() -> list[Row]:
    """9 users of 24 events at the same times; five items, one of them late and one of a single user."""
    rows = []
    for user in range(9):
        for n in range(24):
            time = 1_600_000_000 + n * 60 + (n // 4) * 1_801
            rows.append(Row(f"u{user}", f"i{(n * (user % 3 + 1)) % 5}", time * 1_000_000, n, n // 4, len(rows)))
    return rows


@pytest.fixture(scope="module")
def disjoint() -> Prepared:
    return prepare_rows(rows_of_users(), shape(by="user_disjoint"))


@pytest.fixture(scope="module")
def timed() -> Prepared:
    return prepare_rows(rows_of_users(), shape(by="user_time"))


def planted(prepared: Prepared, **changes: Any) -> Prepared:
    """``prepared`` with other fields; a function is applied to a copy of the array."""
    values = {}
    for name, change in changes.items():
        if callable(change):
            array = np.array(getattr(prepared, name))
            change(array)
            values[name] = array
        else:
            values[name] = change
    other = replace(prepared, **values)
    for lazy in ("user_ids", "item_ids"):  # the directory of a test is gone
        other.__dict__[lazy] = getattr(prepared, lazy)
    return other


def fires(prepared: Prepared, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        guards.check(prepared)
    for text in said:
        assert text in str(caught.value)


def put(index: int, value: int) -> Any:
    def change(array: np.ndarray) -> None:
        array[index] = value

    return change


def test_sound_arrays_pass(disjoint: Prepared, timed: Prepared) -> None:
    guards.check(disjoint)
    guards.check(timed)


def test_small_blocks_find_the_same(disjoint: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.blocks
    monkeypatch.setattr(guards, "blocks", lambda array, size=3, overlap=0: original(array, size, overlap))
    guards.check(disjoint)
    for event in range(1, len(disjoint.item)):
        first_of_user = event in disjoint.session_offsets[disjoint.user_sessions]
        earlier = planted(disjoint, time=put(event, int(disjoint.time[event - 1]) - 1))
        if not first_of_user:
            fires(earlier, "guard time", f"event row {event},")


def test_user_twice(disjoint: Prepared) -> None:
    other = planted(disjoint)
    other.__dict__["user_ids"] = np.array(["u0", *disjoint.user_ids[:-1]])
    fires(other, "guard split", "user u0", "possibly in two splits")


def test_user_of_another_split_in_an_episode(disjoint: Prepared) -> None:
    ranges = disjoint.episodes("test")
    user = int(np.flatnonzero(disjoint.user_split == 0)[0])
    foreign = replace(ranges, user=np.array([user]), first_pair=disjoint.user_pairs[[user]], n_windows=np.array([1]))
    with pytest.raises(
        DataError, match=f"user {disjoint.user_ids[user]}: its test episodes are not pairs of this user"
    ):
        guards.check_episodes(disjoint, "test", foreign)
    with pytest.raises(DataError, match="a user has two rows"):
        guards.check_episodes(disjoint, "test", replace(ranges, user=np.repeat(ranges.user[:1], len(ranges.user))))
    beyond = replace(ranges, first_pair=ranges.first_pair + 1)
    with pytest.raises(DataError, match="are not pairs of this user and split"):
        guards.check_episodes(disjoint, "test", beyond)


def test_support_not_before_query(disjoint: Prepared) -> None:
    swap = np.array(disjoint.pair_event)
    swap[[3, 4]] = swap[[4, 3]]
    fires(planted(disjoint, pair_event=swap), "pair row")
    ranges = disjoint.episodes("train")
    with pytest.raises(DataError, match="support not strictly before query, or an event in two roles"):
        guards.check_episodes(planted(disjoint, pair_event=swap[np.arange(len(swap)) // 2 * 2]), "train", ranges)


def test_event_in_two_roles(disjoint: Prepared) -> None:
    """The same target twice: consecutive pairs must rise strictly."""
    same = planted(disjoint, pair_event=put(4, int(disjoint.pair_event[3])))
    fires(same, "pair row 4", "event row")


def test_pair_outside_its_session(disjoint: Prepared) -> None:
    fires(planted(disjoint, pair_begin=put(5, int(disjoint.pair_begin[5]) - 1)), "pair row 5", "inside one session")
    fires(planted(disjoint, pair_begin=put(2, int(disjoint.pair_event[2]))), "pair row 2", "inside one session")
    fires(planted(disjoint, pair_event=put(-1, len(disjoint.item))), "its target is no event")


def test_time_falls(disjoint: Prepared) -> None:
    fires(planted(disjoint, time=put(7, 0)), "guard time", "event row 7, user u0", "earlier than the event before it")


def test_event_twice(disjoint: Prepared) -> None:
    # events 0, 1, 2 of one user at one time; 0 and 2 of one item, so that no two neighbours are alike
    def same_time(time: np.ndarray) -> None:
        time[1:3] = time[0]

    twice = planted(disjoint, time=same_time, item=put(2, int(disjoint.item[0])))
    fires(twice, "guard repeats", "event row 2, user u0", "repeats event row 0")
    guards.check_time(replace(twice, repeated_events=True))


def test_event_twice_over_a_block_border(disjoint: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.blocks
    monkeypatch.setattr(guards, "blocks", lambda array, size=2, overlap=0: original(array, size, overlap))

    def same_time(time: np.ndarray) -> None:
        time[1:6] = time[0]

    fires(planted(disjoint, time=same_time, item=put(5, int(disjoint.item[0]))), "event row 5", "repeats event row 0")


def test_vocabulary(disjoint: Prepared, timed: Prepared) -> None:
    for prepared in (disjoint, timed):
        one_more = planted(prepared, n_items=prepared.n_items + 1)
        one_more.__dict__["item_ids"] = np.array([*prepared.item_ids, "late"])
        said = ["first seen after T1"] if prepared is timed else []
        fires(one_more, "item late", "is in the vocabulary and in no training event", *said)
        guards.check_items(replace_given(one_more))
    event = int(disjoint.session_offsets[disjoint.user_sessions[np.flatnonzero(disjoint.user_split == 0)[0]]])
    fires(planted(disjoint, item=put(event, -1)), f"event row {event}", "training event is not in the vocabulary")
    fires(planted(disjoint, item=put(event, 0)), "item index 0")
    fires(planted(disjoint, item=put(event, disjoint.n_items + 1)), f"item index {disjoint.n_items + 1}")


def replace_given(prepared: Prepared) -> Prepared:
    """As if the vocabulary came with episode tables."""
    return planted(prepared, given_vocabulary=True)


@pytest.mark.parametrize(("code", "last", "cut", "beyond"), [(0, 1, 0, 0), (1, 1, 1, 0), (1, 0, 0, -1), (2, 0, 1, -1)])
def test_time_cut(timed: Prepared, code: int, last: int, cut: int, beyond: int) -> None:
    """The first (last) event of a user moved to the wrong side of a cut, by one microsecond."""
    assert timed.time_cuts is not None
    user = int(np.flatnonzero(timed.user_split == code)[0])
    event = int(timed.session_offsets[timed.user_sessions[user + last]]) - last
    moved = planted(timed, time=put(event, timed.time_cuts[cut] + beyond))
    fires(moved, "guard time cut", f"user {timed.user_ids[user]}", f"of split {store.SPLITS[code]}", "the cuts are")


def test_training_range(disjoint: Prepared) -> None:
    user = int(np.flatnonzero(disjoint.user_split == 2)[0])
    leaked = planted(disjoint, train_event_end=put(user, int(disjoint.train_event_end[user]) + 1))
    fires(leaked, f"user {disjoint.user_ids[user]}", "events for training")
    fires(planted(disjoint, user_split=put(user, -1)), f"user {disjoint.user_ids[user]}", "split -1 does not fit")


def test_layout(disjoint: Prepared) -> None:
    fires(planted(disjoint, session_offsets=put(1, 1)), "session_offsets row 0", "fewer than 2")
    fires(planted(disjoint, user_pairs=put(-1, 3)), "user_pairs")
    fires(planted(disjoint, time=np.array(disjoint.time[:-1])), "time", "entries instead of")
