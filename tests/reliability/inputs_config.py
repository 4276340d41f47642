"""Bad words and bad runs as tables: command lines that are refused with exit code 2, and checkpoints with 4.

Of a run, `change` is made to a copy of a small finished one (`hostile_making` seals it again where it says so).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reliability import hostile_making as h
from safetensors.torch import load, save

from metarec.runs.checkpoint import TENSORS


@dataclass(frozen=True)
class Line:
    """A command line, refused with exit code 2 and lines that hold all of `parts`."""

    name: str
    words: tuple[str, ...]
    parts: tuple[str, ...]
    lines: int = 1


@dataclass(frozen=True)
class Stored:
    """A changed run and the command that meets it; RUN in the words stands for it."""

    name: str
    change: Callable[[Path], Any]
    words: tuple[str, ...]
    parts: tuple[str, ...]
    code: int = 4


LINES = [
    Line("a path too long", ("eval", f"ckpt={'a' * 300}"), ("ckpt: aaa", "too long", "give a shorter path")),
    Line("a path of bytes", ("train", "output_dir=\udcff"), ("command line: output_dir=?", "no UTF-8")),
    Line("runs too long", ("report", "/".join(["run"] * 1100)), ("RUN: run/run", "too long")),
    Line("a misspelt key", ("train", "train.stesp=5"), ("train.stesp", "did you mean train.steps?")),
    Line(
        "a key of another choice",
        ("train", "optimizer=adam", "optimizer.momentum=0.5"),
        ("has no such key", "belongs to"),
    ),
    Line("a misspelt choice", ("train", "algorithm=fomaml2"), ("algorithm: fomaml2", "did you mean fomaml?")),
    Line("a misspelt verb", ("trian",), ("trian: not a verb", "did you mean `metarec train`?")),
    Line("a word without a value", ("train", "fomaml"), ("not key=value", "algorithm=fomaml")),
    Line("text for a number", ("train", "train.steps=many"), ("train.steps: many", "whole number")),
    Line("a fraction for a whole number", ("train", "train.steps=1.5"), ("train.steps: 1.5",)),
    Line("nothing for a number", ("train", "train.steps=null"), ("train.steps: null", "wrong type")),
    Line("a list for a number", ("train", "train.steps=[1]"), ("train.steps: [1]",)),
    Line("a section for a value", ("train", "train=5"), ("is a section, not a value",)),
    Line("zero steps", ("train", "train.steps=0"), ("train.steps: 0", "out of range")),
    Line("a negative seed", ("train", "seed=-1"), ("seed: -1",)),
    Line("a seed beyond its range", ("train", f"seed={2**80}"), ("seed",)),
    Line("not a number", ("train", "optimizer.lr=nan"), ("optimizer.lr: nan", "not finite")),
    Line("infinity", ("train", "algorithm.inner.lr=inf"), ("algorithm.inner.lr: inf",)),
    Line("dropout of 1", ("train", "model.dropout=1"), ("model.dropout: 1", "< 1")),
    Line("an empty list", ("train", "evaluation.control.lrs=[]"), ("empty list",)),
    Line("a list of another length", ("train", "dataset.split.fractions=[0.5,0.5]"), ("wrong length",)),
    Line("a key twice over", ("train", "+seed=1"), ("exists already",)),
    Line("a key taken away", ("train", "~seed"), ("nothing can be removed",)),
    Line("several values for one run", ("train", "seed=1,2"), ("add -m",)),
    Line("an unreadable word", ("train", "seed=(1"), ("not readable",)),
    Line(
        "half precision without a GPU", ("train", "hardware=cpu", "hardware.precision=float16"), ("hardware.precision",)
    ),
    Line("no file", ("train", "dataset=events"), ("dataset.path",)),
    Line("no directory of data", ("train", "dataset=ml1m", "data_dir=null"), ("data_dir",)),
    Line("no inner loop to adapt", ("train", "algorithm=supervised", "residual=on"), ("residual",)),
    Line("no checkpoint", ("eval",), ("ckpt: null",)),
    Line("a resume of nothing", ("train", "resume=nowhere"), ("no such run directory",)),
    Line("a resume with other words", ("train", "resume=.", "seed=2"), ("give it alone",)),
    Line("no run to report", ("report",), ("no run to report",)),
    Line("a report of nothing", ("report", "nowhere"), ("no such run directory",)),
    Line("a misspelt option of report", ("report", ".", "metrik=hr@10"), ("did you mean metric?",)),
    Line("an unknown option", ("train", "--steps", "5"), ("not understood",)),
    Line("a number of 5,000 digits", ("train", f"seed={'9' * 5000}"), ("seed: 999", "4300 digits")),
    Line("a list with such a number", ("train", f"evaluation.control.steps=[{'9' * 5000}]"), ("4300 digits",)),
    Line(
        "a whole number that is no float",
        ("train", "train.steps=99999999999999999999999"),
        ("at most 9007199254740992",),
    ),
    Line("no key", ("train", "=5"), ("command line: =5", "no key before the =")),
    Line(
        "more threads than any machine has",
        ("train", "hardware.threads=100000"),
        ("hardware.threads: 100000", "<= 1024"),
    ),
    Line("a world of 10^12 users", ("train", "dataset.world.n_users=1000000000000"), ("n_users", "<= 10000000")),
    Line(
        "shares that add up to almost 1",
        ("train", "dataset.split.fractions=[0.000001,0.5,0.5]"),
        ("add up to 1.000001",),
    ),
    Line(
        "a sweep without end", ("train", "-m", "seed=range(1,1000000000)"), ("seed", "999,999,999 values", "interval(")
    ),
    Line("a sweep without steps", ("train", "-m", "seed=range(1,5,0)"), ("seed", "its step is 0")),
    Line("a sweep of nan", ("train", "-m", "optimizer.lr=range(0,nan)"), ("optimizer.lr", "no number of values")),
    Line(
        "a sweep of a million jobs",
        ("train", "-m", "seed=range(0,1000)", "optimizer.lr=range(1,1001)"),
        ("-m", "1,000,000 jobs"),
    ),
    Line(
        "a search of a range without end",
        ("train", "-m", "hydra/sweeper=optuna", "train.steps=range(1,1000000000)"),
        ("train.steps", "999,999,999 values", "int(interval(LOW,HIGH))"),
    ),
    Line(
        "a million trials at a time",
        ("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1000000", "optimizer.lr=interval(0.1,1)"),
        ("hydra.sweeper.n_jobs: 1000000", "<= 1024"),
    ),
    Line(
        "no jobs at a time",
        ("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=1,2"),
        ("hydra.launcher.n_jobs: 0", "out of range"),
    ),
    Line(
        "jobs in threads",
        ("train", "-m", "hydra/launcher=joblib", "hydra.launcher.backend=threading", "seed=1,2"),
        ("hydra.launcher.backend: threading", "cannot be set"),
    ),
    Line("a choice for another verb", ("prepare", "dataset=omniglot"), ("dataset=omniglot: chooses a model",)),
    Line("jobs side by side, and one", ("train", "hydra/launcher=joblib"), ("hydra/launcher: joblib", "add -m")),
    Line("several mistakes at once", ("train", "train.stpes=1", "seed=x", "residual=maybe"), ("seed: x",), 3),
]


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """The tensors of the best checkpoint changed, and sealed."""

    def make(run: Path) -> None:
        found = load((h.best(run) / TENSORS).read_bytes())
        change(found)
        h.replaced(run, TENSORS, save(found))

    return make


def state(**keys: Any) -> Callable[[Path], None]:
    """The state of the best checkpoint with dotted keys (``__`` for a dot) changed, and sealed."""

    def make(run: Path) -> None:
        def change(found: dict[str, Any]) -> None:
            for key, value in keys.items():
                *path, last = key.split("__")
                node = found
                for name in path:
                    node = node[name]
                node[last] = value

        h.state(run, change)

    return make


def unfinished(run: Path) -> None:
    """Without its seal."""
    (run / "manifest.json").unlink()


def future(run: Path) -> None:
    """A manifest of a later format."""
    h.sealed(h.best(run) / "manifest.json", lambda content: content | {"format": 99})
    h.sealed(run / "checkpoints/best.json", lambda content: content | {
        "manifest_sha256": h.digest_file(h.best(run) / "manifest.json")["sha256"]})  # fmt: skip


def flipped(run: Path) -> None:
    """One bit of the weights."""
    path = h.best(run) / TENSORS
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def cut(run: Path) -> None:
    """Half of the weights."""
    path = h.best(run) / TENSORS
    path.write_bytes(path.read_bytes()[:-100])


DEEP = "[" * 100_000


def written(name: str, text: str, *, finished: bool = True) -> Callable[[Path], None]:
    """A file of the run with this text, sealed where the run is `finished`; else without its seal."""

    def make(run: Path) -> None:
        (run / name).write_text(text)
        if finished:
            h.reseal(run)
        else:
            unfinished(run)

    return make


def no_record(run: Path) -> None:
    """An unfinished run whose record is a directory."""
    unfinished(run)
    (run / "job.json").mkdir()


def no_figures(run: Path) -> None:
    """metrics.json without its figures, sealed."""
    path = run / "metrics.json"
    path.write_text(json.dumps({"config": json.loads(path.read_text())["config"]}))
    h.reseal(run)


EVAL = ("eval", "ckpt=RUN")
STORED = [
    Stored("a bit flipped", flipped, EVAL, ("tensors.safetensors", "SHA-256")),
    Stored("cut off", cut, EVAL, ("tensors.safetensors", "bytes")),
    Stored("a file gone", lambda run: (h.best(run) / TENSORS).unlink(), EVAL, ("tensors.safetensors", "missing")),
    Stored("a file too many", lambda run: (h.best(run) / "x").write_text(""), EVAL, ("additional file",)),
    Stored("no such run", lambda run: None, ("eval", "ckpt=RUNS"), ("no such run or checkpoint", "did you mean")),
    Stored("of a later version", future, EVAL, ("format 99", "update metarec")),
    Stored("of another vocabulary of that size", state(vocabulary_sha256="0" * 64), EVAL, ("vocabulary", "30 items")),
    Stored("another width", state(config__model__hidden_dim=24), EVAL, ("is needed",)),
    Stored("another model's", state(config__model={"name": "sasrec"}), EVAL, ("missing",), 2),
    Stored("a tensor missing", tensors(lambda t: t.pop("base/fc.bias")), EVAL, ("fc.bias", "missing")),
    Stored("a tensor too many", tensors(lambda t: t.update({"base/x": torch.ones(1)})), EVAL, ("x", "has no place")),
    Stored("a learned tensor of another shape", tensors(lambda t: t.update({"phi/fc.bias": torch.ones(3)})), EVAL,
           ("fc.bias [3]",)),
    Stored("integers for weights", tensors(lambda t: t.update({"base/fc.bias": t["base/fc.bias"].long()})), EVAL, ("fc.bias",)),
    Stored("a key of its configuration misspelt", state(config__model={"name": "gru4rec", "hiden_dim": 3}), EVAL,
           ("model.hiden_dim",), 2),
    Stored("a report of an unfinished run", unfinished, ("report", "RUN"), ("did not finish", "resume=RUN")),
    Stored("a report of one run with an option of several", lambda run: None, ("report", "RUN", "methods=[foo]"),
           ("methods: foo", "there is one run"), 2),
    Stored("users from a FIFO", lambda run: os.mkfifo(run / "users"), ("eval", "ckpt=RUN", "users=RUN/users"),
           ("no plain file", "one id a line"), 3),
    Stored("users from a device", lambda run: None, ("eval", "ckpt=RUN", "users=/dev/zero"), ("/dev/zero: a device", "no plain file"), 3),
    Stored("an empty list of users", written("users", "\n\n"), ("eval", "ckpt=RUN", "users=RUN/users"),
           ("lists no user",), 3),
    Stored("a list of users that is no text", lambda run: (run / "users").write_bytes(b"a\n\xff"),
           ("eval", "ckpt=RUN", "users=RUN/users"), ("byte 2",), 3),
    Stored("a log for a world", lambda run: None, ("eval", "ckpt=RUN", "dataset_path=x.csv"), ("dataset_path: x.csv", "generated"), 2),
    Stored("a report without figures", no_figures, ("report", "RUN"), ("metrics is missing",)),
    Stored("a report of figures without end", written("metrics.json", DEEP), ("report", "RUN"), ("metrics.json", "nested deeper")),
    Stored("a report of a history without end", written("history.jsonl", f'{{"step": 1, "x": {DEEP}\n'), ("report", "RUN"),
           ("history.jsonl: line 1", "no record"), 3),
    Stored("a report of a record without end", written("job.json", DEEP, finished=False), ("report", "RUN"),
           ("job.json", "nested deeper")),
    Stored("a report of a record that is a directory", no_record, ("report", "RUN"), ("job.json", "not a regular file")),
    Stored("a resume of a search without end", written("search.json", DEEP), ("train", "resume=RUN"), ("search.json", "damaged")),
    Stored("a resume of a tracker without end", written("tracker.json", DEEP, finished=False), ("train", "resume=RUN"),
           ("tracker.json",), 5),
    Stored("a resume of a finished run", lambda run: None, ("train", "resume=RUN"), ("the run is finished",), 2),
    Stored("a warm start of another width", lambda run: None, ("train", "warm_start=RUN", "model.hidden_dim=24"),
           ("is needed",)),
]  # fmt: skip
