"""Whole runs in a few seconds: the smallest options that still do every part of a run, and how two runs are compared.

`Work.main` runs the command in this process. `Work.start` runs it in a process of its own, forked from a server that has
imported everything (`reference.warm_server`), so that a process that is to be killed costs no import.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from metarec import cli
from metarec.config.overrides import check_words
from metarec.runs.checkpoint import load_checkpoint, read_pointer
from metarec.runs.rundir import fresh_run_dir
from metarec.verbs import run_verb

WORLD = (
    "dataset.world.n_users=300", "dataset.world.n_items=30", "dataset.world.n_topics=5",
)  # fmt: skip
MODEL = ("model.embedding_dim=8", "model.hidden_dim=16", "hardware.threads=1", "hardware=cpu")
PRETRAIN = ("pretrain.epochs=1", "pretrain.min_steps=0", "pretrain.eval_every_epochs=1", "pretrain.batch_size=128")
OUTER = ("train.steps=6", "train.eval_every=2", "train.checkpoint_every=4", "optimizer.lr=0.02")
MEASURE = (
    "evaluation.bootstrap=50", "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1,2]",
    "evaluation.control.users=20",
)  # fmt: skip
SHOWN = ("logger.console=quiet", "logger.plots=false", "logger.every=1")
TINY = (*WORLD, *MODEL, *PRETRAIN, *OUTER, *MEASURE, *SHOWN)

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["reference.warm_server"])


def _start_server() -> None:
    """The server finds the modules it is to import by PYTHONPATH only; without them every process imports for itself."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def forked(target: Callable[..., None], *args: Any, daemon: bool = True) -> ForkServerProcess:
    """`target(*args)` in a process that is forked from the server."""
    _start_server()
    process = _FORKS.Process(target=target, args=args, daemon=daemon)
    process.start()
    return process


def tiny(*words: str) -> list[str]:
    """TINY less the options that would do nothing beside `words`, which are refused; FOMAML over a residual, the
    simplest pair, where `words` choose none."""
    idle: tuple[str, ...] = ("dataset.world.",) if any(word.startswith("dataset=") for word in words) else ()
    if "algorithm=supervised" in words:
        idle += ("train.", "optimizer.")
    elif any(word.startswith("warm_start=") and word != "warm_start=auto" for word in words):
        idle += ("pretrain.",)
    if "residual=memory" in words and "residual.train_weights=true" not in words:
        idle += ("optimizer.lr",)
    method = [] if any(word.startswith("algorithm=") for word in words) else ["algorithm=fomaml"]
    if not any(word.startswith(("residual=", "algorithm=supervised", "dataset=omniglot")) for word in words):
        method.append("residual=on")
    return [*method, *(word for word in TINY if not word.startswith(idle))]


@dataclass(frozen=True)
class Work:
    """A directory to run in, and a cache that several tests may share."""

    root: Path
    cache: Path

    def words(self, verb: str, *words: str) -> list[str]:
        return [verb, *words, f"cache_dir={self.cache}", f"output_dir={self.root / 'outputs'}"]

    def main(self, verb: str, *words: str) -> int:
        """The exit code of `metarec VERB WORDS...` in this process."""
        return cli.main(self.words(verb, *words))

    def train(self, *words: str) -> Path:
        """The directory of a tiny training run, without the command line around it; raises what the run raises."""
        return self._run("train", *tiny(*words), *words)

    def eval(self, ckpt: Path, *words: str) -> dict[str, Any]:
        """metrics.json of an evaluation, without the command line around it."""
        return metrics(self.evaluated(ckpt, *words))

    def evaluated(self, ckpt: Path, *words: str) -> Path:
        """The directory of an evaluation, without the command line around it."""
        return self._run("eval", f"ckpt={ckpt}", *words)

    def _run(self, verb: str, *words: str) -> Path:
        """Check the words and run; Hydra's own composition of them, three quarters of a tiny run, is left out."""
        _, *rest = self.words(verb, *words)
        (job,) = check_words(verb, rest).jobs
        return Path(run_verb(verb, job.config, fresh_run_dir(self.root / "outputs", verb), False, rest)["run_dir"])

    def directories(self, verb: str) -> list[Path]:
        """The run directories of a verb, oldest first."""
        parent = self.root / "outputs" / verb
        return sorted(parent.iterdir()) if parent.exists() else []

    def start(self, *words: str, daemon: bool = True) -> ForkServerProcess:
        """`metarec WORDS...` in a process of its own; what it prints goes to output-PID.txt in `root`.

        A search has processes of its own, which a daemon may not.
        """
        return forked(_child, list(words), str(self.root), daemon=daemon)

    def start_train(self, *words: str) -> ForkServerProcess:
        return self.start(*self.words("train", *tiny(*words), *words))

    def output(self, process: ForkServerProcess) -> str:
        return (self.root / f"output-{process.pid}.txt").read_text()


def _child(words: list[str], root: str) -> None:
    os.chdir(root)
    out = os.open(f"output-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(there: Callable[[], Any], process: ForkServerProcess, seconds: float = 60) -> Any:
    """What `there` returns once it is true; the process must not end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := there():
            return found
        assert process.exitcode is None, f"it ended with {process.exitcode} before"
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def ended(process: ForkServerProcess, seconds: float = 90) -> int | None:
    """The exit code (-9 after SIGKILL)."""
    process.join(seconds)
    return process.exitcode


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def without_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a run less what may differ between two runs of one command: durations and places."""
    out = {key: value for key, value in document.items() if key not in ("seconds", "cost")}
    out["config"] = {key: value for key, value in out["config"].items() if key not in ("cache_dir", "output_dir")}
    return out


def tensors(run: Path, pointer: str) -> dict[str, Tensor]:
    """Every tensor of the checkpoint that `pointer` (best, last) names, the optimizer's included."""
    found = read_pointer(run / "checkpoints", pointer)
    assert found is not None
    return load_checkpoint(run / "checkpoints" / found["checkpoint"])[0]


def state(run: Path, pointer: str) -> dict[str, Any]:
    found = read_pointer(run / "checkpoints", pointer)
    assert found is not None
    return load_checkpoint(run / "checkpoints" / found["checkpoint"])[1]


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def assert_same_run(run: Path, other: Path) -> None:
    """Bit-equal tensors, equal lines and figures; durations and places aside."""
    for pointer in ("best", "last"):
        assert same_bits(tensors(run, pointer), tensors(other, pointer)), pointer
        assert state(run, pointer)["progress"] == state(other, pointer)["progress"]
    for name in ("history.jsonl", "pretrain_history.jsonl", "funnel.json"):
        assert (run / name).exists() == (other / name).exists(), name
        assert not (run / name).exists() or (run / name).read_bytes() == (other / name).read_bytes(), name
    assert without_paths(metrics(run)) == without_paths(metrics(other))
    assert pq.read_table(run / "per_user.parquet").equals(pq.read_table(other / "per_user.parquet"))
