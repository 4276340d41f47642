"""Intervals and tests: scipy on the same draws, coverage and power by simulation, pairing, Holm by closed testing."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from metarec.errors import DivergedError
from metarec.metrics import bootstrap as bootstrap_module
from metarec.metrics import intervals as iv
from metarec.metrics.bootstrap import bootstrap, per_user_sums, user_means


def theirs(samples: tuple[np.ndarray, ...], statistic: Any, n_users: int, seed: int) -> tuple[float, float]:
    """scipy's intervals from the very same draws, at the confidence of the expanded tails: the outer ends of two."""
    tail = scipy.stats.norm.cdf(-math.sqrt(n_users / (n_users - 1)) * scipy.stats.t.ppf(0.975, n_users - 1))
    ends = []
    for method in ("percentile", "BCa"):
        rng = np.random.default_rng([seed, 0])
        found = scipy.stats.bootstrap(
            samples, statistic, n_resamples=3_000, confidence_level=1 - 2 * tail, method=method, rng=rng, paired=True
        )
        ends.append(found.confidence_interval)
    return min(end.low for end in ends), max(end.high for end in ends)


@pytest.mark.parametrize("skewed", [1.0, -1.0])
def test_a_mean_against_scipy_on_the_same_draws(skewed: float) -> None:
    values = skewed * np.random.default_rng(0).gamma(0.3, size=40)
    _, low, high = iv.cluster_bootstrap(values, np.arange(40), n_resamples=3_000, seed=3)
    assert (low, high) == pytest.approx(theirs((values,), np.mean, 40, 3), rel=1e-9)


def test_a_ratio_of_sums_against_scipy_on_the_same_draws() -> None:
    """Its jackknife tells the skewness of a ratio otherwise than the influence of each user, by some 1 / U."""
    rng = np.random.default_rng(0)
    for n_users, near in ((17, 4e-3), (400, 1e-4)):
        users = np.repeat(np.arange(n_users), rng.integers(1, 9, n_users))
        own = rng.random(users.size) ** 3
        sums, counts = per_user_sums(own, users)
        mean, low, high = iv.cluster_bootstrap(own, users, n_resamples=3_000, seed=5)

        def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
            return a.sum(axis) / b.sum(axis)

        assert mean == pytest.approx(own.mean(), rel=1e-14)
        assert (low, high) == pytest.approx(theirs((sums[:, 0], counts), ratio, n_users, 5), rel=near)


def coverage_rate(interval: object, runs: int = 300) -> float:
    """How often the 90 % interval holds the true mean 0, with 40 users of unequal sizes who differ from each other."""
    rng = np.random.default_rng(7)
    hits = 0
    for run in range(runs):
        users = np.repeat(np.arange(40), rng.integers(3, 15, 40))
        values = rng.normal(size=40)[users] + rng.normal(size=users.size)
        _, low, high = interval(values, users, run)  # type: ignore[operator]
        hits += low <= 0 <= high
    return hits / runs


def test_coverage_on_clustered_data() -> None:
    def clustered(values: np.ndarray, users: np.ndarray, seed: int) -> tuple[float, float, float]:
        return iv.cluster_bootstrap(values, users, n_resamples=400, confidence=0.9, seed=seed)

    def ignoring_users(values: np.ndarray, users: np.ndarray, seed: int) -> tuple[float, float, float]:
        return iv.cluster_bootstrap(values, np.arange(users.size), n_resamples=400, confidence=0.9, seed=seed)

    assert 0.86 <= coverage_rate(clustered) <= 0.94  # sigma of the rate is .017
    assert coverage_rate(ignoring_users) < 0.70  # the planted fault: targets drawn one by one


