"""Over seeds: one seed is the plain bootstrap, three are drawn beside the users, and the spread is what a law says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

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


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_where_only_seeds_differ_it_is_students_interval(n_seeds: int, confidence: float) -> None:
    of_seeds = np.random.default_rng(4).normal(size=n_seeds)
    found = over_seeds(np.repeat(of_seeds[:, None], 50, axis=1), confidence=confidence)
    wanted = scipy.stats.t.interval(confidence, n_seeds - 1, of_seeds.mean(), scipy.stats.sem(of_seeds))
    assert (found.low, found.high) == pytest.approx(wanted, rel=1e-6)


def test_where_seeds_agree_it_is_the_interval_over_users() -> None:
    users, targets = table(1, 40, 0.0), np.random.default_rng(1).integers(1, 5, 40)
    one, three = over_seeds(users, targets), over_seeds(np.repeat(users, 3, axis=0), targets)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), rel=1e-12)
    assert (one.resampled, three.resampled) == ("users", "users and seeds")


@pytest.mark.parametrize("ratio", [0.0, 1.0, 30.0])
def test_the_interval_holds_the_truth_however_much_seeds_differ(ratio: float) -> None:
    """Three seeds, 60 users; `ratio`: of the spread that seeds make to that of users. 95 % wanted, 3 deviations allowed."""
    rng, n, hits = np.random.default_rng(int(ratio)), 300, 0
    for number in range(n):
        spread = math.sqrt(ratio * 3 / 60)
        values = rng.normal(size=60) + spread * rng.normal(size=(3, 1)) + rng.normal(size=(3, 60))
        found = over_seeds(values, n_resamples=300, seed=number)
        hits += found.low <= 0 <= found.high
    assert 0.912 < hits / n <= 1.0


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
