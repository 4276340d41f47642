"""Which methods are compared, the family of Holm's correction, and each entry against the plain functions."""

from __future__ import annotations

import numpy as np
import pytest

from metarec.metrics import METRICS
from metarec.metrics import intervals as iv
from metarec.metrics.differences import n_flips, pairs_of, subject
from metarec.metrics.records import TargetRecords
from metarec.metrics.summary import summarise

PANEL = ("random", "popularity", "markov", "pretrained", "in_context", "control", "head_only", "scratch", "zeroshot",
         "fewshot", "bayes_zeroshot", "bayes_fewshot")  # fmt: skip


def records(methods: tuple[str, ...], n_users: int = 60, seed: int = 0, better: float = 1.0) -> TargetRecords:
    """Ranks of 200 items; few-shot's are divided by `better`."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), 5)
    ranks = {m: rng.integers(1, 201, user.size) for m in methods}
    if "fewshot" in ranks:
        ranks["fewshot"] = np.maximum(1, (ranks["fewshot"] / better).astype(np.int64))
    return TargetRecords(user, user, np.tile(np.arange(5), n_users), user < 0, ranks, 200)


def test_fewshot_is_compared_with_every_row_but_the_optimum() -> None:
    found = pairs_of(PANEL)
    assert list(found)[:4] == [
        "gain_over_control",
        "gain_over_pretrained",
        "gain_over_zeroshot",
        "control_over_pretrained",
    ]
    others = set(PANEL) - {"fewshot", "bayes_zeroshot", "bayes_fewshot"}
    assert set(found) == {f"gain_over_{m}" for m in others} | {"control_over_pretrained"}
    assert all(found[f"gain_over_{m}"] == ("fewshot", m) for m in others)


def test_without_fewshot_zeroshot_is_the_subject() -> None:
    methods = ("popularity", "control", "zeroshot", "bayes_zeroshot")
    assert subject(methods) == "zeroshot"
    assert pairs_of(methods) == {
        "zeroshot_over_popularity": ("zeroshot", "popularity"),
        "zeroshot_over_control": ("zeroshot", "control"),
    }
    assert pairs_of(["popularity"]) == pairs_of(["zeroshot"]) == {}


def test_entries_are_those_of_the_plain_functions() -> None:
    data = records(("control", "fewshot"))
    entry = summarise(data, n_resamples=300, confidence=0.9, seed=4)["differences"]["gain_over_control"]
    for name, metric in METRICS.items():
        a, b = (metric(data.ranks[m], 200) for m in ("fewshot", "control"))
        flips = n_flips(1, 300, 0.9)
        plain = iv.paired_difference(a, b, data.user, n_resamples=300, confidence=0.9, seed=4)
        assert entry[name]["effect_size"] == pytest.approx(plain.effect_size)
        assert entry[name]["detectable"] == pytest.approx(plain.detectable)
        p = iv.paired_difference(a, b, data.user, n_resamples=flips, confidence=0.9, seed=4).p_value
        assert entry[name]["p_value"] == p


def test_the_family_is_the_whole_table() -> None:
    out = summarise(records(PANEL), n_resamples=60)
    entries = [row[metric] for row in out["differences"].values() for metric in METRICS]
    assert len(entries) == 10 * len(METRICS)
    wanted = iv.holm([entry["p_value"] for entry in entries])
    assert [entry["p_holm"] for entry in entries] == pytest.approx(wanted.tolist())
    assert out["bootstrap"]["n_flips"] == 100 * len(entries)  # 5 / alpha for each member


def test_a_long_panel_does_not_hide_what_is_there() -> None:
    """With 200 flips for n differences (60 or more) no p-value after Holm could be below n / 201."""
    out = summarise(records(PANEL, better=20.0), n_resamples=200)
    for name in ("gain_over_control", "gain_over_random"):
        assert out["differences"][name]["mrr"]["p_holm"] <= 0.01
        assert out["differences"][name]["mrr"]["verdict"] == "better"


def test_figures_that_do_not_exist_are_null() -> None:
    user = np.zeros(3, dtype=np.int64)
    ranks = {"control": np.array([3, 1, 2]), "fewshot": np.array([1, 1, 1])}
    one = summarise(TargetRecords(user, user, np.arange(3), user > 0, ranks, 9), n_resamples=20)
    entry = one["differences"]["gain_over_control"]["mrr"]
    assert entry["effect_size"] is None
    assert entry["detectable"] is None
    users = np.arange(3)
    alike = TargetRecords(users, users, users, users < 0, {"control": ranks["control"], "fewshot": ranks["control"]}, 9)
    entry = summarise(alike, n_resamples=20)["differences"]["gain_over_control"]["mrr"]
    assert entry["effect_size"] is None
    assert (entry["detectable"], entry["p_value"], entry["verdict"]) == (0.0, 1.0, "no difference shown")
