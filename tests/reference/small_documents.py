"""Documents as metrics.json has them, of random ranks: for the tables, Markdown and LaTeX."""

from __future__ import annotations

from typing import Any

import numpy as np

from metarec.baselines import NAMES
from metarec.metrics import LISTS
from metarec.metrics.curve import curve
from metarec.metrics.summary import TargetRecords, summarise

PANEL = (
    *NAMES, "pretrained", "in_context", "in_context_user", "control", "head_only", "scratch", "zeroshot", "fewshot",
    "bayes_zeroshot", "bayes_fewshot",
)  # fmt: skip
_QUALITY = {"pretrained": 1.05, "bayes_zeroshot": 0.5, "bayes_fewshot": 0.2, "zeroshot": 1.0, "control": 0.98,
            "fewshot": 0.6}  # fmt: skip
CONDITIONS: dict[str, Any] = {
    "protocol": {
        "split": "test", "split_by": "user_disjoint", "leaky": True, "split_note": "the log has no clock",
        "n_support": 5, "n_query": 10, "ties": "conservative",
    },
    "control": {"lr": 0.3, "steps": 5},
    "seeds": {"run": 1, "split": 20260107},
    "beyond": {"fewshot": {**dict.fromkeys(LISTS, 0.87), "coverage@10": 0.4}},
}  # fmt: skip
TUNING: dict[str, Any] = {
    "tuning": {
        "control": {"chosen": {"lr": 0.3, "steps": 5}, "value": 0.2, "metric": "ndcg@10", "users": 75, "tried": [{}, {}]},
        "v_sknn": {
            "chosen": {"k": 100, "sample": 500}, "value": 0.21, "metric": "ndcg@10", "users": 75, "tried": [{}, {}],
        },
    }
}  # fmt: skip
METHODS = ("bayes_zeroshot", "bayes_fewshot", "pretrained", "zeroshot", "control", "fewshot")


def records(n_users: int = 60, methods: tuple[str, ...] = METHODS, sliced: bool = False) -> TargetRecords:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(n_users), 10)
    base = np.exp(rng.normal(2.5, 1.2, user.size))
    ranks = {
        m: np.minimum((base * _QUALITY.get(m, 1.5) * np.exp(rng.normal(0, 0.2, user.size))).astype(int) + 1, 500)
        for m in methods
    }
    position, repeat = np.tile(np.arange(10), n_users), rng.random(user.size) < 0.2
    if not sliced:
        return TargetRecords(user, user, position, repeat, ranks, 500)
    counts = np.sort(rng.integers(1, 5000, 500))[::-1]
    return TargetRecords(
        user, user, position, repeat, ranks, 500, history=rng.integers(5, 4000, n_users)[user],
        popularity=counts[rng.integers(0, 500, user.size)], item_counts=counts,
    )  # fmt: skip


def document(
    n_users: int = 60, methods: tuple[str, ...] = METHODS, sliced: bool = False, **extra: Any
) -> dict[str, Any]:
    return {**summarise(records(n_users, methods, sliced), n_resamples=200), **extra}


def curved(ks: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20)) -> dict[str, Any]:
    """A curve over the published support sizes."""
    return curve({k: records(40, ("pretrained", "control", "fewshot")) for k in ks}, split="test", n_resamples=50)
