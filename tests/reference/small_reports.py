"""Finished runs without training: directories such as `metarec train` seals, with figures from a seeded draw.

What a run may hold beside (slices, tuning, k_curve, grid, latency) is written by hand here, in the formats of metrics.json,
so that a page with every section can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.config.fields import group_schema
from metarec.config.schema import TrainConfig
from metarec.metrics import LISTS
from metarec.metrics.summary import TargetRecords, per_user, summarise
from metarec.runs import rundir

Json = dict[str, Any]
HOSTILE = "<script>document.title='ran'</script>\"'&<img src=x onerror=alert(1)>"
METHODS = {"pretrained": 0.0, "control": 0.1, "zeroshot": 0.2, "fewshot": 0.5}  # how much better than chance
N_ITEMS, Q = 50, 4


def records(n_users: int, seed: int, methods: Mapping[str, float]) -> TargetRecords:
    """Ranks of Q targets of every user; a method's figures depend on `seed` and its strength alone."""
    ranks = {}
    for method, strength in methods.items():
        rng = np.random.default_rng([seed, sum(method.encode())])
        ranks[method] = np.ceil(N_ITEMS * rng.random(n_users * Q) ** (1.5 + 2 * strength)).astype(np.int64)
    return TargetRecords(
        user=np.repeat(np.arange(n_users), Q),
        episode=np.repeat(np.arange(n_users), Q),
        position=np.tile(np.arange(Q), n_users),
        repeat=np.random.default_rng(0).random(n_users * Q) < 0.3,
        ranks=ranks,
        n_items=N_ITEMS,
    )


def write_run(
    path: Path, *, seed: int = 1, algorithm: str = "meta_sgd", gain: float = 0.5, n_users: int = 60,
    dataset: str = "synthetic", protocol: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None, user: str = "user", sealed: bool = True,
) -> Path:  # fmt: skip
    """A run of `algorithm` whose few-shot is better by `gain`; `config` {dotted key: value}, `extra` further blocks."""
    found = records(n_users, seed, {**METHODS, "fewshot": gain})
    options = _config(seed, algorithm, dataset)
    for key, value in (config or {}).items():
        node = options
        *sections, last = key.split(".")
        for name in sections:
            node = node[name]
        node[last] = value
    document = {
        "model": "gru4rec", "dataset": dataset, "algorithm": algorithm, "residual": "context", "config": options,
        **summarise(found, n_resamples=200, seed=seed),
        "beyond": {method: {**dict.fromkeys(LISTS, 0.6), "coverage@10": 0.9} for method in METHODS},
        "control": {"lr": 0.1, "steps": 3, "value": 0.25},
        "control_grid": [{"lr": lr, "steps": s, "ndcg@10": 0.2 + lr / 10 + s / 100} for lr in (0.01, 0.1) for s in (1, 3)],
        "protocol": {
            "split": "test", "split_by": "user_time", "leaky": False, "split_note": "global time cut", "n_support": 5,
            "n_query": Q, "ties": "conservative", "episodes_sha256": "e" * 64, "max_len": 50, "longest_prefix": 12,
            "candidates": "the catalogue",
            "n_items": N_ITEMS, "data_sha256": "d" * 64, "vocabulary_sha256": "f" * 64, **(protocol or {}),
        },
        "seeds": {"run": seed, "split": 20260107},
        "training": {"best_step": 20, "steps": 40, "stopped_early": False, "val_ndcg@10": 0.3, "warm_start": {}},
        "cost": {"seconds_per_step": 0.1, "seconds": 4.0, "steps": 40, "peak_bytes": 5 * 2**20, "growth_bytes": 2**20,
                 "loss": 3.5},
        "seconds": {"until_trained": 5.0, "total": 6.0},
        **(extra or {}),
    }  # fmt: skip
    path.mkdir(parents=True)
    columns = per_user(found)
    columns = {"user_id": np.array([f"{user} {row}" for row in columns.pop("user")]), **columns}
    pq.write_table(pa.table(columns), path / "per_user.parquet")
    _write(path / "metrics.json", document)
    lines = [
        {"step": s, "kind": "train", "loss": 4 - s / 50, "grad_norm": s / 10, "lr": 0.01} for s in range(10, 50, 10)
    ]
    lines += [
        {"step": s, "kind": "val", **{m: {"ndcg@10": 0.2 + s / 400 + n / 50} for n, m in enumerate(METHODS)}}
        for s in range(0, 50, 10)
    ]
    lines.sort(key=lambda line: line["step"])
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [
        {
            "step": "input",
            "rows": 900,
            "users": n_users,
            "items": N_ITEMS,
            "sessions": None,
            "dropped": 0,
            "why": HOSTILE,
        }
    ]
    _write(path / "funnel.json", {"steps": steps, "counts": {"users": {"train": 10, "val": 5, "test": n_users}}})
    _write(path / "environment.json", {"metarec": "0.1.0", "python": "3.11", "command": ["metarec", HOSTILE]})
    _write(path / "overrides.json", [f"algorithm={algorithm}", f"seed={seed}"])
    (path / "config.yaml").write_text("seed: 1\n")
    if sealed:
        rundir.seal(path)
    return path


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _config(seed: int, algorithm: str, dataset: str) -> Json:
    schema = group_schema("algorithm", algorithm)
    assert schema is not None
    options = asdict(TrainConfig(seed=seed, algorithm=schema()))
    options["dataset"] |= {"name": dataset, "source": "synthetic"}
    return options


