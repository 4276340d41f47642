"""Does a memory beat counting? `experiment=memory` on several splits, and the interval of the difference over all of them.

    python benchmarks/memory.py [--splits 5] [--out DIR] [words of metarec train ...]

Every split is a run of its own (a finished one is not run again). A user may stand in the test users of several splits, so
intervals draw users with all their targets in all splits; the figure is the mean over targets. The row of counting
(`frequent_support`) is tuned on validation with the budget of the fine-tune control, like every row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

DRAWS, METRICS, ROWS = 10_000, ("hr@1", "hr@10", "ndcg@10"), ("pretrained", "control", "frequent_support", "fewshot")


def run(split: int, out: Path, words: list[str]) -> Path:
    """The finished run of a split, run now unless it is there."""
    root = out / f"split-{split}"
    for done in sorted(root.glob("train/*/manifest.json")):
        return done.parent
    command = ["metarec", "train", "experiment=memory", f"dataset.split.seed={split}", f"output_dir={root}", *words]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return next(root.glob("train/*/manifest.json")).parent


def interval(values: np.ndarray, weights: np.ndarray, user: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [n] by weights [n] (targets), and its 95 % percentile interval over draws of users."""
    names, row = np.unique(user, return_inverse=True)
    total = np.bincount(row, values * weights, len(names))
    count = np.bincount(row, weights, len(names))
    generator = np.random.default_rng(1)
    often = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    drawn = (often @ total) / (often @ count)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(total.sum() / count.sum()), float(low), float(high)


def main() -> None:
    """Run, then print two tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/memory"))
    options, words = parser.parse_known_args()
    tables, seconds = [], 0.0
    print("| split | test users | " + " | ".join(f"{row} HR@10 / NDCG@10" for row in ROWS) + " | gate |")
    print("|---|---|" + "---|" * (len(ROWS) + 1))
    for split in range(1, options.splits + 1):
        path = run(split, options.out, words)
        document = json.loads((path / "metrics.json").read_text())
        seconds += document["seconds"]["total"]
        tables.append(pq.read_table(path / "per_user.parquet").to_pandas())
        figures = [f"{document['metrics'][r]['hr@10']:.4f} / {document['metrics'][r]['ndcg@10']:.4f}" for r in ROWS]
        print(f"| {split} | {document['counts']['users']} | " + " | ".join(figures) + f" | {gate(path):.2f} |")
    column = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].columns}
    print("\n| few-shot minus | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for against in ROWS[:-1]:
        cells = []
        for metric in METRICS:
            difference = column[f"fewshot.{metric}"] - column[f"{against}.{metric}"]
            mean, low, high = interval(difference, column["n_targets"].astype(float), column["user_id"])
            cells.append(f"{mean:+.4f} [{low:+.4f},{high:+.4f}]")
        print(f"| {against} | " + " | ".join(cells) + " |")
    users, n = len(set(column["user_id"])), len(column["user_id"])
    print(f"\n{options.splits} splits, {users} users in {n} episodes, {seconds / 60:.0f} minutes")


def gate(path: Path) -> float:
    """What share of the probability the memory has in the kept model."""
    from safetensors.torch import load_file

    best = json.loads((path / "metrics.json").read_text())["checkpoint"]
    (file,) = (path / best).glob("*.safetensors")
    return float(load_file(str(file))["phi/memory.gate"].sigmoid())


if __name__ == "__main__":
    main()
