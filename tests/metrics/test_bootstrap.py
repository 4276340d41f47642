"""Draws and their intervals by laws: reflection, scale, outward only; influence by central differences."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from metarec.metrics.bootstrap import Drawn, bootstrap, of_sums
from metarec.metrics.intervals import gap_ratio

N_USERS = 60


def skewed(columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(N_USERS), rng.integers(1, 7, N_USERS))
    return (rng.random((users.size, columns)) < 0.08) + rng.gamma(0.5, size=(users.size, columns)), users


def percentiles(drawn: Drawn, confidence: float) -> np.ndarray:
    t = scipy.stats.t.ppf((1 + confidence) / 2, drawn.n_users - 1)
    tail = scipy.stats.norm.cdf(-t * np.sqrt(drawn.n_users / (drawn.n_users - 1)))
    return np.quantile(drawn.draws, [tail, 1 - tail], axis=0)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_correction_only_widens_and_does(confidence: float) -> None:
    values, users = skewed(5)
    drawn = bootstrap(values, users, n_resamples=2_000, seed=1)
    low, high = drawn.interval(confidence)
    inner = percentiles(drawn, confidence)
    assert (low <= inner[0] + 1e-12).all()
    assert (high >= inner[1] - 1e-12).all()
    if confidence == 0.99:
        assert (high > inner[1]).all()  # skewed upward; nearer the middle the noise of the bias may undo it
    assert (low >= drawn.draws.min(axis=0)).all()
    assert (high <= drawn.draws.max(axis=0)).all()


def test_a_reflected_scaled_and_shifted_figure_has_the_same_interval() -> None:
    values, users = skewed(4)
    low, high = bootstrap(values, users, n_resamples=500, seed=1).interval(0.95)
    their_low, their_high = bootstrap(3.0 - 2.0 * values, users, n_resamples=500, seed=1).interval(0.95)
    np.testing.assert_allclose(their_low, 3.0 - 2.0 * high, rtol=1e-12)
    np.testing.assert_allclose(their_high, 3.0 - 2.0 * low, rtol=1e-12)


def test_influence_is_the_derivative_by_a_users_weight() -> None:
    values, users = skewed(3)
    sums = np.stack([np.bincount(users, column) for column in values.T], axis=1)
    counts = np.bincount(users).astype(float)
    drawn = of_sums(sums, counts, n_resamples=3, seed=0)
    share = (drawn.columns([0]) - drawn.columns([1])) / (drawn.columns([2]) - drawn.columns([1]))

    def at(weight: np.ndarray) -> np.ndarray:
        few, zero, best = weight @ sums / (weight @ counts)
        return np.array([few, zero, best, (few - zero) / (best - zero)])

    step = 1e-6
    for user in (0, 17, N_USERS - 1):
        moved = step * (np.arange(N_USERS) == user)
        slope = (at(1 + moved) - at(1 - moved)) / (2 * step) * N_USERS
        ours = [*drawn.influence[user], share.influence[user, 0]]
        assert ours == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_share_of_a_gap_against_scipys_bca_on_the_same_draws() -> None:
    values, users = skewed(3)
    values += np.array([0.5, 0.0, 1.5])
    ours = gap_ratio(bootstrap(values, users, n_resamples=3_000, seed=5), 0.95)
    sums = [np.bincount(users, column) for column in values.T]

    def share(few: np.ndarray, zero: np.ndarray, best: np.ndarray, axis: int) -> np.ndarray:
        few, zero, best = (own.sum(axis) for own in (few, zero, best))
        return (few - zero) / (best - zero)

    level = 1 - 2 * scipy.stats.norm.cdf(-np.sqrt(60 / 59) * scipy.stats.t.ppf(0.975, 59))
    ends = [
        scipy.stats.bootstrap(
            sums, share, n_resamples=3_000, confidence_level=level, method=method, paired=True,
            rng=np.random.default_rng([5, 0]),
        ).confidence_interval
        for method in ("percentile", "BCa")
    ]  # fmt: skip
    assert ours[0] == pytest.approx(float(share(*sums, axis=-1)), rel=1e-12)
    assert ours[1:] == pytest.approx((min(e.low for e in ends), max(e.high for e in ends)), rel=5e-3)


def test_figures_without_spread_and_two_users() -> None:
    """Equal draws, ties that rounding breaks, and tails so far out that they are those of the draws."""
    users = np.array([1, 1, 2])
    for value in (0.0, 0.1, 1 / 3):
        low, high = bootstrap(np.full(3, value), users, n_resamples=99, seed=0).interval(0.95)
        assert (low[0], high[0]) == pytest.approx((value, value), abs=1e-15)
    for values in ([0.1, 0.1, 0.7], [1.0, 1.0, -2.0]):
        low, high = bootstrap(values, users, n_resamples=99, seed=0).interval(0.999)
        assert (low[0], high[0]) == pytest.approx((min(values), max(values)))


@pytest.mark.parametrize("n_users", [37, 300])
def test_a_figure_does_not_depend_on_what_else_its_table_holds(n_users: int) -> None:
    """To the bit. A product of matrices adds up by its width, with one thread too where its rows are odd."""
    drawn = np.random.default_rng(1)
    sums, counts = drawn.random((n_users, 120)), drawn.integers(1, 9, n_users).astype(np.float64)
    whole = of_sums(sums, counts, n_resamples=3333, seed=3).draws
    for width in range(2, 120, 3):
        part = of_sums(sums[:, :width], counts, n_resamples=3333, seed=3).draws
        assert np.array_equal(part, whole[:, :width])
