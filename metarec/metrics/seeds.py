"""One method, or the difference of two, over several seeds on the same users and targets.

What is drawn:

    1 or 2 seeds    whole users, each with all his seeds: the interval is about other users, with these very seeds
    3 or more       whole users, and beside them seeds, independently (users and seeds are crossed: every seed has judged
                    every user). All U of U users, and S - 1 of S seeds, which makes the draws vary by exactly the
                    variance that a mean of S seeds has; all S would leave out a third of it at S = 3

With few seeds a normal tail is too light by far (t[2] = 4.3 against 1.96), so the percentiles are expanded
(`metrics.student`) with Satterthwaite's degrees of freedom: S - 1 where seeds make the spread, U - 1 where users do. Such
intervals hold the truth in 94 to 98 % of simulated comparisons, those over users alone in 68 to 96 %, by how much seeds
differ (benchmarks/coverage.py).

The p-value of a difference flips whole users after the mean over seeds, so it speaks of these seeds; the interval is the
one to claim by.

Source: Owen 2007, The pigeonhole bootstrap; Rao & Wu 1988 (S - 1 of S); Satterthwaite 1946.
Shapes: S seeds, U users, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from metarec.metrics import intervals as iv
from metarec.metrics.student import expanded_tail

Array = npt.NDArray[np.float64]
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class OverSeeds:
    """Mean over seeds and targets with its interval; NaN where a figure does not exist (one user, one seed)."""

    mean: float
    low: float
    high: float
    sd_seeds: float  # standard deviation (S - 1) of the seeds' figures
    sd_users: float  # of the users' means over seeds
    n_seeds: int
    n_users: int
    resampled: str  # "users" or "users and seeds"


@dataclass(frozen=True)
class SeedDifference(OverSeeds):
    """The same of a - b, seed by seed and user by user."""

    p_value: float
    effect_size: float
    detectable: float
    verdict: str


def over_seeds(
    values: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> OverSeeds:
    """Of each user's mean under each seed, ``values`` [S, U]; ``targets`` [U]: how many each user has.

    With ``targets`` the mean over targets, as in metrics.json; without, the mean over users.
    """
    table, weight = _checked(values, targets)
    of_seeds, draws, tail = _draws(table, weight, n_resamples=n_resamples, confidence=confidence, seed=seed)
    return _level(table, of_seeds, draws, tail)


def difference_over_seeds(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SeedDifference:
    """Of a - b, both [S, U]: the same users in the same order, and row s of both from the same seed."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"{left.shape} and {right.shape}: a paired difference is over the same seeds and users")
    table, weight = _checked(left - right, targets)
    of_seeds, draws, tail = _draws(table, weight, n_resamples=n_resamples, confidence=confidence, seed=seed)
    level = _level(table, of_seeds, draws, tail)
    by_user = table.mean(axis=0)[:, None]
    n_users = table.shape[1]
    return SeedDifference(
        **asdict(level),
        p_value=float(iv.sign_flip_p_values(by_user * weight[:, None], n_resamples=n_resamples, seed=seed)[0]),
        effect_size=float(iv.effect_size(by_user)[0]),
        detectable=float(iv.detectable(draws[:, None], confidence, n_users)[0]),
        verdict=iv.verdict(level.low, level.high),
    )


def _checked(values: npt.ArrayLike, targets: npt.ArrayLike | None) -> tuple[Array, Array]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not bool(np.isfinite(table).all()):
        raise ValueError(f"values of shape {table.shape}: finite, [seeds, users], one of each at least")
    weight = np.ones(table.shape[1]) if targets is None else np.asarray(targets, dtype=np.float64)
    if weight.shape != (table.shape[1],) or not bool((weight > 0).all()):
        raise ValueError(f"targets of shape {weight.shape}: one or more for each of {table.shape[1]} users")
    return table, weight


def _draws(
    table: Array, weight: Array, *, n_resamples: int, confidence: float, seed: int
) -> tuple[Array, Array, float]:
    """(figure of each seed [S], draws of the mean over seeds [R], share of the draws beyond each end of the interval)."""
    n_seeds, n_users = table.shape
    summed = np.column_stack([(table * weight).T, weight])
    means = iv.bootstrap_replicates(summed, np.arange(n_users), n_resamples=n_resamples, seed=seed)
    of_seeds = table @ weight / weight.sum()
    by_seed = means[:, :-1] / means[:, -1:]  # [R, S]: mean of the users' sums over mean of their targets
    users_only = by_seed.mean(axis=1)
    if n_users < 2:
        return of_seeds, users_only, math.nan
    shrinkage = 1.0 - 1.0 / n_users
    if n_seeds < ENOUGH_SEEDS:
        return of_seeds, users_only, expanded_tail(confidence, n_users - 1, shrinkage)
    rng = np.random.default_rng([seed, 2])  # a stream of its own beside the users' and the flips'
    picked = rng.integers(0, n_seeds, size=(n_resamples, n_seeds - 1))
    draws: Array = np.take_along_axis(by_seed, picked, axis=1).mean(axis=1)
    of_users, of_seed = float(users_only.var()) / shrinkage, float(of_seeds.var(ddof=1)) / n_seeds
    if of_users + of_seed == 0.0:  # every user and seed alike: the ends are the mean at any share
        return of_seeds, draws, expanded_tail(confidence, n_users - 1, shrinkage)
    df = (of_users + of_seed) ** 2 / (of_users**2 / (n_users - 1) + of_seed**2 / (n_seeds - 1))
    return of_seeds, draws, expanded_tail(confidence, max(1, math.floor(df)))


def _level(table: Array, of_seeds: Array, draws: Array, tail: float) -> OverSeeds:
    n_seeds, n_users = table.shape
    low, high = (math.nan, math.nan) if math.isnan(tail) else np.quantile(draws, [tail, 1.0 - tail])
    return OverSeeds(
        mean=float(of_seeds.mean()),
        low=float(low),
        high=float(high),
        sd_seeds=float(of_seeds.std(ddof=1)) if n_seeds > 1 else math.nan,
        sd_users=float(table.mean(axis=0).std(ddof=1)) if n_users > 1 else math.nan,
        n_seeds=n_seeds,
        n_users=n_users,
        resampled="users and seeds" if n_seeds >= ENOUGH_SEEDS else "users",
    )
