"""The twelve properties of episodes, over random small logs through the real preparation.

    METAREC_PROPERTY_EXAMPLES=20000 python -m pytest tests/data/test_properties.py     # the long run

Properties 1 to 9 are of one log: it is prepared once for 1 to 7, and once more with its rows in another order (8) under
other names (9), since a preparation takes 60 ms. Where a property needs a condition, it is said here:

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

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from reference.episode_properties import (
    check_any_relabelling,
    check_no_history,
    check_relabelling_that_keeps_the_order,
    check_single,
    same_where_both_know,
)
from reference.prepare_reference import Row
from reference.small_logs import logs, prepare_or_none, properties, shape, windows

from metarec.data import store
from metarec.data.spec import DatasetSpec, Sessions

SHUFFLED = Sessions(order="shuffled")
ORDERS = st.sampled_from([Sessions(), SHUFFLED])
SPLIT_RULES = ["user_time", "user_disjoint", "leave_one_out", "column"]


@properties
@given(
    st.data(), st.booleans(), st.sampled_from(SPLIT_RULES), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from(["drop", "keep"]), ORDERS, st.randoms(use_true_random=False),
    st.permutations([5, 10, 15, 20, 25, 30]),
)  # fmt: skip
def test_1_to_9_one_log(
    data: st.DataObject, ties: bool, by: str, k: int, q: int, duplicates: str, sessions: Sessions, random: Any,
    to: list[int],
) -> None:  # fmt: skip
    rows = data.draw(logs(ties=ties))

    def spec() -> DatasetSpec:
        return shape(k, q, by=by, duplicates=duplicates, sessions=sessions)

    one = prepare_or_none(rows, spec())
    assume(one is not None)
    assert one is not None
    check_single(one, rows, k, q)
    other = list(rows)
    random.shuffle(other)  # 8
    if ties:  # 9
        check_relabelling_that_keeps_the_order(one, other, spec())
    else:
        check_any_relabelling(one, other, spec(), to)


@properties
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


@properties
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


@properties
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 60),
    st.sampled_from(["user", "window"]), st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.data(),
)  # fmt: skip
def test_12_no_history(
    lengths: list[int], stride: int, n_tasks: int, sampler: str, seed: int, step: int, data: st.DataObject
) -> None:
    before = data.draw(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40)), max_size=4))
    check_no_history(np.array(lengths), stride, n_tasks, sampler, (seed, step), before)
