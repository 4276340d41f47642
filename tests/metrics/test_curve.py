"""A curve against the plain functions, its pairing along K, and records that are not of the same targets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from metarec.metrics import METRICS
from metarec.metrics import curve as module
from metarec.metrics.bootstrap import Drawn
from metarec.metrics.curve import curve
from metarec.metrics.intervals import cluster_bootstrap, paired_difference
from metarec.metrics.records import TargetRecords

OPTIONS = {"n_resamples": 200, "confidence": 0.9, "seed": 3}


def records(k: int) -> TargetRecords:
    rng = np.random.default_rng(7)
    user = np.repeat(np.arange(25), 4)
    base = rng.integers(1, 101, user.size)
    few = np.maximum(1, base - rng.integers(0, 10, user.size) * k // 2)
    return TargetRecords(user, user, np.tile(np.arange(4), 25), user < 0, {"zeroshot": base, "fewshot": few}, 100)


def test_every_point_against_the_plain_functions() -> None:
    by_k = {k: records(k) for k in (5, 0, 20)}
    found = curve(by_k, split="test", **OPTIONS)
    assert (found["ks"], found["users"], found["targets"], found["split"]) == ([0, 5, 20], 25, 100, "test")
    json.dumps(found, allow_nan=False)
    for metric, values in METRICS.items():
        of_zero = values(by_k[0].ranks["fewshot"], 100)
        for i, k in enumerate(found["ks"]):
            own = values(by_k[k].ranks["fewshot"], 100)
            at, gain = found["methods"]["fewshot"][metric][i], found["gain"]["fewshot"][metric][i]
            assert (at["mean"], at["low"], at["high"]) == pytest.approx(cluster_bootstrap(own, by_k[0].user, **OPTIONS))
            wanted = paired_difference(own, of_zero, by_k[0].user, **OPTIONS)
            assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
        assert all(point == {"mean": 0, "low": 0, "high": 0} for point in found["gain"]["zeroshot"][metric])


def test_points_that_are_not_paired_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: draws of its own at every K. A method that support does not touch would then seem to gain."""
    calls = iter(range(100))
    drawn = module.bootstrap

    def own_draws(values: np.ndarray, users: np.ndarray, n_resamples: int, seed: int) -> Drawn:
        return drawn(values, users, n_resamples=n_resamples, seed=next(calls))

    monkeypatch.setattr(module, "bootstrap", own_draws)
    found = curve({0: records(0), 5: records(5)}, split="test", **OPTIONS)
    assert found["gain"]["zeroshot"]["mrr"][1]["high"] > 0


def test_other_targets_or_methods_are_refused() -> None:
    one = records(0)
    with pytest.raises(ValueError, match="K=5 and K=0: a curve is over the same users"):
        curve({0: one, 5: replace(one, position=one.position + 1)}, split="test")
    with pytest.raises(ValueError, match="other methods"):
        curve({0: one, 5: replace(one, ranks={"fewshot": one.ranks["fewshot"]})}, split="test")
    with pytest.raises(ValueError, match="one K at least"):
        curve({}, split="test")


def test_one_user_has_no_interval() -> None:
    user = np.zeros(3, dtype=np.int64)
    one = TargetRecords(user, user, np.arange(3), user > 0, {"fewshot": np.array([1, 2, 3])}, 5)
    assert curve({0: one}, split="val", n_resamples=20)["methods"]["fewshot"]["mrr"][0]["low"] is None
