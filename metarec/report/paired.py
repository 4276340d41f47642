"""Figures of a table from each user's values under each seed, and the differences between its rows.

Intervals are those of `metrics.seeds`: users are drawn with all their seeds, from three seeds on seeds as well. p-values
flip users after the mean over seeds, with as many flips as the table is long (`metrics.differences`), Holm-corrected.

Shapes: S seeds, U users; a table [S, U] holds each user's mean over targets under each seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from metarec.metrics import intervals as iv
from metarec.metrics.finite import or_none
from metarec.metrics.seeds import difference_over_seeds, over_seeds

Array = npt.NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Draws:
    """How intervals and tests are drawn."""

    n_resamples: int
    confidence: float
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """As keywords of `metrics.seeds`."""
        return {"n_resamples": self.n_resamples, "confidence": self.confidence, "seed": self.seed}


def figures(tables: Sequence[Array], n_targets: Array, draws: Draws) -> list[Json]:
    """Of each row's table [S, U]: mean, low, high, sd_users, sd_seeds, of_seeds; no interval for fewer than two users."""
    found = []
    for table in tables:
        level = over_seeds(table, n_targets, **draws.options())
        found.append({
            "mean": level.mean, "low": or_none(level.low), "high": or_none(level.high),
            "sd_users": or_none(level.sd_users), "sd_seeds": or_none(level.sd_seeds),
            "of_seeds": (table @ n_targets / n_targets.sum()).tolist(), "resampled": level.resampled,
        })  # fmt: skip
    return found


def differences(pairs: Sequence[tuple[Array, Array]], n_targets: Array, draws: Draws) -> list[Json]:
    """For each pair of tables [S, U] (of, against): mean, interval, p-values, effect size, detectable difference, verdict.

    Rows of as many seeds are paired seed by seed; of others the means over seeds are, so only users are drawn.
    `p_holm` is over all the pairs.
    """
    if not pairs:
        return []
    both = [(a, b) if a.shape == b.shape else (a.mean(0)[None], b.mean(0)[None]) for a, b in pairs]
    found = [difference_over_seeds(a, b, n_targets, **draws.options()) for a, b in both]
    flips = max(draws.n_resamples, math.ceil(5 / (1.0 - draws.confidence) * len(pairs)))
    delta = np.stack([a.mean(axis=0) - b.mean(axis=0) for a, b in both], axis=1)  # [U, pairs]
    p_values = iv.sign_flip_p_values(delta * n_targets[:, None], n_resamples=flips, seed=draws.seed)
    corrected = iv.holm(p_values)
    return [
        {
            "mean": one.mean, "low": or_none(one.low), "high": or_none(one.high), "p_value": float(p_values[k]),
            "p_holm": float(corrected[k]), "effect_size": or_none(one.effect_size),
            "detectable": or_none(one.detectable), "verdict": one.verdict, "resampled": one.resampled,
        }
        for k, one in enumerate(found)
    ]  # fmt: skip
