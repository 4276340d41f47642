"""Perplexity: the exponential of the mean cross-entropy, with intervals.

    cross_entropy = mean over targets of -log p(target), in nats;   perplexity = exp(it);   bits = it / log 2

A model that gives every one of V items the same chance has perplexity V. Intervals are bootstrap intervals of the mean
(`metrics.bootstrap`), of which the other two are rising functions, so their ends are those of the mean. What is drawn is
said: blocks of one document are not independent of one another, so intervals over blocks are the narrower ones.

Source: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition tasks", JASA 62 (S1).
Shapes: n targets, U drawn units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.metrics.bootstrap import bootstrap

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def perplexity(
    cost: Floats, units: Mapping[str, Ints], *, n_resamples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """cost [n], of every target in nats; units: what an interval draws -> whose each target is, int64 [n].

    An interval is null where there is one unit only. Figures are null where there is no target.
    """
    if not len(cost):
        return {"n": 0, "cross_entropy": None, "perplexity": None, "bits": None, "intervals": {}}
    mean = float(cost.mean())
    found: dict[str, Any] = {"n": len(cost), **_figures(mean), "intervals": {}}
    for name, unit in units.items():
        low, high = (
            float(end[0]) for end in bootstrap(cost, unit, n_resamples=n_resamples, seed=seed).interval(confidence)
        )
        ends = None if math.isnan(low) else [_figures(end) for end in (low, high)]
        found["intervals"][name] = None if ends is None else {key: [end[key] for end in ends] for key in ends[0]}
    return found


def _figures(mean: float) -> dict[str, float]:
    """Of a mean cross-entropy in nats; beyond what a float holds the perplexity is infinite."""
    return {"cross_entropy": mean, "perplexity": exponential(mean), "bits": mean / math.log(2)}


def exponential(mean: float) -> float:
    """exp, infinite where a float does not hold it."""
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf
