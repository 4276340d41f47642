"""The figures of metrics.json: against plain loops over the targets, with the published keys, and never NaN."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from metarec.errors import DivergedError
from metarec.metrics import METRICS
from metarec.metrics import summary as summary_module
from metarec.metrics.finite import plain_json
from metarec.metrics.intervals import cluster_bootstrap, paired_difference, share_of_gap
from metarec.metrics.summary import TargetRecords, per_user, summarise

N_ITEMS = 40
METHODS = ("zeroshot", "control", "fewshot", "bayes_zeroshot", "bayes_fewshot")


def records(methods: tuple[str, ...] = METHODS, n_users: int = 25, seed: int = 0) -> TargetRecords:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), rng.integers(2, 7, n_users)) * 3 + 1
    unknown = rng.random(user.size) < 0.1
    ranks = {}
    for place, name in enumerate(methods):
        rank = np.maximum(1, rng.integers(1, N_ITEMS + 1, user.size) // (1 + place))
        ranks[name] = np.where(unknown, N_ITEMS + 1, rank)
    position = np.arange(user.size) - np.searchsorted(user, user)
    return TargetRecords(user, user, position, rng.random(user.size) < 0.3, ranks, N_ITEMS)


def test_every_figure_against_the_plain_functions() -> None:
    data = records()
    out = summarise(data, n_resamples=300, confidence=0.9, seed=5)
    options: dict[str, Any] = {"n_resamples": 300, "confidence": 0.9, "seed": 5}
    for method, rank in data.ranks.items():
        for name, metric in METRICS.items():
            mean, low, high = cluster_bootstrap(metric(rank, N_ITEMS), data.user, **options)
            assert out["metrics"][method][name] == pytest.approx(mean, rel=1e-12)
            assert out["intervals"][method][name] == pytest.approx([low, high], rel=1e-12)
            by_user = [metric(rank[data.user == u], N_ITEMS).mean() for u in np.unique(data.user)]
            assert out["macro"][method][name]["mean"] == pytest.approx(np.mean(by_user), rel=1e-12)
            repeat = metric(rank[data.repeat], N_ITEMS).mean()
            assert out["repeat"]["metrics"][method][name] == pytest.approx(repeat, rel=1e-12)
    few, zero, bayes = (METRICS["ndcg@10"](data.ranks[m], N_ITEMS) for m in ("fewshot", "zeroshot", "bayes_fewshot"))
    paired = paired_difference(few, zero, data.user, **options)
    found = out["differences"]["gain_over_zeroshot"]["ndcg@10"]
    assert [found[k] for k in ("mean", "low", "high", "macro_mean")] == pytest.approx(
        [paired.mean, paired.low, paired.high, paired.macro_mean]
    )
    assert found["p_value"] <= found["p_holm"]
    assert found["verdict"] in ("better", "worse", "no difference shown")
    share = share_of_gap(few, zero, bayes, data.user, **options)
    ours = out["share_of_gap"]["fewshot"]["ndcg@10"]
    assert ours["share"] == pytest.approx(share[0])
    assert (ours["low"] is None) == math.isnan(share[1])


def test_published_keys_and_counts() -> None:
    data = records()
    out = summarise(data, n_resamples=50)
    metrics, differences = out["metrics"], out["differences"]
    assert list(metrics["zeroshot"]) == list(METRICS)
    for name in METRICS:
        assert out["comparison"][name] == pytest.approx(metrics["fewshot"][name] - metrics["control"][name])
        gain = metrics["fewshot"][name] - metrics["zeroshot"][name]
        assert out["improvement"]["absolute"][name] == pytest.approx(gain)
        assert out["improvement"]["relative"][name] == pytest.approx(gain / metrics["zeroshot"][name])
        assert out["intervals"]["comparison"][name][0] == differences["gain_over_control"][name]["low"]
    counts = out["counts"]
    assert (counts["users"], counts["targets"]) == (25, data.user.size)
    assert counts["unknown_target_share"] == pytest.approx(float((data.ranks["control"] > N_ITEMS).mean()))
    assert out["repeat"]["targets"] + out["novel"]["targets"] == counts["targets"]
    json.dumps(out, allow_nan=False)


def test_methods_are_just_names() -> None:
    out = summarise(records(("zeroshot", "popularity")), n_resamples=50, differences={"x": ("popularity", "zeroshot")})
    assert set(out["differences"]) == {"x"}
    assert "comparison" not in out
    assert "share_of_gap" not in out
    assert summarise(records(("zeroshot",)), n_resamples=20)["differences"] == {}


def test_nothing_to_divide_by_or_to_draw_is_null_not_nan() -> None:
    user = np.zeros(3, dtype=np.int64)
    ranks = {"zeroshot": np.array([30, 31, 32]), "fewshot": np.array([1, 2, 3])}
    out = summarise(TargetRecords(user, user, np.arange(3), np.zeros(3, dtype=bool), ranks, N_ITEMS), n_resamples=20)
    assert out["improvement"]["relative"]["hr@1"] is None
    assert out["intervals"]["fewshot"]["hr@1"] is None
    assert out["repeat"] == {"targets": 0, "users": 0, "metrics": {}, "intervals": {}}
    assert out["differences"]["gain_over_zeroshot"]["mrr"]["verdict"] == "no difference shown"


def test_the_same_input_gives_the_same_bytes() -> None:
    assert json.dumps(summarise(records(), seed=1)) == json.dumps(summarise(records(), seed=1))


def test_per_user_columns() -> None:
    data = records()
    columns = per_user(data)
    assert columns["user"].tolist() == sorted(set(data.user.tolist()))
    assert columns["n_targets"].sum() == data.user.size
    weighted = (columns["fewshot.mrr"] * columns["n_targets"]).sum() / data.user.size
    assert weighted == pytest.approx(summarise(data, n_resamples=10)["metrics"]["fewshot"]["mrr"])


def test_records_that_disagree_are_refused() -> None:
    one = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="disagree on which targets are unknown"):
        TargetRecords(one, one, one, one > 0, {"a": np.array([1, 41]), "b": np.array([1, 2])}, N_ITEMS)
    with pytest.raises(ValueError, match="wrong: \\['a'\\]"):
        TargetRecords(one, one, one, one > 0, {"a": np.array([1])}, N_ITEMS)


def test_a_figure_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DivergedError, match=r"metrics\.json: metrics\.fewshot\.hr@1: nan"):
        plain_json({"metrics": {"fewshot": {"hr@1": np.float64("nan")}}}, "metrics.json")
    with pytest.raises(DivergedError, match=r"h: 1: inf"):
        plain_json([0.0, math.inf], "h")
    monkeypatch.setattr(summary_module.iv, "holm", lambda p: p * math.nan)  # a planted fault
    with pytest.raises(DivergedError, match=r"differences\.gain_over_control\.hr@1\.p_holm"):
        summarise(records(), n_resamples=20)


def test_plain_json_keeps_values_and_refuses_what_json_cannot_hold() -> None:
    value = {"a": np.int64(3), "b": np.array([1.5, 2.0]), "c": (True, None, "x"), "d": np.float32(0.5)}
    assert plain_json(value, "w") == {"a": 3, "b": [1.5, 2.0], "c": [True, None, "x"], "d": 0.5}
    with pytest.raises(TypeError, match="not text"):
        plain_json({1: 2}, "w")
    with pytest.raises(TypeError, match="has no place in JSON"):
        plain_json({"a": object()}, "w")
