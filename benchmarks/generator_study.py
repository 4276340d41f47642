"""What a generator of adapters reaches: every row with intervals, what a teacher is worth, and which loss is.

    python benchmarks/generator_study.py worlds     contexts and low rank, and a model trained on whole histories
    python benchmarks/generator_study.py logs       contexts and low rank on ml1m and mooccubex
    python benchmarks/generator_study.py losses     each loss and a mix, in the worlds
    python benchmarks/generator_study.py top        the generator on top of the model that reads whole histories
    python benchmarks/generator_study.py worlds --tables-only      of the runs that are there


Three seeds each. Every cell is a run of `metarec train` in a directory of its own below --out; a finished one is not run
again, one that was killed is resumed. Two run at a time (--parallel). Intervals: of the mean over three seeds, whose test
users are the same, users are drawn with all their targets under all seeds. The figure that a world is known by: HR@5 in
preference, HR@1 in transition; else NDCG@10.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Json = dict[str, Any]
Interval = tuple[float, float, float]
DRAWS = 5000
SEEDS = (1, 2, 3)
WORLDS = {
    "preference": ["dataset=synthetic"],
    "transition": ["dataset=synthetic", "dataset.world.kind=transition"],
}
SHORT = [
    "train.steps=400", "train.eval_every=200", "pretrain.epochs=5", "evaluation.panel=[popularity]",
    "evaluation.control.users=128", "evaluation.control.lrs=[0.01,0.1,1.0]", "evaluation.control.steps=[1,3]",
    "algorithm.teacher.pairs=16",
]  # fmt: skip  # on two cores
LOGS = {name: [f"dataset={name}", *SHORT] for name in ("ml1m", "mooccubex")}
METRIC = {"preference": "hr@5", "transition": "hr@1"}
TARGETS = 'residual.targets=["gru.weight_ih_l0","fc.weight"]'
LORA = ["residual=lora", TARGETS]
TAUGHT = "algorithm.loss."
FEWER = ["algorithm.teacher.users=2000"]
VARIANTS: dict[str, list[str]] = {
    "context": ["residual=context"],
    "lora": [*LORA, f"{TAUGHT}task=0", f"{TAUGHT}delta_w=1", "algorithm.fine_tune=0.7"],
    "histories": ["algorithm=supervised", "dataset.history=user"],
    "task": LORA,
    "delta_w": [*LORA, f"{TAUGHT}task=0", f"{TAUGHT}delta_w=1"],
    "ab": [*LORA, f"{TAUGHT}task=0", f"{TAUGHT}ab=1"],
    "functional": [*LORA, f"{TAUGHT}task=0", f"{TAUGHT}functional=1"],
    "mix": [*LORA, f"{TAUGHT}delta_w=1", f"{TAUGHT}functional=1"],
    "delta_w, then task": [*LORA, f"{TAUGHT}task=0", f"{TAUGHT}delta_w=1", "algorithm.fine_tune=0.5"],
}
FIFTH = ["train.steps=600", "train.eval_every=200"]
STUDIES: dict[str, tuple[dict[str, list[str]], list[str]]] = {
    "worlds": (WORLDS, ["context", "lora", "histories"]),
    "logs": (LOGS, ["context", "lora"]),
    "losses": (
        {name: [*words, *FIFTH] for name, words in WORLDS.items()},
        ["task", "delta_w", "ab", "functional", "mix", "delta_w, then task"],
    ),
    "top": ({name: [*words, "dataset.history=user"] for name, words in WORLDS.items()}, ["context"]),
}
DIFFERENCES = (
    ("generated - inner loop", "fewshot", "inner_loop"),
    ("generated - control", "fewshot", "control"),
    ("generated - mean teacher", "fewshot", "mean_teacher"),
    ("another's support - pretrained", "other_support", "pretrained"),
    ("refined - generated", "refined", "fewshot"),
)
ROWS = (
    "pretrained", "control", "mean_teacher", "fewshot", "refined", "inner_loop", "teacher", "other_support", "zeroshot",
    "in_context", "bayes_fewshot",
)  # fmt: skip


def cell(root: Path, words: list[str]) -> Path:
    """The finished run of a cell, run or resumed now unless it is there."""
    for done in sorted(root.glob("train/*/manifest.json")):
        return done.parent
    begun = sorted(root.glob("train/*/checkpoints"))
    recipe = [] if "algorithm=supervised" in words else ["experiment=generator"]
    asked = [f"resume={begun[-1].parent}"] if begun else [*recipe, *words, f"output_dir={root}"]
    with open(root / "log.txt", "a") as log:
        subprocess.run([sys.executable, "-m", "metarec", "train", *asked], check=True, stdout=log, stderr=log,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    return next(root.glob("train/*/manifest.json")).parent


@functools.cache
def draws(users: int) -> np.ndarray:
    """How often each user is drawn, [1 + DRAWS, users]: first the users as they are."""
    found = np.random.default_rng(1).multinomial(users, np.full(users, 1 / users), size=DRAWS)
    return np.concatenate([np.ones((1, users)), found]).astype(np.float64)


def interval(
    tables: list[Any], metric: str, row: str, less: str | None = None, top: str | None = None
) -> Interval | None:
    """Of `row`, of row - less, or of (row - less) / (top - less): over all targets, with its 95 % percentile interval.

    tables: per_user.parquet of the same users, one a seed; None where a row is not in all of them.
    """
    names = [f"{one}.{metric}" for one in (row, less, top) if one is not None]
    if not all(name in table for table in tables for name in names):
        return None
    weights = [table["n_targets"].to_numpy(dtype=np.float64) for table in tables]
    weight = np.sum(weights, axis=0)
    sums = [
        np.sum([t[name].to_numpy(dtype=np.float64) * w for t, w in zip(tables, weights, strict=True)], axis=0)
        for name in names
    ]
    often = draws(len(weight))
    count = often @ weight
    values = [often @ total / count for total in sums]
    found = values[0]
    if less is not None:
        found = found - values[1]
    if top is not None:
        found = found / (values[2] - values[1])
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return float(found[0]), float(low), float(high)


def figure(found: Interval | None, sign: bool = False) -> str:
    """A figure with its interval, or a dash."""
    form = "+.4f" if sign else ".4f"
    return "-" if found is None else f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def share(found: Interval | None) -> str:
    """A share in per cent, with its interval, or a dash."""
    return "-" if found is None else f"{100 * found[0]:.0f} % [{100 * found[1]:.0f}, {100 * found[2]:.0f}]"


def line(label: str, cells: list[str]) -> None:
    """A line of a table, unless nothing stands in it."""
    if any(one != "-" for one in cells):
        print(f"| {label} | " + " | ".join(cells) + " |")


def mean_of(documents: Iterable[Json], *keys: str) -> str:
    """The mean over runs of a number in `amortised.closeness`, or a dash."""
    values = []
    for document in documents:
        at: Any = document.get("amortised", {}).get("closeness", {})
        for key in keys:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, int | float):
            values.append(float(at))
    return f"{np.mean(values):.3f}" if values else "-"


def tables(dataset: str, found: dict[str, list[Path]]) -> None:
    """All rows of a data set as Markdown, one table; a column a variant."""
    metric = METRIC.get(dataset, "ndcg@10")
    read = {
        name: ([pq.read_table(path / "per_user.parquet").to_pandas() for path in paths],
               [json.loads((path / "metrics.json").read_text()) for path in paths])
        for name, paths in found.items()
    }  # fmt: skip
    users = len(next(iter(read.values()))[0][0])
    seeds = sorted({document["seeds"]["run"] for _, documents in read.values() for document in documents})
    print(f"\n**{dataset}**, {metric.upper()}, {users:,} test users, seeds {seeds}\n")
    print("| row | " + " | ".join(read) + " |\n|---|" + "---|" * len(read))
    every = [t for t, _ in read.values()]
    for row in ROWS:
        line(row, [figure(interval(t, metric, row)) for t in every])
    for label, row, less in DIFFERENCES:
        line(f"*{label}*", [figure(interval(t, metric, row, less), True) for t in every])
    for label, top in (("teacher", "teacher"), ("Bayes few-shot", "bayes_fewshot")):
        line(
            f"*share of the gap to {label}*", [share(interval(t, metric, "fewshot", "pretrained", top)) for t in every]
        )
    for label, keys in (
        ("relative error of dW, generated", ("all", "generated", "relative_error")),
        ("relative error of dW, mean teacher", ("all", "mean_teacher", "relative_error")),
        ("cosine of dW, generated", ("all", "generated", "cosine")),
        ("cosine of dW, mean teacher", ("all", "mean_teacher", "cosine")),
        ("KL teacher to generated, nats", ("kl", "generated_from_teacher")),
        ("KL pretrained to teacher, nats", ("kl", "teacher_from_pretrained")),
    ):  # fmt: skip
        line(label, [mean_of(documents, *keys) for _, documents in read.values()])
    for label, key in (("seconds of a run", "seconds"), ("numbers a user", "adapted_numbers")):
        line(label, [f"{np.mean([_of(one, key) for one in documents]):,.0f}" for _, documents in read.values()])


def _of(document: Json, key: str) -> float:
    return float(document["seconds"]["total"] if key == "seconds" else document["cost"].get(key) or 0)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("outputs/generator"))
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", default=None, help="data sets")
    parser.add_argument("--tables-only", action="store_true")
    options, words = parser.parse_known_args()
    datasets, variants = STUDIES[options.study]
    datasets = {name: own for name, own in datasets.items() if options.only is None or name in options.only}
    asked: dict[tuple[str, str, int], tuple[Path, list[str]]] = {}
    for seed in options.seeds:
        for dataset, of_data in datasets.items():
            for variant in variants:
                folder = "-".join((options.study, dataset, variant.replace(",", "").replace(" ", "_"), str(seed)))
                root = options.out / folder
                root.mkdir(parents=True, exist_ok=True)
                own = [*of_data, *VARIANTS[variant], *(FEWER if options.study == "logs" and variant == "lora" else [])]
                asked[dataset, variant, seed] = (root, [*own, f"seed={seed}", "hardware.threads=1",
                                                        "logger.console=plain", *words])  # fmt: skip
    if not options.tables_only:
        with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
            waiting = {pool.submit(cell, *what): key for key, what in asked.items()}
            for done in concurrent.futures.as_completed(waiting):
                trouble = done.exception()
                print(f"{' '.join(map(str, waiting[done]))}: {trouble or 'done'}", file=sys.stderr, flush=True)
    for dataset in datasets:
        found: dict[str, list[Path]] = {}
        for variant in variants:
            paths = [path.parent for seed in options.seeds
                     for path in sorted(asked[dataset, variant, seed][0].glob("train/*/manifest.json"))]  # fmt: skip
            if paths:
                found[variant] = paths
        if found:
            tables(dataset, found)


if __name__ == "__main__":
    main()
