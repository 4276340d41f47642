"""The smallest run that saves as every run does: `train.fit` with store, history, lock and resume, over five numbers.

The code under attack is the package's own: `verbs.train` decides what a resume takes, `train.fit` when is saved,
`runs.checkpoint` how. Only the loss is not a model's, so that one start costs milliseconds.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from metarec.errors import CheckpointError
from metarec.runs import checkpoint
from metarec.runs.checkpoint import load_checkpoint, read_pointer
from metarec.runs.history import History
from metarec.runs.lock import HOLDER, LOCK, hold
from metarec.runs.signals import Stop
from metarec.train import Plan, Store, fit, restore
from metarec.verbs import train as verb

STEPS = 8
SCORES = {0: 0.0, 2: 5.0, 4: 4.0, 6: 3.0, 8: 9.0}  # of each validation: the best is not the last until the end
PLAN = Plan(
    steps=STEPS, eval_every=2, patience=0, checkpoint_every=4, clip_norm=0.0, monitor="score", log_every=1
)  # fmt: skip
# what a resume asks of a checkpoint beside its progress (`metarec.runs.stored`)
STATE = {"config": {"residual": {}}, "vocabulary_sha256": "v", "n_items": 1, "control": None, "warm_start": {}}
BENCH: Any = SimpleNamespace(prepared=SimpleNamespace(vocabulary_sha256="v", n_items=1))


def go(run_dir: Path, *, stop_at: int | None = None, saved: list[int] | None = None) -> str:
    """Begin or go on with the run in `run_dir`; `stop_at`: a SIGTERM arrives in this step. Returns what stderr was told.

    `saved`: gets the number of each step whose checkpoint was saved, once `Store.save` has returned.
    """
    params = {"w": torch.tensor([4.0, -2.0, 1.0]).requires_grad_(), "b": torch.tensor([1.0, 3.0]).requires_grad_()}
    optimizer = torch.optim.Adam(params.values(), lr=0.3)
    stop = Stop()

    class Noted(Store):
        def save(self, *args: Any, **keywords: Any) -> None:
            super().save(*args, **keywords)
            if saved is not None:
                saved.append(args[2].step)

    done = [0]

    def loss(step: int) -> torch.Tensor:
        done[0] = step + 1
        if step == stop_at:
            stop.wanted = 15
        total = sum((value.square().sum() for value in params.values()), torch.zeros(()))
        return total * (1 + step % 3)

    told = io.StringIO()
    with contextlib.redirect_stderr(told), hold(run_dir):
        found = verb._resumed(run_dir, BENCH, lambda line: None)
        at = restore(found, params, optimizer)[0] if found else None
        store = Noted(run_dir / "checkpoints", {}, STATE, run_dir)
        with History(run_dir / "history.jsonl") as history:
            fit(
                params, loss, optimizer, lambda step: 1 / (1 + step), PLAN,
                lambda: {"score": SCORES[done[0]]}, at=at, store=store, history=history, stop=stop,
            )  # fmt: skip
    return told.getvalue()


def newest_good(run_dir: Path) -> int:
    """The step that a start would go on from; -1 for none."""
    directory = run_dir / "checkpoints"
    checkpoint.atomic.clean_leftovers(directory)
    found, _ = checkpoint.latest_good(directory, verb._usable)
    return -1 if found is None else int(found.name.rsplit("-", 1)[1])


def lost_pointers(run_dir: Path) -> list[str]:
    """The pointers by which `ckpt=RUN` finds no whole checkpoint."""
    found = []
    for pointer in checkpoint.POINTERS:
        try:
            named = read_pointer(run_dir / "checkpoints", pointer)
            checkpoint.verify_checkpoint(run_dir / "checkpoints" / named["checkpoint"] if named else run_dir)
        except CheckpointError as error:
            found.append(f"{pointer}.json: {error}")
    return found


def differences(run_dir: Path, other: Path) -> list[str]:
    """What of two finished runs is not bitwise equal."""
    found = []
    for pointer in ("best", "last"):
        named = [read_pointer(path / "checkpoints", pointer) for path in (run_dir, other)]
        if None in named or named[0]["checkpoint"] != named[1]["checkpoint"]:  # type: ignore[index]
            found.append(f"{pointer}.json")
            continue
        (a, state_a), (b, state_b) = (
            load_checkpoint(path / "checkpoints" / one["checkpoint"])  # type: ignore[index]
            for path, one in zip((run_dir, other), named, strict=True)
        )
        if a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
            found.append(f"tensors of {pointer}")
        if state_a != state_b:
            found.append(f"state of {pointer}")
    if (run_dir / "history.jsonl").read_bytes() != (other / "history.jsonl").read_bytes():
        found.append("history.jsonl")
    names = [
        sorted({p.relative_to(path).as_posix() for p in path.rglob("*")} - {LOCK, HOLDER}) for path in (run_dir, other)
    ]
    if names[0] != names[1]:
        found.append(f"files {sorted(set(names[0]) ^ set(names[1]))}")
    return found
