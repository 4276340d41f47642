"""Quantiles against scipy; the tails by scipy's own distributions."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from metarec.metrics import student


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 16, 17, 49, 299, 300, 999, 1000, 1001, 5000, 100_000])
def test_t_quantiles(df: int) -> None:
    for p in (0.5, 0.6, 0.8, 0.95, 0.975, 0.995, 0.9999):
        assert student.t_quantile(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=2e-6, abs=1e-9)


def test_normal_quantiles_and_what_is_refused() -> None:
    assert student.z_quantile(0.8) == pytest.approx(scipy.stats.norm.ppf(0.8), rel=1e-12)
    for p, df in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="t quantile"):
            student.t_quantile(p, df)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        student.expanded_z(1.0, 5)


@pytest.mark.parametrize("n", [2, 10, 17, 300])
def test_the_reach_is_that_of_hesterberg(n: int) -> None:
    wanted = math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1)
    assert student.expanded_z(0.95, n - 1, 1 - 1 / n) == pytest.approx(wanted, rel=1e-6)


def test_the_reach_is_the_plain_one_for_many_users() -> None:
    assert student.expanded_z(0.95, 10**6, 1 - 1e-6) == pytest.approx(scipy.stats.norm.ppf(0.975), rel=1e-5)
    reach = [student.expanded_z(0.9, n - 1, 1 - 1 / n) for n in (2, 5, 20, 100, 2000, 10**5)]
    assert reach == sorted(reach, reverse=True)
    assert reach[-1] > scipy.stats.norm.ppf(0.95)