@pytest.mark.slow
def test_coverage_of_realistic_logs() -> None:
    """benchmarks/coverage.py on 3,000 logs, where the standard error of a share is .4 %."""
    script = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    command = [sys.executable, str(script), "--logs", "3000", "--users", "300", "--seed-logs", "300"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    for name, share in found["coverage"]["300"].items():
        assert 0.937 <= share["coverage"] <= 0.966, name
        assert share["plain"] <= share["expanded"] <= share["coverage"], name
    # the planted fault: percentiles of a rare hit, with the truth above them four times as often as below
    assert found["coverage"]["300"]["hr@1"]["expanded"] < 0.943
    for name, share in found["over_seeds"].items():
        assert share["coverage"] >= 0.92, name
    assert found["over_seeds"]["3 seeds, ratio 3"]["users_alone"] < 0.8  # the planted fault: seeds left out


def test_against_the_definition_by_drawing_users_one_by_one() -> None:
    users = np.array([7, 7, 7, 9, 9, 4])
    values = np.array([1.0, 0, 1, 0, 0, 1])
    drawn = bootstrap(values, users, n_resamples=50, seed=2).draws[:, 0]
    rng = np.random.default_rng([2, 0])
    keys = [4, 7, 9]
    for pick, mean in zip(rng.integers(0, 3, size=(50, 3)), drawn, strict=True):
        rows = np.concatenate([values[users == keys[i]] for i in pick])
        assert mean == pytest.approx(rows.mean(), rel=1e-14)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values, users = rng.random((60, 3)), rng.integers(0, 9, 60)
    whole = bootstrap(values, users, n_resamples=101, seed=1).draws
    p_whole = iv.sign_flip_p_values(values - 0.4, n_resamples=101, seed=1)
    for module in (iv, bootstrap_module):
        monkeypatch.setattr(module, "_CHUNK", 600)
    np.testing.assert_allclose(bootstrap(values, users, n_resamples=101, seed=1).draws, whole, rtol=1e-13)
    assert np.array_equal(iv.sign_flip_p_values(values - 0.4, n_resamples=101, seed=1), p_whole)


def test_paired_difference_uses_the_same_draw() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(30), 5)
    noise = rng.normal(size=150)
    found = iv.paired_difference(noise + 0.1, noise, users, seed=0)
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert found.p_value < 0.01
    assert (found.n_users, found.n_targets) == (30, 150)
    assert iv.verdict(found.low, found.high) == "better"
    none = iv.paired_difference(noise, noise, users, seed=0)
    assert (none.mean, none.low, none.high, none.p_value) == (0, 0, 0, 1)
    a, b = (noise > 0) * 1.0, (rng.normal(size=150) > 0) * 1.0
    there, back = iv.paired_difference(a, b, users, seed=0), iv.paired_difference(b, a, users, seed=0)
    assert there.p_value == back.p_value
    assert there.low == pytest.approx(-back.high)


def test_macro_means_weigh_users_alike() -> None:
    users, values = np.array([1, 1, 1, 2]), np.array([1.0, 1, 1, 0])
    assert iv.cluster_bootstrap(values, users)[0] == 3 / 4
    assert iv.macro_bootstrap(values, users)[0] == 1 / 2
    assert iv.paired_difference(values, np.zeros(4), users).macro_mean == 1 / 2


def test_sign_flips_against_all_of_them() -> None:
    sums = np.array([0.5, 1.0, -0.25, 2.0, 0.75, 1.0, -0.5, 0.3])
    flips = np.array(list(itertools.product([-1, 1], repeat=8))) @ sums
    exact = (np.abs(flips) >= abs(sums.sum()) - 1e-12).mean()
    found = iv.sign_flip_p_values(sums[:, None], n_resamples=40_000, seed=0)[0]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40_000))


