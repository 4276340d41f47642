"""What is asked: events of the support once, none of them twice in a history, unknown items in place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from reference.baselines_reference import Small, smalls, spelt
from reference.small_logs import quick

from metarec.baselines.asked import Asked
from metarec.ragged import Ragged

EMPTY = Ragged(np.empty(0, np.int64), np.zeros(1, np.int64))


def test_hand_values() -> None:
    """Pairs: a>b, ab>c | d>e, de>f, def>g. The first three support, the last two queries."""
    asked = spelt("", "abc defg", n_support=3, n_query=2).asked
    assert [row.tolist() for row in asked.prefix] == [[4, 5], [4, 5, 6]]
    assert [row.tolist() for row in asked.support] == [[1, 2, 3, 4, 5]]
    assert asked.before.tolist() == [3, 3]  # d and e are in the prefixes
    assert [row.tolist() for row in asked.histories(True)] == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    assert [row.tolist() for row in asked.histories(False)] == [[4, 5], [4, 5, 6]]


def test_unknown_items_keep_their_place_in_the_prefix_only() -> None:
    asked = spelt("", "a-b c-e", n_support=3, n_query=1).asked
    assert [row.tolist() for row in asked.prefix] == [[3, -1]]
    assert [row.tolist() for row in asked.histories(True)] == [[1, 2, 3]]


def test_no_support() -> None:
    asked = spelt("", "abc", n_support=0, n_query=2).asked
    assert [row.tolist() for row in asked.histories(True)] == [[1], [1, 2]]


@quick
@given(s=smalls())
def test_histories_are_sets_of_events(s: Small) -> None:
    for support in (False, True):
        found = [row.tolist() for row in s.asked.histories(support)]
        assert found == [s.items(list({*q.prefix, *q.support} if support else q.prefix)) for q in s.questions]


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 users with 2 queries each do not fit"):
        Asked(np.zeros(1, np.int64), 2, EMPTY, EMPTY, np.zeros(2, np.int64))
