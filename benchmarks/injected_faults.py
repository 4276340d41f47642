"""Claim: a fault in one outer step never reaches a checkpoint or a figure, and what the guard does about it is what it says.

    python benchmarks/injected_faults.py                                     # 4 faults x 4 guards, about 2 minutes
    python benchmarks/injected_faults.py --step 9 --algorithm maml --residual lora --seed 3
    python benchmarks/injected_faults.py --fault rate --command train ...    # one `metarec train ...` with one fault

Into outer step `--step` (counted from 0) of a short `metarec train` on the embedded world goes one of

    nan      the meta-loss is NaN, as a bad query makes it
    support  the support loss of an inner step is NaN, so adaptation itself gives up
    inf      the meta-loss is finite and the gradient of one weight infinite
    rate     the step size of this one step is 10,000 times too large

under each of guard=off, standard (as it is by default), skip and rollback (of what is not finite and of spikes). Told are
the events, whether the run finished, whether every tensor of every checkpoint and every figure is finite, the last loss, and
whether weights and moments at the end are bit for bit those of a run without fault and guard whose optimizer was made to
leave steps out: for a skip the step itself, for a rollback from `to` to the step of the event, at half the rate from then
on. Where a spike is only warned of, they are compared with the same fault under guard=off.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from metarec import build, cli
from metarec.algorithms import inner
from metarec.runs.checkpoint import list_checkpoints, load_checkpoint, read_pointer
from metarec.runs.history import read_history
from metarec.verbs import meta_train

FAULTS = ("nan", "support", "inf", "rate")
JUDGES = (
    "guard.warmup_steps=8",
    "guard.sigma=8",
    "guard.window=20",
)  # short as the run is, else no loss would be judged
GUARDS = {
    "off": ("guard=off",),
    "standard": JUDGES,
    "skip": ("guard.on_nonfinite=skip", "guard.on_spike=skip", *JUDGES),
    "rollback": ("guard.on_nonfinite=rollback", "guard.on_spike=rollback", "guard.keep_every=5", *JUDGES),
}
TOO_LARGE = 1e4
SMALL = (
    "dataset.world.n_users=300", "dataset.world.n_items=60", "model.embedding_dim=16", "model.hidden_dim=32",
    "pretrain.epochs=2", "pretrain.min_steps=0", "pretrain.batch_size=256", "train.steps=30", "train.eval_every=6",
    "train.checkpoint_every=6", "train.patience=0", "train.meta_batch_size=16", "evaluation.panel=none",
    "evaluation.bootstrap=20", "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1,2]", "logger.every=1",
    "logger.plots=false", "logger.console=quiet", "hardware=cpu", "hardware.threads=1", "optimizer.lr=0.01",
)  # fmt: skip


class _Infinite(torch.autograd.Function):
    """A weight -> 0, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.new_full(ctx.shape, math.inf)


@contextlib.contextmanager
def injected(fault: str | None, step: int) -> Iterator[None]:
    """Every meta-training started inside has the fault in outer step `step`; None: it has none."""
    losses, schedule, gradients = meta_train._losses, build.schedule, inner.gradients

    def spoilt(*args: Any) -> Any:
        of_tasks, own = gradients(*args)
        return of_tasks * math.nan, own

    def broken(*args: Any) -> Iterator[Tensor]:
        phi, now = args[4], args[-1]
        if now == step and fault == "support":
            with mock.patch.object(inner, "gradients", spoilt):
                yield from losses(*args)
            return
        for loss in losses(*args):
            if now == step and fault == "nan":
                yield loss * math.nan
            elif now == step and fault == "inf":
                yield loss + _Infinite.apply(next(value for value in phi.values() if value.requires_grad))
            else:
                yield loss

    def exploding(*args: Any) -> Callable[[int], float]:
        factor = schedule(*args)
        return lambda now: float(factor(now)) * (TOO_LARGE if now == step and fault == "rate" else 1.0)

    with mock.patch.object(meta_train, "_losses", broken), mock.patch.object(build, "schedule", exploding):
        yield


@contextlib.contextmanager
def left_out(first: int, last: int, rate: float = 1.0) -> Iterator[None]:
    """In meta-training inside, the optimizer takes no step in outer steps first..last, and later ones times `rate`."""
    optimizer, schedule = build.optimizer, build.schedule

    def deaf(*args: Any) -> torch.optim.Optimizer:
        made, count, real = optimizer(*args), [0], None
        real = made.step

        def step() -> None:
            if not first <= count[0] <= last:
                real()
            count[0] += 1

        made.step = step  # type: ignore[method-assign, assignment]
        return made

    def slower(*args: Any) -> Callable[[int], float]:
        factor = schedule(*args)
        return lambda now: float(factor(now)) * (rate if now > last else 1.0)

    with mock.patch.object(build, "optimizer", deaf), mock.patch.object(build, "schedule", slower):
        yield


