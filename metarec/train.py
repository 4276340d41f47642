"""The outer loop: step, validate, keep the best, stop early, go on after a kill. Pretraining and meta-training share it.

It is handed a loss that depends on the step number only, so what a run does next follows from its checkpoint alone: a
resumed run ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarec.core.weights import Params
from metarec.errors import CheckpointError, DivergedError
from metarec.runs import checkpoint, lines
from metarec.runs.guarded import FIX, Guarded, not_finite, number, of_gradient
from metarec.runs.history import History
from metarec.runs.signals import Stop
from metarec.runs.timescales import Timescales


@dataclass(frozen=True)
class Plan:
    steps: int
    eval_every: int
    patience: int  # validations without gain until the run stops; 0 = never
    checkpoint_every: int  # periodic checkpoints that are kept; validations also save one
    clip_norm: float  # 0 = off
    monitor: str  # key of what `validate` returns; larger is better
    log_every: int = 10
    method: str = "zeroshot"  # what is validated, by its name in the tables
    min_gain: float = 0.0  # what a validation must gain by, to count as one for `patience`

    def saves(self, step: int) -> bool:
        """Whether a checkpoint of `step` is due, unless a signal asks for one."""
        return step % self.eval_every == 0 or step % self.checkpoint_every == 0 or step == self.steps


@dataclass
class Timer:
    """Seconds spent in outer steps, validations and checkpoints left out; the first step, which warms up, apart."""

    seconds: float = 0.0
    steps: int = 0

    def add(self, seconds: float, first: bool) -> None:
        """Seconds of one step; the first of a process is counted nowhere."""
        if not first:
            self.seconds, self.steps = self.seconds + seconds, self.steps + 1

    @property
    def per_step(self) -> float | None:
        """Mean seconds of a step; None before the second one."""
        return self.seconds / self.steps if self.steps else None


@dataclass
class Progress:
    """Where a run is; with the tensors, all that a checkpoint holds."""

    step: int = 0  # outer steps done
    best_step: int = -1
    best_value: float = -math.inf
    waited: int = 0  # validations since the last gain
    stopped: bool = False  # ended by patience
    gained_value: float = -math.inf  # of the last gain: of more than `min_gain` over the one before


@dataclass(frozen=True)
class Store:
    """Where checkpoints go, and what stands in each beside the trained parameters."""

    directory: Path
    fixed_tensors: Mapping[str, Tensor]  # e.g. the frozen base
    fixed_state: Mapping[str, Any]
    lines_of: Path | None = None  # the run directory, whose histories each checkpoint vouches for

    def save(
        self, params: Params, optimizer: torch.optim.Optimizer, at: Progress, keep: bool,
        guard: Guarded | None = None, watch: Timescales | None = None,
    ) -> None:  # fmt: skip
        """A checkpoint of `at.step`, pointed to as last, and as best where it is; `keep`: pruning leaves it."""
        name = step_name(at.step)
        tensors = {f"phi/{key}": value for key, value in params.items()} | dict(self.fixed_tensors)
        tensors |= optimizer_tensors(params, optimizer)
        # null stands for "no validation yet": JSON has no infinity
        progress = {k: None if v == -math.inf else v for k, v in asdict(at).items()}
        state = {**self.fixed_state, "progress": progress, "periodic": keep}
        if self.lines_of is not None:
            state["lines"] = lines.measured(self.lines_of)
        if guard is not None:
            tensors |= guard.tensors()
            state["guard"] = guard.state()
        if watch is not None:
            tensors |= watch.tensors()
        was = checkpoint.read_pointer(self.directory, "last")
        checkpoint.save_checkpoint(self.directory, name, tensors, state)
        if at.best_step == at.step:
            checkpoint.point(self.directory, "best", name, step=at.step)
        point_last(self.directory, name, at.step, at.best_step, was)

    def prune(self, checkpoint_every: int, *, ended: bool = False) -> None:
        """Keep the periodic checkpoints and what a pointer names; validations leave no others behind.

        Until the run has `ended` also the checkpoint before the last and the best at that time: what a resume falls back
        to where the last is damaged.
        """
        names = [path.name for path in checkpoint.list_checkpoints(self.directory)]
        keep = {name for name in names if checkpoint.step_of(name) % checkpoint_every == 0}
        last = checkpoint.read_pointer(self.directory, "last")
        if last is not None and not ended:
            keep |= set(last["fields"].get("before", []))
        checkpoint.prune(self.directory, keep)


def point_last(directory: Path, name: str, step: int, best_step: int, was: Mapping[str, Any] | None) -> None:
    """Let last.json name the checkpoint of `step`, its best one, and `before`: both of the one it named until now, `was`."""
    before: list[str] = []
    if was is not None:  # one saved again, by a signal, has the same one before it
        there = [was["checkpoint"], was["fields"].get("best", was["checkpoint"])]
        before = was["fields"].get("before", []) if was["checkpoint"] == name else there
    checkpoint.point(directory, "last", name, step=step, best=step_name(best_step), before=before)


def step_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:06d}"


def optimizer_tensors(params: Params, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: optimizer/<parameter>/<slot>, [*S] or a scalar."""
    out = {}
    for name, value in params.items():
        for slot, held in optimizer.state.get(value, {}).items():
            if held is not None:
                out[f"optimizer/{name}/{slot}"] = torch.as_tensor(held)
    return out


