"""A loop under guard: the weights and the optimizer that `metarec.runs.guard` decides about, and what it decided, done.

Shapes: parameters are of any shape; a loss, a norm and a largest weight are scalars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metarec.errors import DivergedError
from metarec.runs.guard import Event, Guard
from metarec.runs.kept import Kept

FIX = "lower optimizer.lr or algorithm.inner.lr, or set optimizer.clip_norm"


class Guarded:
    """What `metarec.train.fit` asks at each step; all of it goes into a checkpoint and comes back from it."""

    def __init__(self, judge: Guard, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.judge, self.params, self.optimizer = judge, params, optimizer
        self.kept: Kept | None = None
        # what a loss moves by itself: running statistics
        self._unlearned = {name: value for name, value in params.items() if not value.requires_grad}
        self._before: dict[str, Tensor] = {}

    def begin(self, step: int) -> None:
        """Before the first step of this process: the start is what there is to go back to, unless a checkpoint says more."""
        if self.judge.rules.rolls_back and self.kept is None:
            self._keep(step)

    def before_step(self) -> None:
        """Before a loss is made."""
        self._before = {name: value.detach().clone() for name, value in self._unlearned.items()}

    def lets_through(
        self, step: int, loss: float, norm: float, keep: bool, gave_up: DivergedError | None = None
    ) -> bool:
        """Whether step 0, 1, ... may move the weights; if not, they are as before it, or as they were when last good.

        keep: the state before this step is a checkpoint's, and is kept once it is known to be good. `gave_up`: what an
        inner loop has said in place of a loss. Raises DivergedError.
        """
        event = self._of_state(step)
        if event is not None:
            gave_up = None
        elif (event := self.judge.judge(step + 1, loss, norm)) is not None and gave_up is not None:
            event = replace(event, where=gave_up.where)
        elif event is not None and event.kind == "nonfinite_gradient":
            event = replace(event, where=of_gradient(self.params))
        if event is None:
            if self.judge.rules.rolls_back and (keep or step % self.judge.rules.keep_every == 0):
                self._keep(step)
            return True
        if event.action == "warn":
            self.judge.write(event)
            return True
        with torch.no_grad():
            for name, value in self._before.items():
                self.params[name].copy_(value)
        self._act(event, step, gave_up)
        return False

    def lets_stand(self, step: int) -> bool:
        """Whether the weights after the step are finite; if not, they are as they were when last good. DivergedError."""
        weights = [value.detach() for value in self.params.values()]
        largest = float(torch.stack([value.sum() for value in weights]).sum())  # cheap, and finite only if all are
        if not math.isfinite(largest):  # or their sum alone has overflown
            largest = float(torch.nn.utils.get_total_norm(weights, norm_type=math.inf))
        event = self.judge.judge_weights(step + 1, largest)
        if event is not None:
            self._act(replace(event, where=named(self.params)), step)
        return event is None

    def refuse(self, step: int, error: DivergedError) -> None:
        """Write down that the validation of the weights after `step` steps ended in `error`, which ends the run."""
        event = self.judge.decide(step, "nonfinite_validation", number(error), None, "stop")
        self.judge.write(replace(event, where=error.where))

    def _slots(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.params.items():
            for slot, held in self.optimizer.state.get(value, {}).items():
                # a counter, which may be on another device, is in every weight at once
                if isinstance(held, Tensor) and held.ndim and held.is_floating_point():
                    yield f"{slot} of {name}", held

    def _of_state(self, step: int) -> Event | None:
        """The event of moments that are not finite before the step: an infinite second moment moves nothing any more,
        and no loss, gradient or weight ever tells."""
        held = [value for _, value in self._slots()]
        if not held:
            return None
        largest = float(torch.stack([value.sum() for value in held]).sum())
        if math.isfinite(largest):
            return None
        largest = float(torch.nn.utils.get_total_norm(held, norm_type=math.inf))  # or the sum alone has overflown
        event = self.judge.judge_weights(step + 1, largest, "nonfinite_state")
        return event and replace(event, where=named(dict(self._slots())))

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: those of the state kept for a rollback; none where nothing is rolled back."""
        return {} if self.kept is None else self.kept.tensors()

    def state(self) -> dict[str, Any]:
        """For a checkpoint: window, counters, rate, and which state is kept."""
        return {**self.judge.state(), "kept": None if self.kept is None else self.kept.state()}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Go on as a checkpoint says; one that was written without a guard says nothing."""
        if state is not None:
            self.judge.load(state)
            if state["kept"] is not None:
                self.kept = Kept.stored(tensors, state["kept"], self.params)

    def _keep(self, step: int) -> None:
        self.kept = Kept.of(step, self.params, self.optimizer, self.judge.detector.state(), self._before)

    def _act(self, event: Event, step: int, gave_up: DivergedError | None = None) -> None:
        """Write it down, then roll back or raise; a skip needs nothing more."""
        if event.action == "rollback":
            assert self.kept is not None  # `begin` keeps the start
            self.kept.put_back(self.params, self.optimizer)
            self.judge.detector.load(self.kept.detector)
            self.judge.write(event, to=self.kept.step, rate=self.judge.rate)
        else:
            self.judge.write(event)
        if event.action == "stop":
            raise _stopped(event, step) if gave_up is None or event.why else gave_up.within(f"outer step {step}")


def named(tensors: Mapping[str, Tensor]) -> str:
    """The first of the tensors, of any shape, that is not finite, and how many more are; "" where all are."""
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value.detach()).all())]
    return "" if not bad else bad[0] if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more"


def of_gradient(params: Mapping[str, Tensor]) -> str:
    """`named` of the gradients; "" where only their norm has overflown."""
    return named({name: value.grad for name, value in params.items() if value.grad is not None})


def number(error: DivergedError) -> float:
    """What was found, where that is no finite number; else nan."""
    try:
        value = float(error.value)
    except ValueError:
        return math.nan
    return math.nan if math.isfinite(value) else value


def not_finite(what: str, value: float, step: int, why: str = "", where: str = "") -> DivergedError:
    """The refusal of a scalar loss or gradient norm of step 0, 1, ..., seen before it reached a weight."""
    of = f" ({where})" if where else ""
    return DivergedError(
        f"outer step {step}", value, f"the {what} is not finite{of}{why}; the weights are as before this step", FIX
    )


def _stopped(event: Event, step: int) -> DivergedError:
    why = f" ({event.why})" if event.why else ""
    if event.kind == "spike":
        what = f"the loss is a spike, above {event.threshold:.4g}{why}; the weights are as before this step"
        return DivergedError(f"outer step {step}", f"{event.value:.4g}", what, f"{FIX}, or guard.on_spike=warn")
    if event.kind == "nonfinite_weights":
        what = f"the weights after the step are not finite ({event.where}){why}; the last checkpoint is as before"
        return DivergedError(f"outer step {step}", event.value, what, FIX)
    if event.kind == "nonfinite_state":
        what = f"the optimizer's state is not finite ({event.where}){why}; the weights are as before this step"
        return DivergedError(f"outer step {step}", event.value, what, "resume from the last checkpoint")
    return not_finite(event.kind.removeprefix("nonfinite_"), event.value, step, why, event.where)