@dataclass(frozen=True)
class Ended:
    """A run: its directory, exit code, and what it said."""

    directory: Path
    code: int
    said: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        path = self.directory / "events.jsonl"
        return read_history(path) if path.exists() else []

    @property
    def finite(self) -> bool:
        """Whether every tensor of every checkpoint is, and every number of history and figures."""
        held = [load_checkpoint(path)[0] for path in list_checkpoints(self.directory / "checkpoints")]
        files = [self.directory / name for name in ("history.jsonl", "metrics.json")]
        text = "".join(path.read_text() for path in files if path.exists())
        return "NaN" not in text and "Infinity" not in text and all(
            bool(torch.isfinite(value).all()) for one in held for value in one.values() if value.is_floating_point()
        )  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        """What is learned and the optimizer's slots at the last checkpoint, tensors of any shape."""
        found = read_pointer(self.directory / "checkpoints", "last")
        assert found is not None
        held, _ = load_checkpoint(self.directory / "checkpoints" / found["checkpoint"])
        return {name: value for name, value in held.items() if name.startswith(("phi/", "optimizer/"))}

    def losses(self) -> dict[int, float]:
        """Step, counted from 1 -> its meta-loss, of those that were let through."""
        lines = read_history(self.directory / "history.jsonl")
        return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def trained(root: Path, *words: str) -> Ended:
    """`metarec train` of SMALL and `words`, below `root`."""
    out = root / "outputs" / "train"
    before, told = set(out.iterdir()) if out.exists() else set(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = cli.main(["train", *SMALL, *words, f"output_dir={root / 'outputs'}", f"cache_dir={root / 'cache'}"])
    made = set(out.iterdir()) - before if out.exists() else set()
    if not made:
        raise SystemExit(told.getvalue())
    return Ended(made.pop(), code, told.getvalue())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, names and tensors of any shape."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(root: Path, event: dict[str, Any], *words: str) -> Ended:
    """The run without fault and guard that the event's action promises: its step left out, or all from `to` on."""
    last = event["step"] - 1  # an event counts from 1
    rolled = event["action"] == "rollback"
    with left_out(event["to"] if rolled else last, last, event["rate"] if rolled else 1.0):
        return trained(root, *words, "guard=off")


def cell(root: Path, fault: str, guard: str, step: int, *words: str) -> dict[str, Any]:
    """One row of the table."""
    with injected(fault, step):
        run = trained(root, *words, *GUARDS[guard])
    acted = [event for event in run.events if event["action"] in ("skip", "rollback")]
    equal = None
    if run.code == 0 and len(acted) == 1 and not (fault == "rate" and acted[0]["action"] == "skip"):
        equal = same(run.weights(), by_hand(root, acted[0], *words).weights())
    elif run.code == 0 and not acted and guard == "standard" and fault == "rate":  # warned of: nothing may change
        with injected(fault, step):
            equal = same(run.weights(), trained(root, *words, "guard=off").weights())
    losses = run.losses()
    return {
        "fault": fault,
        "guard": guard,
        "events": run.events,
        "code": run.code,
        "steps": max(losses, default=0),
        "finite": run.finite,
        "last": losses[max(losses)] if losses else None,
        "before": losses.get(step),
        "equal": equal,
    }


def shown(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    kinds: dict[str, int] = {}
    for event in row["events"]:
        back = f" to {event['to']}" if "to" in event else ""
        words = f"{event['kind'].replace('_', ' ')} at {event['step']}: {event['action']}{back}"
        words = words if len(row["events"]) < 4 else f"{event['kind'].replace('_', ' ')}: {event['action']}"
        kinds[words] = kinds.get(words, 0) + 1
    events = ", ".join(f"{count} x {words}" if count > 1 else words for words, count in kinds.items()) or "none"
    ended = "yes" if row["code"] == 0 else f"no, exit code {row['code']}"
    equal = {None: "", True: "yes", False: "NO"}[row["equal"]]
    finite = "yes" if row["finite"] else "NO"
    loss = f"{row['before']:.2f} -> {row['last']:.2f}" if row["before"] is not None else f"{row['last']:.2f}"
    return f"| {row['fault']} | {row['guard']} | {events} | {ended} | {finite} | {loss} | {equal} |"


def main() -> None:
    """The table, or with --command one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=14, help="outer step of the fault, from 0; below 28, at least 9")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--algorithm", default="fomaml")
    parser.add_argument("--residual", default="on")
    parser.add_argument("--fault", choices=FAULTS, help="this one alone")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help="a metarec command to run with the fault")
    options = parser.parse_args()
    if options.command is not None:
        with injected(options.fault, options.step):
            sys.exit(cli.main(options.command))
    words = (f"seed={options.seed}", f"algorithm={options.algorithm}", f"residual={options.residual}")
    print("| fault | guard | events | finished | all finite | loss before the fault -> last | weights as by hand |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for fault in (options.fault,) if options.fault else FAULTS:
            for guard in GUARDS:
                rows.append(cell(Path(folder), fault, guard, options.step, *words))
                print(shown(rows[-1]), flush=True)
    print(json.dumps({"rows": len(rows), "equal": [row["equal"] for row in rows]}))
    if not all(row["finite"] for row in rows) or any(row["equal"] is False for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
