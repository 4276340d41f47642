"""How sure a figure is: bootstrap over users, paired differences, sign-flip test, Holm correction.

Targets of one user are not independent, so users are the unit that is drawn. One draw takes U users with replacement;
the figure of the draw is the pair-level mean, a ratio of sums:

    mean* = sum over drawn users of their sum of values / sum over drawn users of their number of values

All columns (methods x metrics) share the draws, which makes every difference and every ratio of them a paired one.
Intervals are percentiles of the draws, expanded for few users (`metrics.student`). Nothing is called better or worse while
its interval holds 0. Beside a difference stand its size in standard deviations of users (Cohen's d_z) and the smallest
difference that the same users would have shown with a power of 80 %.

Source: Efron & Tibshirani 1993, ch. 13 and 15; Field & Welsh 2007 (cluster bootstrap); Hesterberg 2015; Holm 1979;
Cohen 1988, sec. 2.3 (d_z) and 1.5 (power).
Shapes: n targets, U users, m columns, R resamples. With fewer than two users there is no interval: (NaN, NaN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metarec.errors import DivergedError
from metarec.metrics.student import expanded_tail, z_quantile

Array = npt.NDArray[np.float64]
_CHUNK = 4_000_000  # entries of one block of draws [r, U], about 32 MB


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


def per_user_sums(values: npt.ArrayLike, users: npt.ArrayLike) -> tuple[Array, Array]:
    """Sums [U, m] and counts [U] of ``values`` [n] or [n, m] for each distinct entry of ``users`` [n], sorted."""
    table = _columns(values)
    keys, row = np.unique(np.asarray(users), return_inverse=True)
    if row.shape != (table.shape[0],):
        raise ValueError(f"{table.shape[0]} values and {row.size} users")
    if not bool(np.isfinite(table).all()):
        bad = int(np.argmax(~np.isfinite(table).all(axis=1)))
        raise DivergedError(
            f"metric values, row {bad}", table[bad].tolist(), "a value that is not finite has no mean", "see the scores"
        )
    sums = np.zeros((keys.size, table.shape[1]))
    for column in range(table.shape[1]):
        sums[:, column] = np.bincount(row, weights=table[:, column], minlength=keys.size)
    return sums, np.bincount(row, minlength=keys.size).astype(np.float64)


def bootstrap_replicates(values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int, seed: int) -> Array:
    """Pair-level means [R, m] of ``values`` [n, m] over R draws of users; a function of (users, R, seed) alone.

    The draw depends on the number of users only, so two calls over the same users are paired.
    """
    sums, counts = per_user_sums(values, users)
    blocks = [(drawn @ sums) / (drawn @ counts)[:, None] for drawn in _draws(counts.size, n_resamples, seed)]
    return np.concatenate(blocks)


def percentile_interval(replicates: Array, confidence: float, n_users: int) -> tuple[Array, Array]:
    """Low and high [m] of ``replicates`` [R, m], expanded; NaN for fewer than two users, whose draws are all alike."""
    if n_users < 2:
        nothing = np.full(replicates.shape[1], np.nan)
        return nothing, nothing.copy()
    tail = expanded_tail(confidence, n_users - 1, 1.0 - 1.0 / n_users)
    low, high = np.quantile(replicates, [tail, 1.0 - tail], axis=0)
    return low, high


def cluster_bootstrap(
    values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over targets and its interval: (mean, low, high) of ``values`` [n], drawing whole users."""
    table = _columns(values)
    replicates = bootstrap_replicates(table, users, n_resamples=n_resamples, seed=seed)
    low, high = percentile_interval(replicates, confidence, np.unique(np.asarray(users)).size)
    return float(table.mean()), float(low[0]), float(high[0])


def macro_bootstrap(
    values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """As ``cluster_bootstrap`` for the mean over users of each user's mean: every user counts the same."""
    means = user_means(values, users)[:, 0]
    return cluster_bootstrap(means, np.arange(means.size), n_resamples=n_resamples, confidence=confidence, seed=seed)


def user_means(values: npt.ArrayLike, users: npt.ArrayLike) -> Array:
    """Mean [U, m] of each user's values, users in sorted order."""
    sums, counts = per_user_sums(values, users)
    return sums / counts[:, None]


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


def detectable(replicates: Array, confidence: float, n_users: int, power: float = 0.8) -> Array:
    """Smallest true difference [m] that such an interval excludes 0 for, in ``power`` of samples of as many users.

    (z[1 - alpha/2] + z[power]) standard errors, alpha = 1 - confidence; the standard error is that of the draws of a
    difference [R, m], which vary by (n - 1) / n of what the mean does. NaN for fewer than two users.
    """
    if n_users < 2:
        return np.full(replicates.shape[1], np.nan)
    error = replicates.std(axis=0) * math.sqrt(n_users / (n_users - 1))
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
    delta = _columns(a) - _columns(b)
    sums, counts = per_user_sums(delta, users)
    replicates = bootstrap_replicates(delta, users, n_resamples=n_resamples, seed=seed)
    low, high = percentile_interval(replicates, confidence, counts.size)
    by_user = sums / counts[:, None]
    return Difference(
        mean=float(delta.mean()),
        low=float(low[0]),
        high=float(high[0]),
        macro_mean=float(by_user.mean()),
        p_value=float(sign_flip_p_values(sums, n_resamples=n_resamples, seed=seed)[0]),
        n_users=counts.size,
        n_targets=delta.shape[0],
        effect_size=float(effect_size(by_user)[0]),
        detectable=float(detectable(replicates, confidence, counts.size)[0]),
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
    replicates = bootstrap_replicates(table, users, n_resamples=n_resamples, seed=seed)
    n_users = np.unique(np.asarray(users)).size
    return gap_ratio(table.mean(axis=0), replicates, confidence=confidence, n_users=n_users)


def gap_ratio(means: Array, replicates: Array, *, confidence: float, n_users: int) -> tuple[float, float, float]:
    """Share of the gap from columns (few, zero, bayes_few) of ``means`` [3] and ``replicates`` [R, 3].

    NaN where there is no gap to close; no interval (NaN, NaN) where a draw has none, for then its ends mean nothing.
    """
    gap = means[2] - means[1]
    share = float((means[0] - means[1]) / gap) if gap > 0 else math.nan
    gaps = replicates[:, 2] - replicates[:, 1]
    if not gap > 0 or not bool((gaps > 0).all()):
        return share, math.nan, math.nan
    ratio = (replicates[:, 0] - replicates[:, 1]) / gaps
    low, high = percentile_interval(ratio[:, None], confidence, n_users)
    return share, float(low[0]), float(high[0])


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


def _columns(values: npt.ArrayLike) -> Array:
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(f"values of shape {table.shape}: at least one row is needed")
    return table


def _draws(n_users: int, n_resamples: int, seed: int) -> Iterator[Array]:
    """How often each user is drawn, in blocks [r, U] that sum to U in every row."""
    if n_resamples < 1:
        raise ValueError("n_resamples starts at 1")
    rng = np.random.default_rng([seed, 0])
    done = 0
    while done < n_resamples:
        rows = min(n_resamples - done, max(1, _CHUNK // n_users))
        drawn = rng.integers(0, n_users, size=(rows, n_users)) + np.arange(rows)[:, None] * n_users
        yield np.bincount(drawn.ravel(), minlength=rows * n_users).reshape(rows, n_users).astype(np.float64)
        done += rows
