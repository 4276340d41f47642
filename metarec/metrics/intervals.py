"""How sure a figure is: intervals of means and paired differences, sign-flip test, Holm correction.

Intervals are those of `metrics.bootstrap`, over users. Nothing is called better or worse while its interval holds 0.
Beside a difference stand its size in standard deviations of users (Cohen's d_z) and the smallest difference that the same
users would have shown with a power of 80 %.

Source: Efron & Tibshirani 1993, ch. 15; Holm 1979; Cohen 1988, sec. 2.3 (d_z) and 1.5 (power).
Shapes: n targets, U users, m columns, R resamples. With fewer than two users there is no interval: (NaN, NaN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metarec.metrics.bootstrap import Drawn, bootstrap, of_sums, per_user_sums, table_of, user_means
from metarec.metrics.student import z_quantile

Array = npt.NDArray[np.float64]
_CHUNK = 4_000_000  # entries of one block of signs [r, U], about 32 MB


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over targets and over users, interval of the former, two-sided p-value, d_z, detectable difference.

    NaN where a figure does not exist: the interval of one user, the d_z of users who all differ alike.
    """

    mean: float
    low: float
    high: float
    macro_mean: float
    p_value: float
    n_users: int
    n_targets: int
    effect_size: float
    detectable: float


def cluster_bootstrap(
    values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over targets and its interval: (mean, low, high) of ``values`` [n], drawing whole users."""
    drawn = bootstrap(values, users, n_resamples=n_resamples, seed=seed)
    low, high = drawn.interval(confidence)
    return float(drawn.mean[0]), float(low[0]), float(high[0])


def macro_bootstrap(
    values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """As ``cluster_bootstrap`` for the mean over users of each user's mean: every user counts the same."""
    means = user_means(values, users)[:, 0]
    return cluster_bootstrap(means, np.arange(means.size), n_resamples=n_resamples, confidence=confidence, seed=seed)


def sign_flip_p_values(sums: Array, *, n_resamples: int, seed: int) -> Array:
    """Two-sided p-values [m] that the per-user sums of differences [U, m] are symmetric about 0.

    Each resample flips the sign of whole users. (1 + hits) / (1 + R), so a p-value is never 0.
    """
    observed = np.abs(sums.sum(axis=0))
    reached = observed - 1e-9 * np.maximum(1.0, np.abs(sums).sum(axis=0))  # equal sums in another order are equal
    rng = np.random.default_rng([seed, 1])  # a stream of its own beside the bootstrap's
    hits = np.zeros(sums.shape[1])
    done = 0
    while done < n_resamples:
        rows = min(n_resamples - done, max(1, _CHUNK // sums.shape[0]))
        signs = rng.integers(0, 2, size=(rows, sums.shape[0])) * 2.0 - 1.0
        hits += (np.abs(signs @ sums) >= reached).sum(axis=0)
        done += rows
    return (1.0 + hits) / (1.0 + n_resamples)


def effect_size(by_user: Array) -> Array:
    """Cohen's d_z [m]: mean over standard deviation (n - 1) of the users' mean differences [U, m]; NaN where that is 0."""
    if by_user.shape[0] < 2:
        return np.full(by_user.shape[1], np.nan)
    deviation = by_user.std(axis=0, ddof=1)
    rounding = 1e-12 * np.abs(by_user).max(axis=0)  # equal differences, summed in floating point
    alike = deviation <= rounding
    size: Array = np.where(alike, np.nan, by_user.mean(axis=0) / np.where(alike, 1.0, deviation))
    return size


def detectable(drawn: Drawn, confidence: float, power: float = 0.8) -> Array:
    """Smallest true difference [m] that such an interval excludes 0 for, in ``power`` of samples of as many users.

    (z[1 - alpha/2] + z[power]) standard errors, alpha = 1 - confidence; the standard error is that of the draws of a
    difference, which vary by (n - 1) / n of what the mean does. NaN for fewer than two users.
    """
    if drawn.n_users < 2:
        return np.full(drawn.mean.size, np.nan)
    error = drawn.draws.std(axis=0) * math.sqrt(drawn.n_users / (drawn.n_users - 1))
    smallest: Array = (z_quantile((1.0 + confidence) / 2.0) + z_quantile(power)) * error
    return smallest


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    users: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Interval and test of mean(a - b) for two methods' values [n] on the same targets."""
    delta = table_of(a) - table_of(b)
    sums, counts = per_user_sums(delta, users)
    drawn = of_sums(sums, counts, n_resamples=n_resamples, seed=seed)
    low, high = drawn.interval(confidence)
    by_user = sums / counts[:, None]
    return Difference(
        mean=float(drawn.mean[0]),
        low=float(low[0]),
        high=float(high[0]),
        macro_mean=float(by_user.mean()),
        p_value=float(sign_flip_p_values(sums, n_resamples=n_resamples, seed=seed)[0]),
        n_users=counts.size,
        n_targets=delta.shape[0],
        effect_size=float(effect_size(by_user)[0]),
        detectable=float(detectable(drawn, confidence)[0]),
    )


def share_of_gap(
    few: npt.ArrayLike,
    zero: npt.ArrayLike,
    bayes_few: npt.ArrayLike,
    users: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(few - zero) / (bayes_few - zero) of the means and its interval, all three drawn together."""
    table = np.stack([np.asarray(column, dtype=np.float64) for column in (few, zero, bayes_few)], axis=1)
    return gap_ratio(bootstrap(table, users, n_resamples=n_resamples, seed=seed), confidence)


def gap_ratio(drawn: Drawn, confidence: float) -> tuple[float, float, float]:
    """Share of the gap from columns (few, zero, bayes_few).

    NaN where there is no gap to close; no interval (NaN, NaN) where a draw has none, for then its ends mean nothing.
    """
    few, zero, bayes_few = (drawn.columns([column]) for column in range(3))
    gap = bayes_few - zero
    if not gap.mean[0] > 0:
        return math.nan, math.nan, math.nan
    if not bool((gap.draws > 0).all()):
        return float((few.mean - zero.mean)[0] / gap.mean[0]), math.nan, math.nan
    share = (few - zero) / gap
    low, high = share.interval(confidence)
    return float(share.mean[0]), float(low[0]), float(high[0])


def holm(p_values: npt.ArrayLike) -> Array:
    """Holm's step-down correction of a table's p-values [m], in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def verdict(low: float, high: float) -> str:
    """The only words a table may use for a difference whose interval is [low, high]."""
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no difference shown"  # also where there is no interval (NaN)
