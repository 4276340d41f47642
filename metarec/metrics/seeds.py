"""One method, or the difference of two, over several seeds on the same users and targets.

    1 or 2 seeds    users are drawn, each with all his seeds: the interval is about other users, with these very seeds
    3 or more       seeds count beside users (crossed: every seed has judged every user). The distance of each end from the
                    mean is

                        t[df] * sqrt((d / t[U-1])**2 + s**2 / S)

                    d that of the interval over users alone, s the standard deviation of the seeds' figures, df
                    Satterthwaite's: S - 1 where seeds make the spread, U - 1 where users do. Drawing seeds as well would
                    not do: a draw of three seeds never leaves their range, which holds the truth three times in four

The p-value of a difference flips whole users after the mean over seeds, so it speaks of these seeds; the interval is the
one to claim by. Coverage measured: benchmarks/coverage.py.

Source: Zou & Donner 2008 (ends of a sum from the ends of its parts); Satterthwaite 1946; Owen 2007 (users x seeds).
Shapes: S seeds, U users, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from metarec.metrics import intervals as iv
from metarec.metrics.bootstrap import Drawn, of_sums
from metarec.metrics.student import t_quantile, z_quantile

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
    return _level(table, weight, _drawn(table, weight, n_resamples=n_resamples, seed=seed), confidence)


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
    drawn = _drawn(table, weight, n_resamples=n_resamples, seed=seed)
    level = _level(table, weight, drawn, confidence)
    by_user = table.mean(axis=0)[:, None]
    return SeedDifference(
        **asdict(level),
        p_value=float(iv.sign_flip_p_values(by_user * weight[:, None], n_resamples=n_resamples, seed=seed)[0]),
        effect_size=float(iv.effect_size(by_user)[0]),
        detectable=math.hypot(
            float(iv.detectable(drawn, confidence)[0]),
            (z_quantile((1.0 + confidence) / 2.0) + z_quantile(0.8)) * math.sqrt(_seed_variance(table, weight)),
        ),
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


def _drawn(table: Array, weight: Array, *, n_resamples: int, seed: int) -> Drawn:
    """The mean over seeds and targets, users drawn."""
    return of_sums((table.mean(axis=0) * weight)[:, None], weight, n_resamples=n_resamples, seed=seed)


def _seed_variance(table: Array, weight: Array) -> float:
    """Of the mean over seeds, by what the seeds' figures differ; 0 for too few of them to tell."""
    n_seeds = len(table)
    return 0.0 if n_seeds < ENOUGH_SEEDS else float((table @ weight / weight.sum()).var(ddof=1)) / n_seeds


def _ends(drawn: Drawn, of_seeds: float, n_seeds: int, confidence: float) -> list[float]:
    """Low and high; `of_seeds`: the variance of the mean by seeds."""
    alone = [float(end[0]) for end in drawn.interval(confidence)]
    mean, n_users = float(drawn.mean[0]), drawn.n_users
    if of_seeds == 0.0 or n_users < 2:
        return alone
    p = (1.0 + confidence) / 2.0
    out = []
    for end in alone:
        of_users = ((end - mean) / t_quantile(p, n_users - 1)) ** 2
        both = of_users + of_seeds
        df = both**2 / (of_users**2 / (n_users - 1) + of_seeds**2 / (n_seeds - 1))
        out.append(t_quantile(p, max(1, math.floor(df))) * math.sqrt(both))
    return [mean - out[0], mean + out[1]]


def _level(table: Array, weight: Array, drawn: Drawn, confidence: float) -> OverSeeds:
    n_seeds, n_users = table.shape
    of_seeds = table @ weight / weight.sum()
    low, high = _ends(drawn, _seed_variance(table, weight), n_seeds, confidence)
    return OverSeeds(
        mean=float(of_seeds.mean()),
        low=low,
        high=high,
        sd_seeds=float(of_seeds.std(ddof=1)) if n_seeds > 1 else math.nan,
        sd_users=float(table.mean(axis=0).std(ddof=1)) if n_users > 1 else math.nan,
        n_seeds=n_seeds,
        n_users=n_users,
        resampled="users and seeds" if n_seeds >= ENOUGH_SEEDS else "users",
    )
