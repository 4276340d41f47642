"""Perplexity against hand values, and its intervals against those of the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarec.metrics.bootstrap import bootstrap
from metarec.metrics.perplexity import exponential, perplexity

OPTIONS = {"n_resamples": 200, "confidence": 0.9, "seed": 3}


def test_a_model_without_a_preference_has_the_size_of_the_vocabulary() -> None:
    found = perplexity(np.full(12, math.log(8.0)), {"blocks": np.arange(12) // 3}, **OPTIONS)
    assert found["perplexity"] == pytest.approx(8, rel=1e-14)
    assert found["bits"] == pytest.approx(3, rel=1e-14)
    assert found["intervals"]["blocks"]["perplexity"] == pytest.approx([8, 8])


def test_two_targets_by_hand() -> None:
    """p = 1/2 and 1/8: the geometric mean is 1/4."""
    found = perplexity(np.array([math.log(2), math.log(8)]), {}, **OPTIONS)
    assert (found["n"], found["intervals"]) == (2, {})
    assert found["perplexity"] == pytest.approx(4, rel=1e-14)


def test_intervals_are_those_of_the_mean_and_wider_over_documents() -> None:
    draw = np.random.default_rng(1)
    document = np.repeat(np.arange(10), 30)
    cost = 2 + draw.normal(size=10)[document] * 0.3 + draw.normal(size=300) * 0.5
    found = perplexity(cost, {"blocks": np.arange(300) // 3, "documents": document}, **OPTIONS)["intervals"]
    low, high = bootstrap(cost, document, n_resamples=200, seed=3).interval(0.9)
    assert found["documents"]["perplexity"] == [math.exp(low[0]), math.exp(high[0])]
    assert found["documents"]["cross_entropy"] == [low[0], high[0]]
    width = {name: ends["perplexity"][1] - ends["perplexity"][0] for name, ends in found.items()}
    assert width["documents"] > width["blocks"]


def test_one_unit_has_no_interval_and_no_target_no_figure() -> None:
    assert perplexity(np.ones(4), {"documents": np.zeros(4, int)}, **OPTIONS)["intervals"] == {"documents": None}
    assert perplexity(np.zeros(0), {"documents": np.zeros(0, int)}, **OPTIONS)["perplexity"] is None


def test_beyond_a_float_it_is_infinite() -> None:
    assert exponential(1e4) == math.inf and exponential(0.0) == 1
