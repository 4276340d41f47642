"""The twelve properties of episodes, over random small logs through the real preparation.

    METAREC_PROPERTY_EXAMPLES=20000 python -m pytest tests/data/test_properties.py     # the long run

A log is prepared once for properties 1 to 7 and once more for each change: its rows in another order (8) under other names
(9), a user less (10), events of the future (11). Where a property needs a condition, it is said here:

    9   any relabelling of items if the times of a user are distinct; with ties, one that keeps the order of ids, since
        the tie rule goes by them. Users: one that keeps their order, since the split shuffles the sorted ids; any
        under leave_one_out, which assigns nobody, and under column, which assigns by name, if it names validation users.
    10  removing a user shuffles the others anew and takes items out of the vocabulary, so it is stated of what an
        episode is made of: the times and, where both vocabularies know them, the items of every user who stays in the
        split. Not of user_time, whose cuts are quantiles of all events.
    9, 10 under sessions.order=shuffled: of items alone, since a user's own name decides his permutations; 11: of future
        events in a session of their own, since a session that grows is permuted anew, and of the rules that do not cut
        inside of a user's events, since a cut that moves permutes a session anew.
    11  of training windows: a validation or test episode is by definition made of the user's last pairs. The future
        events are of a user whom the split knows, since a new user shuffles the others anew.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.episode_properties import (
    check_any_relabelling,
    check_future_events,
    check_no_history,
    check_relabelling_that_keeps_the_order,
    check_removal,
    check_single,
)
from reference.small_logs import ASKED, logs, prepare_or_none, properties, shape

from metarec.data.spec import DatasetSpec, Sessions

ORDERS = st.sampled_from([Sessions(), Sessions(order="shuffled")])
SPLIT_RULES = ["user_time", "user_disjoint", "user_disjoint", "leave_one_out", "column", "column"]
# 8 to 11 prepare the log once more each: in the suite one log in three is asked for them
ALL_OF_THEM = st.sampled_from([True, False, False]) if ASKED is None else st.just(True)
CHECKED: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """How many examples each property was looked at in goes into the file METAREC_PROPERTY_COUNTS, where one is given."""
    CHECKED.clear()
    yield
    if path := os.environ.get("METAREC_PROPERTY_COUNTS"):
        Path(path).write_text(json.dumps(CHECKED))


@properties
@given(
    st.data(), st.booleans(), st.sampled_from(SPLIT_RULES), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from(["drop", "keep"]), ORDERS, st.randoms(use_true_random=False),
    st.permutations([5, 10, 15, 20, 25, 30]), ALL_OF_THEM,
)  # fmt: skip
def test_1_to_11_of_one_log(
    data: st.DataObject, ties: bool, by: str, k: int, q: int, duplicates: str, sessions: Sessions, random: Any,
    to: list[int], changed: bool,
) -> None:  # fmt: skip
    rows = data.draw(logs(ties=ties))

    def spec() -> DatasetSpec:
        return shape(k, q, by=by, duplicates=duplicates, sessions=sessions)

    one = prepare_or_none(rows, spec())
    assume(one is not None)
    assert one is not None
    names = st.sampled_from(one.user_ids.tolist())
    gone, grown = data.draw(names), data.draw(names)
    check_single(one, rows, k, q)
    CHECKED["1 to 7"] += 1
    if not changed:
        return
    other = list(rows)
    random.shuffle(other)  # 8
    if ties:  # 9
        check_relabelling_that_keeps_the_order(one, other, spec())
    else:
        check_any_relabelling(one, other, spec(), to)
    CHECKED["8 and 9"] += 1
    if by != "user_time":
        CHECKED["10"] += check_removal(one, rows, spec(), gone)
    if sessions.order == "real" or by in ("user_disjoint", "column"):
        CHECKED["11"] += check_future_events(one, rows, spec(), grown)


@settings(properties, max_examples=int(ASKED or 500))
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 60),
    st.sampled_from(["user", "window"]), st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.data(),
)  # fmt: skip
def test_12_no_history(
    lengths: list[int], stride: int, n_tasks: int, sampler: str, seed: int, step: int, data: st.DataObject
) -> None:
    before = data.draw(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40)), max_size=4))
    check_no_history(np.array(lengths), stride, n_tasks, sampler, (seed, step), before)
    CHECKED["12"] += 1