def restore(
    path: Path, params: Params, optimizer: torch.optim.Optimizer | None
) -> tuple[Progress, dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint into `params` (and the optimizer); returns its progress, all tensors and the state.

    Raises CheckpointError for a parameter that is missing or not of the model's shape [*S].
    """
    tensors, state = checkpoint.load_checkpoint(path)
    with torch.no_grad():
        for name, value in params.items():
            stored = tensors.get(f"phi/{name}")
            if stored is None or stored.shape != value.shape:
                got = "missing" if stored is None else list(stored.shape)
                raise CheckpointError(
                    path,
                    f"phi/{name} {got}",
                    f"the model has {list(value.shape)} there",
                    "give the model's own options",
                )
            value.copy_(stored)
    if optimizer is not None:
        for name, value in params.items():
            prefix = f"optimizer/{name}/"
            slots = {key[len(prefix) :]: held for key, held in tensors.items() if key.startswith(prefix)}
            if slots:
                # the step counter stays on the CPU, as torch keeps it
                optimizer.state[value] = {k: h if k == "step" else h.to(value.device) for k, h in slots.items()}
    # one of a version without `min_gain` gained with every best
    stored_progress = {"gained_value": state["progress"]["best_value"], **state["progress"]}
    values: dict[str, Any] = {key: -math.inf if value is None else value for key, value in stored_progress.items()}
    return Progress(**values), tensors, state


def fit(
    params: Params,
    loss_at: Callable[[int], Tensor | Iterable[Tensor]],
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    plan: Plan,
    validate: Callable[[], Mapping[str, float]],
    *,
    at: Progress | None = None,
    store: Store | None = None,
    history: History | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, shown: None,
    stop: Stop | None = None,
    timer: Timer | None = None,
    guard: Guarded | None = None,
    watch: Timescales | None = None,
) -> tuple[Progress, Params]:
    """Train `params` (leaves, moved in place) and return where it ended and the best parameters by validation.

    loss_at(step) is the loss of step 0, 1, ..., or yields parts whose sum it is: each is differentiated before the next is
    made, so that memory holds one part. factor(step) scales the step size. Validation runs before the first step
    (the start is a candidate too) and every `eval_every` steps. With a store, every validation is a checkpoint.
    Raises DivergedError naming the step before a loss or gradient that is not finite reaches a weight (a `guard` may skip
    or roll back instead: the step counts and its batch is not seen again), and Pruned after the checkpoint of a
    validation where `stop` says so. A loss is a scalar; parameters are of any shape.
    """
    at = at or Progress()
    leaves, began_at = list(params.values()), at.step
    recording = getattr(optimizer, "recording", nullcontext)  # what it must see of the losses (`metarec.optimizers`)
    watched = nullcontext if watch is None else watch.step
    base_lr = [group["lr"] for group in optimizer.param_groups]
    best = {name: value.detach().clone() for name, value in params.items()} if store is None else {}

    def validation() -> float:
        nonlocal best
        try:
            values = validate()
            for name, measured in values.items():
                if not math.isfinite(measured):
                    raise DivergedError(name, measured, "a figure that is not finite is none", FIX)
        except DivergedError as error:
            if guard is not None:
                guard.refuse(at.step, error)
            raise error.within(f"validation at step {at.step}") from error
        value = values[plan.monitor]
        if value > at.best_value:
            at.best_value, at.best_step = value, at.step
            if store is None:
                best = {name: v.detach().clone() for name, v in params.items()}
        if value > at.gained_value + plan.min_gain:
            at.gained_value, at.waited = value, 0
        else:
            at.waited += 1
        at.stopped = plan.patience > 0 and at.waited >= plan.patience
        if history is not None:
            history.append({"step": at.step, "kind": "val", plan.method: dict(values)})
        on_step(at.step, {f"val {plan.monitor}": value})
        return value

    def save() -> None:
        if store is not None:
            if history is not None:
                history.sync()
            store.save(params, optimizer, at, at.step % plan.checkpoint_every == 0, guard, watch)
            store.prune(plan.checkpoint_every)

    if guard is not None:
        guard.begin(at.step)
    if at.step == 0 and at.best_step < 0:
        validation()
        save()
    # without a store there is nothing to save first: a signal ends the loop at once
    with stop.at_steps() if stop is not None and store is not None else nullcontext():
        while at.step < plan.steps and not at.stopped:
            rate = factor(at.step) * (1.0 if guard is None else guard.judge.rate)
            for group, lr in zip(optimizer.param_groups, base_lr, strict=True):
                group["lr"] = lr * rate
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            gave_up: DivergedError | None = None
            if guard is not None:
                guard.before_step()
            try:
                with recording(), watched():
                    total, length = _differentiate(loss_at(at.step), leaves)
            except DivergedError as error:  # of an inner loop, which has no loss to give any more
                if guard is None:
                    raise error.within(f"outer step {at.step}") from error
                gave_up, total, length = error, number(error), torch.tensor(math.nan)
            norm = float(length)
            if guard is None:
                _refuse(total, norm, at.step, params)
            keep = plan.saves(at.step)
            if good := guard is None or guard.lets_through(at.step, total, norm, keep, gave_up):
                if plan.clip_norm > 0:
                    torch.nn.utils.clip_grads_with_norm_(leaves, plan.clip_norm, length)
                optimizer.step()
            if at.step + 1 == plan.steps and hasattr(optimizer, "finish"):  # also where a guard left this step out
                optimizer.finish()
            if good:
                good = guard is None or guard.lets_stand(at.step)
            if good and watch is not None:
                watch.stand()
            if timer is not None:
                timer.add(time.perf_counter() - began, first=at.step == began_at)
            at.step += 1
            shown = {"loss": total, "grad_norm": norm} if good else {}  # of a step left out there is nothing to tell
            if good and history is not None and (at.step % plan.log_every == 0 or at.step == plan.steps):
                told = optimizer.shown() if hasattr(optimizer, "shown") else {}
                told |= {} if watch is None else watch.line()
                lr = optimizer.param_groups[0]["lr"]
                history.append({"step": at.step, "kind": "train", **shown, "lr": lr, **told})
            on_step(at.step, shown)
            if at.step % plan.eval_every == 0 or at.step == plan.steps:
                value = validation()
                save()
                if stop is not None and store is not None:  # without a store it is a means to a run, not the run
                    stop.validated(at.step, value, last=at.stopped or at.step == plan.steps)
            elif at.step % plan.checkpoint_every == 0:
                save()
            if stop is not None and stop.wanted:
                save()
                stop.leave(at.step)
    for group, lr in zip(optimizer.param_groups, base_lr, strict=True):
        group["lr"] = lr
    if store is not None:
        store.prune(plan.checkpoint_every, ended=True)
        tensors, _ = checkpoint.load_checkpoint(checkpoint.resolve(store.directory))
        best = {name: tensors[f"phi/{name}"].to(value.device) for name, value in params.items()}
    return at, best


def _differentiate(found: Tensor | Iterable[Tensor], leaves: list[Tensor]) -> tuple[float, Tensor]:
    """Loss and norm of the gradient, which the leaves then hold; it ends at a loss that is not finite (norm nan)."""
    total = 0.0
    for loss in (found,) if isinstance(found, Tensor) else found:
        total += float(loss.detach())
        if not math.isfinite(total):
            return total, torch.tensor(math.nan)
        torch.autograd.backward(loss)
    return total, torch.nn.utils.get_total_norm([p.grad for p in leaves if p.grad is not None])


def _refuse(total: float, norm: float, step: int, params: Params) -> None:
    """DivergedError where one of them is not finite."""
    for what, value in (("loss", total), ("gradient", norm)):
        if not math.isfinite(value):
            raise not_finite(what, value, step, where=of_gradient(params) if what == "gradient" else "")
