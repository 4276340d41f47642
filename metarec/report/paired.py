"""Figures of a table from each user's values, and the differences between its rows, all from one set of draws.

    mean       over targets: sum over users of value * targets / sum of targets
    interval   percentile, users drawn with all their targets and seeds (`metrics.intervals`)
    effect     Cohen's d_z: mean over users of a user's difference / its standard deviation over users
    detectable (z[1 - alpha/2] + z[.8]) * standard error of the difference (of its draws): what a two-sided test at
               this confidence would find with 80 % power; a smaller true difference may well be there unseen

Source: Cohen 1988, ch. 2 (d_z); Bloom 1995 (minimum detectable effects).
Shapes: S seeds, U users; a table [S, U] holds each user's mean over targets under each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from metarec.metrics import intervals as iv

Array = npt.NDArray[np.float64]
Json = dict[str, Any]
POWER = 0.8


@dataclass(frozen=True)
class Draws:
    """How intervals and tests are drawn."""

    n_resamples: int
    confidence: float
    seed: int = 0


def figures(tables: Sequence[Array], n_targets: Array, draws: Draws) -> list[Json]:
    """Of each row's table [S, U]: mean, low, high, sd_users, sd_seeds, of_seeds; no interval for fewer than two users."""
    values, users = _by_target(np.stack([table.mean(axis=0) for table in tables], axis=1), n_targets)
    replicates = iv.bootstrap_replicates(values, users, n_resamples=draws.n_resamples, seed=draws.seed)
    low, high = iv.percentile_interval(replicates, draws.confidence, len(n_targets))
    found = []
    for k, table in enumerate(tables):
        of_seeds = table @ n_targets / n_targets.sum()
        found.append({
            "mean": float(values[:, k].mean()), "low": _or_none(low[k]), "high": _or_none(high[k]),
            "sd_users": spread(table.mean(axis=0)), "sd_seeds": spread(of_seeds), "of_seeds": of_seeds.tolist(),
        })  # fmt: skip
    return found


def differences(pairs: Sequence[tuple[Array, Array]], n_targets: Array, draws: Draws) -> list[Json]:
    """For each pair of tables [S, U] (of, against): mean, interval, p-values, effect size, detectable difference, verdict.

    Their seeds may differ in number: the mean over them is paired, user by user. `p_holm` is over all the pairs.
    """
    if not pairs:
        return []
    delta = np.stack([of.mean(axis=0) - against.mean(axis=0) for of, against in pairs], axis=1)  # [U, pairs]
    table, users = _by_target(delta, n_targets)
    replicates = iv.bootstrap_replicates(table, users, n_resamples=draws.n_resamples, seed=draws.seed)
    low, high = iv.percentile_interval(replicates, draws.confidence, len(n_targets))
    p_values = iv.sign_flip_p_values(delta * n_targets[:, None], n_resamples=draws.n_resamples, seed=draws.seed)
    corrected = iv.holm(p_values)
    return [
        {
            "mean": float(table[:, k].mean()), "low": _or_none(low[k]), "high": _or_none(high[k]),
            "p_value": float(p_values[k]), "p_holm": float(corrected[k]), "effect_size": effect_size(delta[:, k]),
            "detectable": detectable(replicates[:, k], draws.confidence, len(n_targets)),
            "verdict": iv.verdict(float(low[k]), float(high[k])),
        }
        for k in range(len(pairs))
    ]  # fmt: skip


def effect_size(delta: Array) -> float | None:
    """Cohen's d_z of users' differences [U]; None where there is no spread to measure by."""
    if len(delta) < 2:
        return None
    spread = float(delta.std(ddof=1))
    return float(delta.mean()) / spread if spread > 1e-12 else None


def detectable(replicates: Array, confidence: float, n_users: int) -> float | None:
    """The smallest true difference found with 80 % power, from the draws [R] of the difference."""
    if n_users < 2 or len(replicates) < 2:
        return None
    normal = NormalDist()
    factor = normal.inv_cdf(1.0 - (1.0 - confidence) / 2.0) + normal.inv_cdf(POWER)
    return factor * float(replicates.std(ddof=1))


def spread(values: Array) -> float | None:
    """Standard deviation of one row's values over users, or of its means over seeds; None for fewer than two."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _by_target(values: Array, n_targets: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """The values with the user of each, so that a mean over rows is one over targets. Where all users have as many
    targets, once a user does."""
    users = np.arange(len(values))
    if np.all(n_targets == n_targets[0]):
        return values, users
    counts = n_targets.astype(np.int64)
    return np.repeat(values, counts, axis=0), np.repeat(users, counts)


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