def test_sign_flips_against_scipy() -> None:
    """Swapping a and b within pairs is flipping the signs of their differences; nine pairs are swapped in all ways."""
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.5, 1.5):
        a, b = rng.normal(size=9) + shift, rng.normal(size=9)
        exact = scipy.stats.permutation_test(
            (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
        ).pvalue  # fmt: skip
        found = iv.paired_difference(a, b, np.arange(9), n_resamples=20_000, seed=0).p_value
        assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_sign_flip_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p_values = iv.sign_flip_p_values(rng.normal(size=(25, 2_000)), n_resamples=499, seed=0)
    assert abs((p_values <= 0.05).mean() - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2_000)


def test_holm_by_hand() -> None:
    assert iv.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert iv.holm([0.5, 0.9]).tolist() == [1.0, 1.0]


def test_holm_is_closed_testing_by_bonferroni() -> None:
    """Its definition: a member is refused where every family that holds it is, each judged by its smallest p-value."""
    rng = np.random.default_rng(2)
    for p in (rng.random(6) ** 3, np.array([0.01, 0.01, 0.01, 0.2, 0.2, 0.0])):
        families = [f for size in range(1, 7) for f in itertools.combinations(range(6), size)]
        wanted = [max(min(1.0, len(f) * p[list(f)].min()) for f in families if i in f) for i in range(6)]
        assert iv.holm(p).tolist() == pytest.approx(wanted, rel=1e-12)


def test_effect_size_by_hand_and_as_a_t_statistic() -> None:
    assert iv.effect_size(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])).tolist() == pytest.approx(
        [2.0, math.nan], nan_ok=True
    )
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    a, b = rng.random(users.size) + 0.1, rng.random(users.size)
    found = iv.paired_difference(a, b, users, n_resamples=50)
    of_users = [user_means(column, users)[:, 0] for column in (a, b)]
    assert found.effect_size == pytest.approx(scipy.stats.ttest_rel(*of_users).statistic / math.sqrt(30), rel=1e-12)
    assert math.isnan(iv.paired_difference([1.0, 0.0], [0.0, 0.0], [1, 1], n_resamples=9).effect_size)


def test_the_detectable_difference_is_shown_four_times_in_five() -> None:
    """Power simulated: 1,500 logs of 60 users whose true difference is the detectable one, and of half of it."""
    n_users, n_logs = 60, 1500
    rng = np.random.default_rng(3)
    noise = (rng.gamma(2.0, size=(n_users, n_logs)) - rng.gamma(2.0, size=(n_users, n_logs))) / 2  # of deviation 1
    wanted = (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) / math.sqrt(n_users)
    draws = bootstrap(noise, np.arange(n_users), n_resamples=600, seed=0)
    assert iv.detectable(draws, 0.95).mean() == pytest.approx(wanted, rel=0.02)

    def power(difference: float) -> float:
        low, _ = draws.interval(0.95)
        return float((low + difference > 0).mean())

    assert power(wanted) == pytest.approx(0.8, abs=0.04)
    assert power(wanted / 2) == pytest.approx(0.28, abs=0.06)  # the planted fault: half of it is not enough
    assert np.isnan(iv.detectable(bootstrap(noise[:1], [0], n_resamples=9, seed=0), 0.95)).all()


def test_share_of_gap() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(50), 4)
    zero = rng.random(200)
    share, low, high = iv.share_of_gap(zero + 0.3, zero, zero + 1.2, users)
    assert (share, low, high) == pytest.approx((0.25, 0.25, 0.25))
    share, low, high = iv.share_of_gap(zero + 0.1, zero, zero, users)  # no gap
    assert math.isnan(share)
    assert math.isnan(low)
    assert math.isnan(high)
    wide = zero + 0.02 + rng.normal(size=200)  # a gap that some draws do not show
    assert all(math.isnan(end) for end in iv.share_of_gap(zero, zero, wide, users)[1:])


def test_one_user_has_no_interval_and_no_verdict() -> None:
    mean, low, high = iv.cluster_bootstrap([1.0, 0.0], ["a", "a"])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert iv.verdict(low, high) == "no difference shown"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
    ],
)
def test_words_of_an_interval(low: float, high: float, words: str) -> None:
    assert iv.verdict(low, high) == words


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DivergedError, match="metric values, row 1"):
        iv.cluster_bootstrap([1.0, math.nan], [1, 2])
