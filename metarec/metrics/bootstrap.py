"""Bootstrap over users: means over targets, their draws, and the interval that such draws give.

Targets of one user are not independent, so users are the unit that is drawn. One draw takes U users with replacement;
the figure of the draw is the pair-level mean, a ratio of sums:

    mean* = sum over drawn users of their sum of values / sum over drawn users of their number of values

All columns (methods x metrics) share the draws, which makes every difference and every ratio of them a paired one.

An interval's ends are quantiles of the draws. Its tails are expanded for few users (`metrics.student`), and BCa moves an
end where draws say that the figure is biased or skewed, but **outward only**. A rare hit or a reciprocal rank is skewed
upward: with percentiles alone the truth lies above the interval in 5 logs of 100 and below it in 1. A difference of two
such figures is not, but 300 users tell its skewness badly, and BCa's inward half then loses more than the outward half
wins. Coverage of all three: benchmarks/coverage.py.

Source: Efron & Tibshirani 1993, ch. 13 and 14 (BCa, sec. 14.3; acceleration by influence, eq. 22.31); Field & Welsh 2007
(cluster bootstrap); Hesterberg 2015 (expanded tails). That the correction only widens is ours.
Shapes: n targets, U users, m columns, R resamples. With fewer than two users there is no interval: (NaN, NaN).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from metarec.errors import DivergedError
from metarec.metrics.student import expanded_z

Array = npt.NDArray[np.float64]
Columns = Sequence[int] | npt.NDArray[np.int64]
_CHUNK = 4_000_000  # entries of one block of draws [r, U], about 32 MB
_ROUNDING = 1e-12  # draws that differ by less, relative to the largest, are equal sums in another order
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Drawn:
    """Figures [m], their draws [R, m], and by how much one user more moves each, times U: influence [U, m]."""

    mean: Array
    draws: Array
    influence: Array

    @property
    def n_users(self) -> int:
        """U, the users that were drawn from."""
        return len(self.influence)

    def columns(self, chosen: Columns) -> Drawn:
        """The figures that `chosen` names, of the same draws: differences of them stay paired."""
        return Drawn(self.mean[chosen], self.draws[:, chosen], self.influence[:, chosen])

    def __sub__(self, other: Drawn) -> Drawn:
        """The paired difference: both must come from one (number of users, R, seed)."""
        return Drawn(self.mean - other.mean, self.draws - other.draws, self.influence - other.influence)

    def __truediv__(self, other: Drawn) -> Drawn:
        """The ratio, column by column; its influence is that of the linear part."""
        ratio = self.mean / other.mean
        return Drawn(ratio, self.draws / other.draws, (self.influence - ratio * other.influence) / other.mean)

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Low and high [m]; NaN for fewer than two users, whose draws are all alike."""
        if self.n_users < 2:
            nothing = np.full(self.mean.size, np.nan)
            return nothing, nothing.copy()
        z = expanded_z(confidence, self.n_users - 1, 1.0 - 1.0 / self.n_users)
        bias, acceleration = self._bias(), self._acceleration()
        low = np.minimum(_NORMAL.cdf(-z), _corrected(-z, bias, acceleration))
        high = np.maximum(_NORMAL.cdf(z), _corrected(z, bias, acceleration))
        ordered = np.sort(self.draws, axis=0)
        return _quantile(ordered, low), _quantile(ordered, high)

    def _bias(self) -> Array:
        """z0 [m]: the normal quantile of the share of draws below the figure, equal ones counted half."""
        off = self.draws - self.mean
        near = _ROUNDING * np.abs(self.draws).max(axis=0)
        n = len(off)
        share = ((off < -near).sum(axis=0) + 0.5 * (np.abs(off) <= near).sum(axis=0)) / n
        return _z(np.clip(share, 0.5 / n, 1.0 - 0.5 / n))

    def _acceleration(self) -> Array:
        """a [m]: a sixth of the skewness of the figure, from what each user adds to it; 0 where users add alike."""
        squares = (self.influence**2).sum(axis=0) ** 1.5
        cubes = (self.influence**3).sum(axis=0)
        accelerated: Array = np.divide(cubes, 6.0 * squares, out=np.zeros_like(cubes), where=squares > 0)
        return accelerated


def bootstrap(values: npt.ArrayLike, users: npt.ArrayLike, *, n_resamples: int, seed: int) -> Drawn:
    """Means over targets of ``values`` [n] or [n, m], drawing the ``users`` [n]; a function of (users, R, seed) alone."""
    return of_sums(*per_user_sums(values, users), n_resamples=n_resamples, seed=seed)


def of_sums(sums: Array, counts: Array, *, n_resamples: int, seed: int) -> Drawn:
    """The same from what `per_user_sums` gives: sums [U, m], counts [U], or [U, m] where columns have their own.

    The draw depends on the number of users only, so two calls over the same users are paired.
    """
    counts = counts[:, None] if counts.ndim == 1 else counts
    mean = sums.sum(axis=0) / counts.sum(axis=0)
    draws = [_by_column(drawn, sums) / _by_column(drawn, counts) for drawn in _draws(len(sums), n_resamples, seed)]
    return Drawn(mean, np.concatenate(draws), (sums - mean * counts) / counts.mean(axis=0))


def _by_column(drawn: Array, table: Array) -> Array:
    """drawn [n, U] times table [U, m], a column at a time: BLAS adds up a wider product in another order, and a figure
    must not depend on what else a table holds."""
    return np.stack([drawn @ np.ascontiguousarray(column) for column in table.T], axis=1)


def per_user_sums(values: npt.ArrayLike, users: npt.ArrayLike) -> tuple[Array, Array]:
    """Sums [U, m] and counts [U] of ``values`` [n] or [n, m] for each distinct entry of ``users`` [n], sorted."""
    table = table_of(values)
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


def user_means(values: npt.ArrayLike, users: npt.ArrayLike) -> Array:
    """Mean [U, m] of each user's values, users in sorted order."""
    sums, counts = per_user_sums(values, users)
    return sums / counts[:, None]


def table_of(values: npt.ArrayLike) -> Array:
    """Values [n] or [n, m] as [n, m]. Raises ValueError where there is none."""
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


def _corrected(z: float, bias: Array, acceleration: Array) -> Array:
    """BCa's share of the draws [m] below the end that a normal figure would have at ``z``."""
    moved = bias + z
    left = 1.0 - acceleration * moved
    # beyond its pole the formula has no meaning: the end is that of the draws
    beyond = np.where(moved > 0, np.inf, -np.inf)
    end = np.where(left > 0, bias + np.divide(moved, left, out=beyond.copy(), where=left > 0), beyond)
    return np.array([_NORMAL.cdf(x) for x in end])


def _quantile(ordered: Array, share: Array) -> Array:
    """Of each column of ``ordered`` [R, m] its own ``share`` [m], linear between draws (numpy's default)."""
    place = share * (len(ordered) - 1)
    below = np.clip(np.floor(place).astype(np.int64), 0, max(len(ordered) - 2, 0))
    above = np.minimum(below + 1, len(ordered) - 1)
    column = np.arange(ordered.shape[1])
    found: Array = ordered[below, column] + (place - below) * (ordered[above, column] - ordered[below, column])
    return found


def _z(share: Array) -> Array:
    return np.array([_NORMAL.inv_cdf(float(x)) for x in share])