def everything() -> Json:
    """The blocks that a run has when it was asked for all there is."""
    ks = [0, 1, 2, 3, 5, 10, 20]
    interval = {"mean": 0.02, "low": -0.01, "high": 0.05}

    def curve(top: float) -> list[Json]:
        return [
            {"mean": 0.2 + top * k / (k + 3), "low": 0.18 + top * k / (k + 3), "high": 0.22 + top * k / (k + 3)}
            for k in ks
        ]

    def part(label: str, low: int, high: int) -> Json:
        metrics = {method: {"ndcg@10": 0.2 + strength / 10, "hr@10": 0.4} for method, strength in METHODS.items()}
        return {"label": label, "low": low, "high": high, "users": 20, "targets": 80, "metrics": metrics,
                "gain": {"ndcg@10": interval, "hr@10": interval}}  # fmt: skip

    tried = [{"lr": lr, "steps": s, "ndcg@10": 0.2 + lr / 9 - s / 99} for lr in (0.01, 0.1, 1.0) for s in (1, 3, 5)]
    return {
        "slices": {
            "history_length": [part("6-12 events", 6, 12), part("13-40 events", 13, 40)],
            "target_popularity": [part("rare", 0, 9), part(HOSTILE, 10, 99)],
        },
        "tuning": {
            "control": {"chosen": {"lr": 1.0, "steps": 1}, "value": 0.3, "metric": "ndcg@10", "users": 40, "tried": tried},
            "markov": {"chosen": {"smoothing": 0.1}, "value": 0.2, "metric": "ndcg@10", "users": 40,
                       "tried": [{"smoothing": s, "ndcg@10": 0.2 - s} for s in (0.1, 0.2)]},
        },
        "k_curve": {
            "ks": ks, "users": 40, "targets": 160, "split": "test",
            "methods": {"pretrained": {"ndcg@10": curve(0.0)}, "control": {"ndcg@10": curve(0.1)},
                        "in_context": {"ndcg@10": curve(0.12)}, "fewshot": {"ndcg@10": curve(0.2)}},
        },
        "grid": {
            "metric": "ndcg@10", "split": "val", "users": 40, "lrs": [0.01, 0.1, 1.0], "steps": [1, 3, 5, 10],
            "methods": {"control": [[0.2, 0.21, 0.22, 0.23], [0.25, 0.27, 0.26, None], [0.1, None, None, None]],
                        "fewshot": [[0.3, 0.31, 0.32, 0.33], [0.35, 0.37, 0.36, 0.3], [0.1, 0.05, None, None]]},
        },
        "latency": {"device": "cpu", "threads": 1, "users": 40, "batched_seconds_per_user": 0.0012,
                    "single_seconds_per_user": 0.011, "single_median": 0.010, "single_p95": 0.019},
    }  # fmt: skip
