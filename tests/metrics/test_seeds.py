"""Over seeds: one seed is the plain bootstrap, three are drawn beside the users, and the spread is what a law says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from metarec.metrics import seeds as module
from metarec.metrics.intervals import cluster_bootstrap, paired_difference
from metarec.metrics.seeds import difference_over_seeds, over_seeds


def table(n_seeds: int, n_users: int, of_seeds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n_users) + of_seeds * rng.normal(size=(n_seeds, 1)) + rng.normal(size=(n_seeds, n_users))


def test_one_seed_is_the_bootstrap_of_its_targets() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 8, 40)
    users = np.repeat(np.arange(40), targets)
    values = rng.random(users.size)
    means = np.bincount(users, values) / targets
    found = over_seeds(means[None], targets, n_resamples=300, seed=2)
    assert (found.mean, found.low, found.high) == pytest.approx(
        cluster_bootstrap(values, users, n_resamples=300, seed=2)
    )
    assert (found.resampled, found.n_seeds, found.n_users) == ("users", 1, 40)
    assert math.isnan(found.sd_seeds)
    other = rng.random(users.size)
    wanted = paired_difference(values, other, users, n_resamples=300, seed=2)
    paired = difference_over_seeds(
        means[None], (np.bincount(users, other) / targets)[None], targets, n_resamples=300, seed=2
    )
    for name in ("mean", "low", "high", "p_value", "effect_size", "detectable"):
        assert getattr(paired, name) == pytest.approx(getattr(wanted, name)), name


def test_two_seeds_are_their_mean_user_by_user() -> None:
    values = table(2, 30, 5.0)
    both, mean = over_seeds(values, n_resamples=200), over_seeds(values.mean(axis=0)[None], n_resamples=200)
    assert (both.mean, both.low, both.high) == pytest.approx((mean.mean, mean.low, mean.high))
    assert both.sd_seeds == pytest.approx(np.std(values.mean(axis=1), ddof=1))
    assert both.sd_users == pytest.approx(np.std(values.mean(axis=0), ddof=1))


def test_three_seeds_against_drawing_users_and_seeds_one_by_one() -> None:
    values, targets = table(3, 12, 1.0), np.random.default_rng(1).integers(1, 5, 12)
    _, draws, _ = module._draws(values, targets.astype(float), n_resamples=40, confidence=0.95, seed=6)
    users = np.random.default_rng([6, 0]).integers(0, 12, size=(40, 12))
    seeds = np.random.default_rng([6, 2]).integers(0, 3, size=(40, 2))  # two of three
    for own_users, own_seeds, found in zip(users, seeds, draws, strict=True):
        each = [(values[s, own_users] * targets[own_users]).sum() / targets[own_users].sum() for s in own_seeds]
        assert found == pytest.approx(np.mean(each), rel=1e-12)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_draws_vary_as_the_mean_does(n_seeds: int) -> None:
    """Only seeds differ: the variance of the draws is s**2 / S, which all S of S would miss by 1 / S."""
    values = np.repeat(np.random.default_rng(4).normal(size=(n_seeds, 1)), 50, axis=1)
    _, draws, tail = module._draws(values, np.ones(50), n_resamples=40_000, confidence=0.95, seed=0)
    assert draws.var() == pytest.approx(values[:, 0].var(ddof=1) / n_seeds, rel=0.03)
    assert tail == pytest.approx(scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, n_seeds - 1)), rel=1e-3)


def test_seeds_that_differ_make_no_claim() -> None:
    """One seed of five carries the gain: users alone would call it better, users and seeds do not."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 400)) * 0.1, rng.normal(size=(5, 400)) * 0.1
    a[0] += 0.5
    paired = difference_over_seeds(a, b)
    assert paired.verdict == "no difference shown"
    assert paired.resampled == "users and seeds"
    assert difference_over_seeds(a[:1], b[:1]).verdict == "better"
    assert difference_over_seeds(a.mean(0, keepdims=True), b.mean(0, keepdims=True)).verdict == "better"  # the fault
    assert difference_over_seeds(b, a).mean == pytest.approx(-paired.mean)


def test_figures_that_do_not_exist_and_input_that_does_not_fit() -> None:
    one = over_seeds([[0.5], [0.7], [0.6]])
    assert one.mean == pytest.approx(0.6)
    assert math.isnan(one.low)
    assert math.isnan(one.sd_users)
    alike = over_seeds(np.full((3, 4), 0.25))
    assert (alike.low, alike.high) == (0.25, 0.25)
    with pytest.raises(ValueError, match="same seeds and users"):
        difference_over_seeds(np.zeros((3, 4)), np.zeros((2, 4)))
    for wrong in (np.zeros(4), np.zeros((0, 3)), np.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match=r"finite, \[seeds, users\]"):
            over_seeds(wrong)
    with pytest.raises(ValueError, match="one or more for each"):
        over_seeds(np.zeros((2, 3)), [1, 0, 2])
