"""ease: its weights against ridge regressions column by column, whom it counts, and what is too large for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.baselines_reference import Small, binary, ridge, small, smalls, spelt
from reference.small_logs import quick

from metarec.baselines import BASELINES, ease
from metarec.errors import ConfigError
from metarec.ragged import Floats

EASE = BASELINES["ease"]


def some_users(n_users: int = 60, n_items: int = 25) -> Floats:
    rng = np.random.default_rng(3)
    return (rng.random((n_users, n_items)) < rng.random(n_items) * 0.5).astype(np.float64)


def check_weights(x: Floats, l2: float) -> None:
    np.testing.assert_allclose(ease.item_weights(x.T @ x, l2), ridge(x, l2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("l2", [0.5, 1.0, 100.0, 1000.0])
def test_weights_are_ridge_regressions_of_each_item_on_the_others(l2: float) -> None:
    check_weights(some_users(), l2)


@quick
@given(s=smalls(), l2=st.sampled_from([0.5, 1.0, 30.0]))
def test_weights_of_a_log(s: Small, l2: float) -> None:
    x = binary(s)
    assert np.array_equal(ease.common_users(s.log), x.T @ x)
    np.testing.assert_allclose(ease.weights_of(s.log, l2), ridge(x, l2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fault", ["rows divided", "diagonal left", "no ridge"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ease.item_weights

    def wrong(common: Floats, l2: float) -> Floats:
        if fault == "rows divided":  # by diag P of the wrong side: B^T
            return right(common, l2).T
        if fault == "diagonal left":  # ridge regression on all items
            return np.linalg.solve(common + l2 * np.eye(len(common)), common)
        return right(common, 1e-6)

    monkeypatch.setattr(ease, "item_weights", wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_weights(some_users(), 10.0)


def test_scores_by_hand() -> None:
    """Users abc, abd, ab, ca; of three items a, b, c alone: X^T X = [[4, 3, 2], [3, 3, 1], [2, 1, 2]]."""
    s = spelt("abc ab ab ca", "ab", n_items=3)
    assert ease.common_users(s.log).tolist() == [[4, 3, 2], [3, 3, 1], [2, 1, 2]]
    inverse = np.linalg.inv([[5.0, 3, 2], [3, 4, 1], [2, 1, 3]])
    of_a = np.array([0, -inverse[0, 1] / inverse[1, 1], -inverse[0, 2] / inverse[2, 2]])
    level, popularity = np.rint(1e9 * of_a / of_a.max()), np.array([4, 3, 2]) / 5
    assert EASE(s.log, l2=1.0)(s.asked)[0, 0].tolist() == (level + popularity).tolist()
    without = EASE(s.log, l2=1.0, repeats=False)(s.asked)[0, 0]
    assert without.tolist() == (np.where([True, False, False], -1e9 - 1, level) + popularity).tolist()


def test_a_history_counts_an_item_once_and_an_empty_one_is_popularity() -> None:
    words = "abc ab ab ca"
    once, often, empty = (spelt(words, asked, n_items=3) for asked in ("bac", "babac", "-a"))
    assert np.array_equal(EASE(once.log)(once.asked), EASE(often.log)(often.asked))
    assert EASE(empty.log)(empty.asked)[0, 0].tolist() == [4 / 5, 3 / 5, 2 / 5]


def test_sessions_of_one_user_are_one_row() -> None:
    """ab and cd of one user: a speaks for c. Of two users, it does not."""
    words = [[(1, 0), (2, 1)], [(3, 2), (4, 3)], [(1, 4), (2, 5)]]
    joined = small(4, words, [[0, 1], [2]], 1, 0, 1)
    parted = small(4, words, [[0], [1], [2]], 2, 0, 1)
    assert ease.common_users(joined.log)[0].tolist() == [1, 1, 1, 1]
    assert ease.common_users(parted.log)[0].tolist() == [1, 1, 0, 0]


def test_settings_in_any_order_are_those_of_a_fresh_log() -> None:
    """The weights are kept for the next setting, and not for another l2."""
    s = spelt("abc abd ab ca", "ab")
    for l2 in (1.0, 100.0, 100.0, 1.0):
        assert np.array_equal(EASE(s.log, l2=l2)(s.asked), EASE(replace(s.log), l2=l2)(s.asked))


def test_a_catalogue_too_large_is_refused_before_a_matrix_is_made() -> None:
    log = replace(spelt("ab", "ab").log, n_items=1_000_000)
    with pytest.raises(ConfigError, match="10,000 items at most, and there are 1,000,000 -- leave it out") as refused:
        EASE(log)
    assert "\n" not in str(refused.value)
    assert EASE.why_not(True, 10_000) is None
