"""The one inner loop: a few gradient steps for all tasks of a batch at once.

    phi_t[0] = phi
    phi_t[j+1] = phi_t[j] - rate_j * (clip(grad L_t(phi_t[j])) + pull * phi_t[j] + prox * (phi_t[j] - phi))

`phi` is shared; what a task has learned is its offset phi_t - phi (`core.weights`). The first step runs on the shared
weights alone.

**Order.** First order: the gradient is under stop-gradient, so d phi_t / d phi is the identity, and whatever loss is taken
at the result and differentiated with respect to `phi` gives the first-order meta-gradient (Finn et al. 2017,
arXiv:1703.03400, sec. 5.2) and, exactly, that of learned step sizes. Second order: the graph through the gradients is kept.
Tasks are independent: the gradient of the *sum* of their losses with respect to the offsets is each task's own.

**Learned step sizes** are exp of a trained number, so they stay positive: one for each tensor (Antoniou et al. 2019,
arXiv:1810.09502, with one for each step as well), or for each element (Li et al. 2017, arXiv:1707.09835, who let them
change sign). They stand in `phi` beside the weights, under `rates/<name>`.

The pull is the gradient of pull / 2 * |phi_t|^2 (for a residual: towards the pretrained weights), prox that of
prox / 2 * |phi_t - phi|^2. Both shrink what is there, so they cost no per-task matrix; the clip does not see them.
With `forget`, linear weights forget along what they read on the support as well (`algorithms.forgetting`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarec.algorithms.forgetting import Forget
from metarec.core import inputs
from metarec.core.offsets import Offset, dot, moved, rebuilt, tensors
from metarec.core.weights import FastWeight, Params, Read, Tap, Weights
from metarec.errors import DivergedError

TaskLoss = Callable[[Weights], Tensor]  # weights of T tasks -> their losses [T]
RATES = ("fixed", "tensor", "tensor_step", "element", "element_step")
RATE = "rates/"  # what the names of learned step sizes begin with
OWN = (RATE, "generator/")  # what is learned beside the weights and is none
TINY = 1e-30  # below the square of any norm that a clip could act on


@dataclass(frozen=True)
class InnerLoop:
    """Everything about adaptation that is the same in every outer step.

    `adapted`: names of what moves, None = all. `per_step`: names of which every step has its own (and that never move
    inside): `phi` holds them as [steps + 1, *S]. `kept`: those of them that are no weights but statistics, which nothing
    pulls. `recompute`: under second order, keep no graph of a step but its ends.
    """

    lr: float = 0.01
    steps: int = 3
    pull: float = 0.0
    prox: float = 0.0
    clip: float = 0.0  # of the norm of a task's whole gradient; 0 = off
    rates: str = "fixed"
    adapted: frozenset[str] | None = None
    per_step: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    recompute: bool = False
    forget: Forget | None = None  # None = a step is the gradient's alone

    def learned(self, phi: Params) -> Params:
        """`phi` and what is learned beside it: step sizes, and a copy for every step of `per_step` weights."""
        out = {
            name: value.expand(self.steps + 1, *value.shape).clone() if name in self.per_step else value
            for name, value in phi.items()
        }
        if self.rates == "fixed":
            return out
        for name, value in phi.items():
            if self.moves(name):
                shape = value.shape if self.rates.startswith("element") else ()
                shape = (self.steps, *shape) if self.rates.endswith("_step") else shape
                out[RATE + name] = value.new_full(shape, math.log(self.lr))
        return out

    def moves(self, name: str) -> bool:
        """Whether the inner loop adapts the weight; what every step has its own of never moves inside."""
        return name not in self.per_step and (self.adapted is None or name in self.adapted)

    def at_step(self, phi: Mapping[str, Tensor], step: int) -> Params:
        """The weights in `phi` as they start out for step `step`, without the step sizes.

        [*S] each: of [steps + 1, *S], where every step has its own, one row.
        """
        return {
            name: value[min(step, len(value) - 1)] if name in self.per_step else value
            for name, value in phi.items()
            if not name.startswith(OWN)
        }

    def rate(self, phi: Mapping[str, Tensor], name: str, step: int) -> float | Tensor:
        """The step size of a weight in a step; steps beyond those learned take the last one's (`lr` where there is none).

        A number, or where it is learned a scalar tensor, with a rate for every element [*S].
        """
        if self.rates == "fixed":
            return self.lr
        learned = phi[RATE + name].exp()
        if not self.rates.endswith("_step"):
            return learned
        return learned[min(step, len(learned) - 1)] if len(learned) else self.lr


def start(phi: Mapping[str, Tensor], loop: InnerLoop) -> Params:
    """The weights before adaptation, [*S] each: what is per step as step 0 has it."""
    return loop.at_step(phi, 0)


def adapt(
    support_loss: TaskLoss, phi: Params, n_tasks: int, loop: InnerLoop, *, second_order: bool = False,
    began: Mapping[str, FastWeight] | None = None,
) -> dict[str, FastWeight]:  # fmt: skip
    """The weights of every task after `loop.steps` steps; differentiable with respect to `phi`, and to `began`: what each
    task starts from, in place of `phi` for all.

    A tensor that the loss does not use stays without offset. Raises DivergedError, naming step and task, when a support
    loss is not finite, and task and weight where what it ends with is not.
    """
    *_, last = path(support_loss, phi, n_tasks, loop, second_order=second_order, began=began)
    return last


def path(
    support_loss: TaskLoss, phi: Params, n_tasks: int, loop: InnerLoop, *, second_order: bool = False,
    began: Mapping[str, FastWeight] | None = None,
) -> Iterator[dict[str, FastWeight]]:  # fmt: skip
    """The weights after 0, 1, ..., `loop.steps` steps, one after the other."""
    own = began or {}
    moving = {
        name: own[name].shared if name in own else value
        for name, value in start(phi, loop).items() if loop.moves(name)
    }  # fmt: skip
    offsets: dict[str, Offset] = {name: w.offset for name, w in own.items() if w.offset is not None and name in moving}

    def weights(step: int) -> dict[str, FastWeight]:
        now = loop.at_step(phi, step) | moving
        return {name: FastWeight(value, offsets.get(name)) for name, value in now.items()}

    yield weights(0)
    for number in range(loop.steps):
        run = _Step(support_loss, phi, loop, number, second_order)
        moving, offsets = (run.recomputed if second_order and loop.recompute else run)(moving, offsets)
        if number + 1 == loop.steps:
            check_offsets(offsets, f"after {loop.steps} inner steps")
        yield weights(number + 1)


@dataclass(frozen=True)
class _Step:
    support_loss: TaskLoss
    phi: Params
    loop: InnerLoop
    number: int
    second_order: bool

    def __call__(self, moving: Params, offsets: dict[str, Offset]) -> tuple[Params, dict[str, Offset]]:
        loop, phi, first_order = self.loop, self.phi, not self.second_order
        now = loop.at_step(phi, self.number) | moving
        reads = None if loop.forget is None else loop.forget.asked(moving)
        losses, grads = gradients(self.support_loss, now, offsets, moving, self.second_order, reads)
        _check_finite(losses, self.number)
        pulls = {} if loop.forget is None else loop.forget.of(reads or {}, len(losses), grads, self.number)
        if loop.clip and grads:
            norm = torch.stack([dot(grad, grad) for grad in grads.values()]).sum(0).clamp(min=TINY).sqrt()
            factor = (loop.clip / norm).clamp(max=1.0)
            grads = {name: grad.per_task(factor) for name, grad in grads.items()}
        moving, offsets = dict(moving), dict(offsets)
        for name in moving:
            rate = loop.rate(phi, name, self.number)
            before = FastWeight(moving[name], offsets.get(name))
            if loop.pull:  # it moves what is shared as well, and then the proximal term draws that back
                value, began = moving[name], phi[name]
                if first_order:
                    value, began = value.detach(), began.detach()
                moving[name] = moving[name] - rate * (loop.pull * value + loop.prox * (value - began))
            if name in offsets and (loop.pull or loop.prox):
                offsets[name] = offsets[name].shrunk(rate * (loop.pull + loop.prox), first_order)
            if name in grads:
                ahead = (loop.steps - self.number) * (2 if name in pulls else 1)
                # where the weights between steps are all that is kept, what they have in common is kept once
                offsets[name] = moved(offsets.get(name), grads[name], ahead, -rate, join=not loop.recompute)
            if name in pulls:
                at = FastWeight(moving[name], offsets.get(name)) if pulls[name].proximal else before
                forgotten = pulls[name].of(at.detach() if first_order else at)
                ahead = 2 * (loop.steps - self.number)
                offsets[name] = moved(offsets.get(name), forgotten, ahead, join=not loop.recompute)
        return moving, offsets

    def recomputed(self, moving: Params, offsets: dict[str, Offset]) -> tuple[Params, dict[str, Offset]]:
        """The same step; its graph is made again on the way back, so that memory does not grow with the steps."""
        held = list(self.phi.values()) + list(moving.values()) + [t for o in offsets.values() for t in tensors(o)]
        made: list[tuple[Params, dict[str, Offset]]] = []

        def run(given: list[Tensor], forms: list[tuple[Params, dict[str, Offset]]] | None = None) -> list[Tensor]:
            parts = iter(given)
            phi = {name: next(parts) for name in self.phi}
            own = {name: next(parts) for name in moving}
            off = {name: rebuilt(offset, [next(parts) for _ in tensors(offset)]) for name, offset in offsets.items()}
            found = _Step(self.support_loss, phi, self.loop, self.number, True)(own, off)
            if forms is not None:
                forms.append(found)
            return list(found[0].values()) + [t for o in found[1].values() for t in tensors(o)]

        parts = iter(_Recomputed.apply(run, made, *held))  # type: ignore[no-untyped-call]
        shape_moving, shape_offsets = made.pop()  # which hold the graph that is not to be kept
        return (
            {name: next(parts) for name in shape_moving},
            {name: rebuilt(o, [next(parts) for _ in tensors(o)]) for name, o in shape_offsets.items()},
        )


class _Recomputed(torch.autograd.Function):
    """run(tensors) -> tensors, keeping only what went in; the backward pass runs it again."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., list[Tensor]], forms: list[Any], *held: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(*held)
        with torch.enable_grad():
            out = run([value.detach().requires_grad_(value.requires_grad) for value in held], forms)
        return tuple(value.detach() for value in out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        held = [value.detach().requires_grad_(value.requires_grad) for value in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.run(held)
        pairs = [(o, g) for o, g in zip(out, grads, strict=True) if o.requires_grad]
        wanted = [value for value in held if value.requires_grad]
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
        return (None, None, *(next(found) if value.requires_grad else None for value in held))


def gradients(
    loss: TaskLoss, now: Params, offsets: Mapping[str, Offset], moving: Collection[str], second_order: bool,
    reads: Mapping[str, list[Read]] | None = None,
) -> tuple[Tensor, dict[str, Offset]]:  # fmt: skip
    """(losses [T], the gradient of every task with respect to each weight named in `moving` that its loss uses).

    `reads`: of some of them a list, which is filled with what the loss multiplies by it.
    """
    wanted = reads or {}
    taps = {name: Tap(second_order, dtype=now[name].dtype, reads=wanted.get(name)) for name in moving}
    if not second_order:
        now = {name: value.detach() for name, value in now.items()}
        offsets = {name: offset.detach() for name, offset in offsets.items()}
    with torch.enable_grad():
        with inputs.of_tasks(bool(wanted)):
            losses = loss({n: FastWeight(v, offsets.get(n), taps.get(n)) for n, v in now.items()})
        # one tensor may serve two weights (a layer's matrix and its bias)
        nodes = list({id(at): at for tap in taps.values() for at, _ in tap.notes}.values())
        found = torch.autograd.grad(losses.sum(), nodes, allow_unused=True, create_graph=second_order) if nodes else ()
        by_node = {id(at): grad for at, grad in zip(nodes, found, strict=True)}
        grads: dict[str, Offset] = {}
        for name, tap in taps.items():
            for at, finish in tap.notes:
                grad = by_node[id(at)]
                if grad is not None:
                    part = finish(grad.to(now[name].dtype))  # an offset is as precise as its weight
                    grads[name] = grads[name].plus(part) if name in grads else part
    return losses, grads


def _check_finite(losses: Tensor, step: int) -> None:
    finite = torch.isfinite(losses.detach())
    if not finite.all():
        task = int((~finite).nonzero()[0])
        raise DivergedError(
            f"inner step {step}, task {task} of the batch",
            float(losses[task].detach()),
            "the support loss is not finite",
            "lower algorithm.inner.lr or algorithm.inner.steps",
            task=task,
        )


def check_offsets(offsets: Mapping[str, Offset], place: str) -> None:
    """DivergedError, naming task and weight, where what a task has learned is not finite.

    An infinite weight need not show in a loss: a saturated gate is 0 or 1, an item scored -inf has probability 0. What is
    not finite once stays so, so the end of a path tells of all of it. One sum over what is stored, no matrix is formed.
    """
    parts = [part.detach() for offset in offsets.values() for part in tensors(offset)]
    if not parts or math.isfinite(float(torch.stack([part.sum() for part in parts]).sum())):
        return
    for name, offset in offsets.items():
        for part in tensors(offset):
            finite = torch.isfinite(part.detach())
            if not bool(finite.all()):  # else a sum alone has overflown
                at = (~finite).nonzero()[0]
                raise DivergedError(
                    f"{place}, task {int(at[0])} of the batch",
                    float(part.detach()[tuple(at)]),
                    f"the adapted weights are not finite ({name})",
                    "lower algorithm.inner.lr or algorithm.inner.steps",
                    task=int(at[0]),
                )
