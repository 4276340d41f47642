"""Tables: every figure of the document shown, at most 100 columns, words only where the interval allows them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metarec.metrics.summary import TargetRecords, summarise
from metarec.report.tables import LABELS, WIDTH, funnel_table, plain_text, results_table, show


def document(n_users: int = 60, methods: tuple[str, ...] = tuple(LABELS), **extra: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(n_users), 10)
    quality = {
        "pretrained": 1.05,
        "bayes_zeroshot": 0.5,
        "bayes_fewshot": 0.2,
        "zeroshot": 1.0,
        "control": 0.98,
        "fewshot": 0.6,
    }
    base = np.exp(rng.normal(2.5, 1.2, user.size))
    ranks = {
        m: np.minimum((base * quality[m] * np.exp(rng.normal(0, 0.2, user.size))).astype(int) + 1, 500) for m in methods
    }
    records = TargetRecords(user, user, np.tile(np.arange(10), n_users), rng.random(user.size) < 0.2, ranks, 500)
    return {**summarise(records, n_resamples=200), **extra}


CONDITIONS: dict[str, Any] = {
    "protocol": {
        "split": "test", "split_by": "user_disjoint", "leaky": True, "split_note": "the log has no clock",
        "n_support": 5, "n_query": 10, "ties": "conservative",
    },
    "control": {"lr": 0.3, "steps": 5},
    "seeds": {"run": 1, "split": 20260107},
    "beyond": {"fewshot": {"coverage@10": 0.4, "popularity_percentile@10": 0.87}},
}  # fmt: skip


def test_methods_differences_shares_and_conditions() -> None:
    data = document(**CONDITIONS)
    text = plain_text(results_table(data, title="ml1m, fomaml"))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in text
    assert "…" not in text
    for label in (
        *LABELS.values(),
        "gain over control",
        "gain over zero-shot",
        "share of gap: few-shot",
        "share of gap: control",
    ):
        assert any(line.startswith(label) for line in lines), label
    few = next(line for line in lines if line.startswith("few-shot (meta)"))
    low, high = data["intervals"]["fewshot"]["ndcg@10"]
    figures = data["metrics"]["fewshot"]
    for shown in (figures["hr@1"], figures["hr@20"], figures["mrr"], figures["ndcg@10"]):
        assert f"{shown:.4f}".lstrip("0") in few
    assert f"[{low:.3f},{high:.3f}]".replace("0.", ".") in few
    assert "gain over control: HR@10 better (p .005, Holm" in text
    assert "control over pretrained: HR@10 " in text
    assert "60 users, 60 episodes, 600 targets; unknown targets 0.00 %" in text
    assert "split test of user_disjoint; K=5, Q=10; ties conservative; the log has no clock" in text
    assert "LEAKY" in text
    assert "step size 0.3, 5 steps" in text
    assert "seeds: run 1, split 20260107" in text
    assert "coverage@10: few-shot .400" in text
    assert "repeat targets:" in text
    assert "novel targets:" in text


def test_a_run_without_bayes_or_control_and_one_user() -> None:
    text = plain_text(results_table(document(n_users=1, methods=("zeroshot", "fewshot"))))
    assert "share of gap" not in text
    assert "control" not in text
    assert "LEAKY" not in text
    assert "[none]" in text
    assert "better" not in text.replace("no better", "")


def test_a_narrow_terminal_cuts_no_figure() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(results_table(document()))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in stream.getvalue()
    assert lines[0].split() == ["HR@1", "HR@5", "HR@10", "HR@20", "NDCG@10", "MRR"]


def test_the_headline_is_chosen_by_the_caller() -> None:
    text = plain_text(results_table(document(), headline=("hr@1", "hr@5")))
    assert "gain over control: HR@1 " in text
    assert max(map(len, text.splitlines())) <= WIDTH
    with pytest.raises(ValueError, match="at most two"):
        results_table(document(), headline=("hr@1", "hr@5", "mrr"))


def test_output_that_is_no_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    show(results_table(document()), stream)
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= WIDTH
    show(funnel_table([]))
    assert "\x1b" not in capsys.readouterr().out


def test_funnel() -> None:
    steps = [
        {"step": "read", "rows": 3655, "users": 822, "items": 776, "sessions": None, "dropped": 0, "why": "events.csv"},
        {"step": "sessions of two or more", "rows": 2894, "users": 378, "items": 600, "sessions": 561, "dropped": 761,
         "why": "a gap of 30 minutes ends a session, shorter ones have no pair"},
    ]  # fmt: skip
    counts = {"pairs": {"train": 693, "val": 545, "test": 1095}, "unknown_target_share": {"val": 0.01, "test": 0.025}}
    text = plain_text(funnel_table(steps, counts))
    assert "3,655" in text
    assert "1,095" in text
    assert "0.0250" in text
    assert "unknown target share" in text
    assert max(map(len, text.splitlines())) <= WIDTH
