"""Meta-learning one task at a time: full copies, autograd, plain loops. The slow second version of `algorithms`.

    phi_t[j+1] = phi_t[j] - rate_j * (clip(grad L_t(phi_t[j])) + pull * phi_t[j] + prox * (phi_t[j] - phi))

A task is two functions, the loss of its support and of its query under one task's weights. What is trained is one
dictionary: weights (of a model, or a residual's delta), contexts, `rates/<name>` = log of step sizes, and [steps + 1, ...]
where each step has its own. `maml` serves all algorithms that differentiate a query loss, `reptile` and `imaml` the others;
`Reference` below is the oldest and plainest of all, with torch.optim.SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from reference.gru4rec_reference import ReferenceGRU4Rec, reference_of
from reference.small_episodes import Pair
from torch import Tensor

Params = dict[str, Tensor]
Task = tuple[list[Pair], list[Pair]]  # support, query
Loss = Callable[[Params], Tensor]  # weights of one task -> a number
TaskLosses = tuple[Loss, Loss]  # support, query


# -- the inner loop -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """Adaptation of one task. `adapted`: names of what moves, None = all; `per_step`: of what each step has for itself."""

    lr: float
    steps: int
    pull: float = 0.0
    prox: float = 0.0
    clip: float = 0.0  # of the norm of the whole gradient, pull and prox left out; 0 = off
    rates: str = "fixed"  # fixed | tensor | tensor_step | element | element_step
    adapted: Collection[str] | None = None
    per_step: Collection[str] = ()
    fixed: Collection[str] = ()  # what is not trained either: statistics

    def moves(self, name: str) -> bool:
        return name not in self.per_step and (self.adapted is None or name in self.adapted)


def path(loop: Loop, phi: Params, support: Loss, second_order: bool) -> list[Params]:
    """A task's weights after 0, 1, ..., `steps` steps.

    First order: each step subtracts a number from weights that keep their graph, so d phi_t / d phi is the identity.
    """
    own = {name: value for name, value in phi.items() if not name.startswith("rates/")}
    own |= {name: phi[name][0] for name in loop.per_step}
    found = [own]
    for j in range(loop.steps):
        here = own
        if not second_order:
            here = {name: value.detach().requires_grad_(name not in loop.fixed) for name, value in own.items()}
        moving = [name for name in own if loop.moves(name)]
        grads = dict(zip(moving, slopes(support(here), [here[name] for name in moving], second_order), strict=True))
        if loop.clip:
            norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
            if norm > loop.clip:
                grads = {name: loop.clip / norm * grad for name, grad in grads.items()}
        after = {}
        for name, value in own.items():
            if name in loop.per_step:
                after[name] = phi[name][j + 1]
            elif name in grads:
                step = grads[name] + loop.pull * here[name]
                if loop.prox:
                    step = step + loop.prox * (here[name] - (phi[name] if second_order else phi[name].detach()))
                rate: float | Tensor = loop.lr
                if loop.rates != "fixed":
                    rate = phi[f"rates/{name}"].exp()
                    rate = rate[j] if loop.rates.endswith("_step") else rate
                after[name] = value - rate * (step if second_order else step.detach())
            else:
                after[name] = value
        own = after
        found.append(own)
    return found


def slopes(loss: Tensor, at: Sequence[Tensor], create_graph: bool = False, retain: bool | None = None) -> list[Tensor]:
    """The gradient with respect to each tensor, zero where the loss does not use it."""
    if not loss.requires_grad or not at:
        return [torch.zeros_like(value) for value in at]
    return list(
        torch.autograd.grad(
            loss, at, create_graph=create_graph, retain_graph=retain, allow_unused=True, materialize_grads=True
        )
    )


def judged(own: Params, query: Loss, pull: float) -> Tensor:
    """The query loss with the pull that the inner loop had: pull / 2 * |phi_t|^2, of all weights that are trained."""
    return query(own) + 0.5 * pull * sum(value.square().sum() for value in own.values() if value.requires_grad)


# -- algorithms -----------------------------------------------------------------------------------------------------


def second_order_at(order: str, step: int = 0, switch_step: int = 0) -> bool:
    """`first`, `second`, or `annealed`: first until the outer step `switch_step`, then second."""
    return {"first": False, "second": True, "annealed": step >= switch_step}[order]


def step_weights(multi_step: str, steps: int, step: int = 0, until: int = 0) -> list[float]:
    """What the query losses after 0, ..., `steps` steps count: the last alone; or, from the first step on, 1/K each; or
    the one moving to the other over the outer steps 0..`until`."""
    last, even = [0.0] * steps + [1.0], [0.0] + [1 / max(steps, 1)] * steps
    if multi_step == "last" or steps == 0:
        return last
    done = 0.0 if multi_step == "uniform" else min(step / until, 1.0)
    return [done * a + (1 - done) * b for a, b in zip(last, even, strict=True)]


def maml(
    loop: Loop, phi: Params, tasks: Sequence[TaskLosses], weights: Sequence[float], second_order: bool
) -> tuple[list[float], Params]:
    """(meta-loss of each task, gradient of their mean by all that is trained); `weights` of the losses after each step."""
    losses, total = [], zeros(phi)
    for support, query in tasks:
        start = leaves(phi, loop.fixed)
        every = path(loop, start, support, second_order)
        parts = [w * judged(own, query, loop.pull) for w, own in zip(weights, every, strict=True) if w]
        loss = torch.stack(parts).sum()
        losses.append(loss.item())
        trained = [name for name in start if name not in loop.fixed]
        for name, grad in zip(trained, slopes(loss, [start[name] for name in trained]), strict=True):
            total[name] += grad / len(tasks)
    return losses, total


def reptile(loop: Loop, phi: Params, tasks: Sequence[TaskLosses], support_share: float) -> tuple[list[float], Params]:
    """(query loss of each task, phi - mean phi_t) after the inner loop on support and query together."""
    losses, total = [], zeros(phi)
    for support, query in tasks:

        def both(own: Params, support: Loss = support, query: Loss = query) -> Tensor:
            return support_share * support(own) + (1 - support_share) * query(own)

        end = path(loop, leaves(phi), both, False)[-1]
        losses.append(judged(end, query, loop.pull).item())
        for name in phi:
            if loop.moves(name):
                total[name] += (phi[name] - end[name]).detach() / len(tasks)
    return losses, total


def imaml(loop: Loop, lam: float, phi: Params, tasks: Sequence[TaskLosses]) -> tuple[list[float], Params]:
    """(query loss of each task, mean of (I + H / lambda)^-1 grad L_query), H formed in full and the system solved directly.

    The loop is proximal (`loop.prox` = lambda) and may end anywhere. A pull belongs to the inner problem and to what is
    judged, so to H and to both losses. Weights w that do not adapt: grad_w L_query - grad_w <grad L_support, v> / lambda.
    """
    assert loop.prox == lam
    losses, total = [], zeros(phi)
    for support, query in tasks:
        end = leaves(path(loop, leaves(phi), support, False)[-1])
        moving, others = [n for n in end if loop.moves(n)], [n for n in end if not loop.moves(n)]
        ends, rest = [end[name] for name in moving], [end[name] for name in others]
        inside = support(end) + 0.5 * loop.pull * sum(value.square().sum() for value in ends)
        slope = torch.cat([grad.flatten() for grad in slopes(inside, ends, create_graph=True)])
        # one product with the Hessian for every row of the identity, in one call
        rows = torch.autograd.grad(
            slope, ends, torch.eye(len(slope), dtype=slope.dtype), retain_graph=True, is_grads_batched=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        hessian = torch.cat([row.flatten(1) for row in rows], 1)
        loss = judged(end, query, loop.pull)
        losses.append(loss.item())
        of_query = slopes(loss, ends, retain=True)
        right = torch.cat([grad.flatten() for grad in of_query])
        v = torch.linalg.solve(torch.eye(len(right), dtype=right.dtype) + hessian / lam, right)
        for name, part in zip(moving, v.split([value.numel() for value in ends]), strict=True):
            total[name] += part.view_as(phi[name]) / len(tasks)
        through = slopes(slope @ v.detach(), rest)
        for name, plain, more in zip(others, slopes(loss, rest), through, strict=True):
            total[name] += (plain - more / lam) / len(tasks)
    return losses, total


def leaves(params: Mapping[str, Tensor], fixed: Collection[str] = ()) -> Params:
    return {name: value.detach().clone().requires_grad_(name not in fixed) for name, value in params.items()}


def zeros(params: Mapping[str, Tensor]) -> Params:
    return {name: torch.zeros_like(value) for name, value in params.items()}


# -- by torch.optim.SGD ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """GRU4Rec with theta = base + alpha * delta; without a residual base = 0 and alpha = 1, so delta is the model."""

    base: Params
    lr: float
    steps: int
    alpha: float = 1.0
    pull: float = 0.0

    @cached_property
    def module(self) -> ReferenceGRU4Rec:
        """Only its forward is used; the weights are given with each call."""
        return reference_of(self.base)

    def logits(self, delta: Params, pairs: Sequence[Pair]) -> Tensor:
        theta = {name: self.base[name] + self.alpha * value for name, value in delta.items()}
        return torch.func.functional_call(self.module, theta, ([prefix for prefix, _ in pairs],))

    def loss(self, delta: Params, pairs: Sequence[Pair]) -> Tensor:
        """Mean cross-entropy over the pairs with a known target (zero, but differentiable, where there is none)."""
        logits = self.logits(delta, pairs)
        known = [i for i, (_, target) in enumerate(pairs) if target > 0]
        if not known:
            return logits.sum() * 0
        return F.cross_entropy(logits[known], torch.tensor([pairs[i][1] - 1 for i in known]))

    def adapt(self, delta: Params, support: Sequence[Pair]) -> Params:
        """A full copy of delta for this task, moved by torch.optim.SGD."""
        own = leaves(delta)
        optimizer = torch.optim.SGD(own.values(), lr=self.lr, weight_decay=self.pull)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.loss(own, support).backward()
            for value in own.values():  # a weight that no prefix reads has gradient zero, so that the pull acts on it
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            optimizer.step()
        return own

    def fomaml(self, delta: Params, tasks: Sequence[Task]) -> tuple[list[float], Params]:
        """(query loss of every task, meta-gradient = mean over tasks of the gradient at the adapted delta)."""
        losses, total = [], zeros(delta)
        for support, query in tasks:
            own = leaves(self.adapt(delta, support))
            loss = judged(own, lambda own, query=query: self.loss(own, query), self.pull)  # type: ignore[misc]
            losses.append(loss.item())
            for name, grad in zip(own, slopes(loss, list(own.values())), strict=True):
                total[name] += grad / len(tasks)
        return losses, total

    def maml(self, delta: Params, tasks: Sequence[Task]) -> tuple[list[float], Params]:
        """The same with the graph through the inner steps kept: the exact gradient of the meta-objective."""

        def of(pairs: list[Pair]) -> Loss:
            return lambda own: self.loss(own, pairs)

        loop, losses = Loop(self.lr, self.steps, self.pull), [(of(support), of(query)) for support, query in tasks]
        return maml(loop, delta, losses, step_weights("last", self.steps), True)


def no_base(params: Params) -> Params:
    """The base of a model without residual: zero."""
    return zeros(params)
