"""Claim: a change of the code's plan changes no number: the losses of a fixed run of every algorithm are bitwise equal.

    python benchmarks/same_losses.py --against HEAD~5                # this tree and a commit, about 6 minutes
    python benchmarks/same_losses.py --against v0.1.0 --only algorithms

Both trees run the same short sweeps of `metarec train` on the embedded world, one thread, with caches of their own: every
algorithm with every residual, every algorithm on SASRec and on NARM, every objective, pretraining alone; and Conv4 where
METAREC_DATA names the public logs. Compared are all losses, gradient norms and validation figures of meta-training and
pretraining, and the test figures, as the floats they are. Exits with 1 and names the first difference of each run that
differs, or that only one of the trees can do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = "fomaml,maml,anil,meta_sgd,maml_pp,reptile,imaml"
SMALL = [
    "dataset.world.n_users=120", "dataset.world.n_items=60", "train.steps=6", "train.meta_batch_size=8",
    "train.eval_every=3", "pretrain.epochs=1", "pretrain.lr=0.003", "pretrain.min_steps=20", "pretrain.batch_size=256",
    "evaluation.panel=none", "evaluation.bootstrap=9",
    "evaluation.control.lrs=[0.01,0.1]", "evaluation.control.steps=[1,3]", "logger.every=1", "logger.plots=false",
]  # fmt: skip
IMAGES = [
    "dataset=omniglot", "model=conv4", "model.filters=8", "warm_start=none", "dataset.images.n_val=8",
    "dataset.images.n_test=8",
    "train.steps=4", "train.meta_batch_size=4", "train.eval_every=2", "evaluation.panel=none", "evaluation.bootstrap=20",
    "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1]", "logger.every=1", "logger.plots=false",
]  # fmt: skip
SWEEPS: dict[str, list[str]] = {
    "algorithms": [f"algorithm={ALGORITHMS}", "residual=off,on,context", *SMALL],
    "sasrec": [f"algorithm={ALGORITHMS}", "model=sasrec", "model.dim=16", *SMALL],
    "narm": [f"algorithm={ALGORITHMS}", "model=narm", "model.hidden_dim=16", "residual=off,context", "pretrain.lr=0.003",
             "algorithm.inner.lr=0.3", *SMALL],
    "objectives": [
        "objective=cross_entropy,chunked_cross_entropy,sampled_softmax,bpr_max,bce,gbce", "algorithm=fomaml", "residual=off",
        *SMALL,
    ],
    "supervised": ["algorithm=supervised", "residual=off", "model=gru4rec,sasrec",
                   *[word for word in SMALL if not word.startswith("train.")]],
    "images": [f"algorithm={ALGORITHMS}", "residual=off", *IMAGES],
}  # fmt: skip


def figures(tree: Path, words: list[str], scratch: Path) -> dict[str, list[Any]] | str:
    """Name of a run of the sweep -> its numbers in the order in which they came; a line where the tree refuses it."""
    out = scratch / "out"
    environment = os.environ | {
        "PYTHONPATH": str(tree), "METAREC_CACHE": str(scratch / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "metarec", "train", "-m", *words, "hardware.threads=1", "logger.console=quiet",
        f"output_dir={out}", f"cache_dir={scratch / 'cache'}",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
    if done.returncode == 2:  # an alternative that this tree does not have
        return done.stderr.strip().splitlines()[0]
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        raise SystemExit(f"{tree}: {' '.join(words[:3])}: exit {done.returncode}\n{said}")
    found: dict[str, list[Any]] = {}
    for metrics in sorted(out.rglob("metrics.json")):
        run = metrics.parent
        numbers: list[Any] = []
        for name in ("pretrain_history.jsonl", "history.jsonl"):
            if (run / name).exists():
                numbers += [(name, json.loads(line)) for line in (run / name).read_text().splitlines()]
        numbers.append(("metrics.json", json.loads(metrics.read_text())["metrics"]))
        words_of_run = [
            word for word in json.loads((run / "overrides.json").read_text())
            if word.split("=")[0] in ("algorithm", "residual", "model", "objective")
        ]  # fmt: skip
        found[" ".join(words_of_run)] = numbers
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="a commit")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        other = Path(made) / "tree"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", other, options.against], check=True, capture_output=True
        )
        try:
            differ, runs, numbers = 0, 0, 0
            for name in options.only:
                if name == "images" and not os.environ.get("METAREC_DATA"):
                    print("images: left out, METAREC_DATA is not set")
                    continue
                both = []
                for which, tree in (("before", other), ("after", ROOT)):
                    scratch = Path(made) / f"{name}_{which}"
                    scratch.mkdir()
                    both.append(figures(tree, SWEEPS[name], scratch))
                before, after = both
                if isinstance(before, str) or isinstance(after, str):
                    print(
                        f"{name}: left out, one of the trees refuses it: {before if isinstance(before, str) else after}"
                    )
                    continue
                for run in sorted(before.keys() | after.keys()):
                    runs += 1
                    pairs = list(zip(before.get(run, []), after.get(run, []), strict=False))
                    numbers += len(pairs)
                    first = next((pair for pair in pairs if pair[0] != pair[1]), None)
                    if first or len(before.get(run, [])) != len(after.get(run, [])):
                        differ += 1
                        print(f"DIFFERS {run}: {first or 'other numbers of lines'}")
                print(f"{name}: {len(before)} runs before, {len(after)} after", flush=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=True)
    print(f"{runs - differ} of {runs} runs bitwise equal, {numbers:,} lines of numbers; against {options.against}")
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
