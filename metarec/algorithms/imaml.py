"""iMAML: the meta-gradient at the solution of the inner problem, whatever the path to it.

    phi_t*        = argmin_w L_t(w, support) + lambda / 2 * |w - phi|^2          (a proximal inner loop)
    meta-gradient = mean over tasks of  (I + H_t / lambda)^-1 grad L_t(phi_t*, query)      H_t = Hessian of the support loss

The linear system is solved by conjugate gradient on Hessian-vector products, all tasks at once. Nothing of the inner steps
is kept, so memory does not grow with them; the gradient is exact to the extent that the inner loop has converged and that
`cg_steps` suffice. Where only some weights adapt, the others (w) have their gradient through the solution as well:
grad_w L_query - grad_w <grad L_support, v> / lambda with v the solution of the system.

A per-task vector is kept where the support can bend the loss: the rows that a task has looked up, all of a matrix that is
multiplied by; so a large output matrix costs a dense matrix a task here (use fewer tasks a chunk).

Source: Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630, Alg. 1 and 2, eq. 6. Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from metarec.algorithms import Given, inner
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.algorithms.maml import at_test, judged
from metarec.algorithms.reptile import total
from metarec.core.offsets import Dense, Offset, Rows, rows_at
from metarec.core.weights import FastWeight, Params, squared_norm
from metarec.options import Inner, ranged

Vectors = dict[str, Tensor]  # [T, ...] each


@dataclass
class Config:
    """conf/algorithm/imaml.yaml"""

    name: str = "imaml"
    inner: Inner = field(default_factory=Inner)
    lam: float = ranged(1.0, min=0, exclusive=["min"])
    cg_steps: int = ranged(5, min=1)

    needs_adapted: ClassVar[bool] = True
    taps_query: ClassVar[bool] = True  # each task's own gradient of the query loss is taken


def build(config: Config, given: Given) -> IMAML:
    """The pull of the inner problem (lambda) and the steps of the solver are `config`'s; nothing is derived."""
    return IMAML(given.inner, config.lam, config.cg_steps)


@dataclass(frozen=True)
class IMAML:
    inner: InnerLoop
    lam: float = 1.0  # lambda > 0; larger = closer to the start, better conditioned
    cg_steps: int = 5

    @property
    def loop(self) -> InnerLoop:
        """The inner loop with the proximal term."""
        return replace(self.inner, prox=self.lam)

    def learned(self, phi: Params) -> Params:
        """`phi` with what the inner loop learns beside it; raises ValueError for learned step sizes."""
        if self.inner.rates != "fixed":
            raise ValueError("the implicit gradient does not see the path, so no step size can be learned")
        return self.inner.learned(phi)

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The weights of every task after the proximal inner loop; `lr` and `steps` may differ at test time."""
        return inner.adapt(support_loss, phi, n_tasks, at_test(self.loop, lr, steps))

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """Query losses [T] at the adapted weights; the gradient of their mean is the implicit meta-gradient."""
        with torch.no_grad():
            adapted = inner.adapt(support_loss, phi, n_tasks, self.loop)
        moving = [name for name in adapted if self.inner.moves(name)]
        shared = inner.start(phi, self.inner)  # in the graph, for the weights that do not adapt
        fixed = {name: value.detach() if name in moving else value for name, value in shared.items()}
        offsets = {name: w.offset for name, w in adapted.items() if w.offset is not None}
        if self.inner.pull:  # it moves every weight, what is shared of it as well
            offsets |= {name: Dense(adapted[name].own(n_tasks).detach() - fixed[name]) for name in moving}

        losses = judged(
            query_loss, {name: FastWeight(value, offsets.get(name)) for name, value in fixed.items()}, self.inner
        )
        _, wanted = inner.gradients(query_loss, fixed, offsets, moving, False)
        ends = {name: offset if isinstance(offset, Rows) else Dense(offset.dense()) for name, offset in offsets.items()}
        if self.inner.pull:
            for name in moving:
                pulled = Dense(self.inner.pull * (fixed[name] + _values(ends[name])))
                wanted[name] = wanted[name].plus(pulled) if name in wanted else pulled
        leaves = {name: _values(offset).detach().requires_grad_() for name, offset in ends.items()}
        with torch.enable_grad():
            placed = {name: _around(ends[name], leaf) for name, leaf in leaves.items()}
            at_end = {name: FastWeight(value, placed.get(name)) for name, value in fixed.items()}
            support = support_loss(at_end)
            if self.inner.pull:
                support = support + 0.5 * self.inner.pull * sum(squared_norm(at_end[name]) for name in moving)
            found = torch.autograd.grad(support.sum(), list(leaves.values()), create_graph=True)
            slope = dict(zip(leaves, found, strict=True))

        def hessian(v: Vectors) -> Vectors:
            pairs = [(slope[name], v[name]) for name in v if slope[name].requires_grad]
            if not pairs:
                return {name: torch.zeros_like(value) for name, value in v.items()}
            found = torch.autograd.grad(
                [s for s, _ in pairs], list(leaves.values()), [x for _, x in pairs], retain_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            return dict(zip(leaves, found, strict=True))

        right = {name: _restricted(wanted.get(name), ends[name]) for name in leaves}
        solved = conjugate_gradient(
            lambda v: {name: v[name] + h / self.lam for name, h in hessian(v).items()}, right, self.cg_steps
        )
        # what the support cannot bend keeps its plain gradient
        pseudo = losses.new_zeros(())
        for name, gradient in wanted.items():
            pseudo = pseudo + (phi[name] * total(gradient)).sum()
        for name, v in solved.items():
            more = total(_around(ends[name], v - right[name]))
            pseudo = pseudo + (phi[name] * more).sum()
        cross = sum((slope[name] * v).sum() for name, v in solved.items()) / self.lam if solved else 0.0
        pseudo = (pseudo - cross) / n_tasks
        return losses + (pseudo - pseudo.detach())


def conjugate_gradient(product: Callable[[Vectors], Vectors], right: Vectors, steps: int) -> Vectors:
    """x with product(x) = right, of every task on its own, after at most `steps` steps from 0 (Hestenes & Stiefel 1952)."""
    x = {name: torch.zeros_like(value) for name, value in right.items()}
    r, p = dict(right), dict(right)
    size = _dot(r, r)
    for _ in range(steps):
        ap = product(p)
        bend = _dot(p, ap)
        alpha = torch.where(bend != 0, size / bend.where(bend != 0, 1), 0)
        x = {name: x[name] + _times(alpha, p[name]) for name in x}
        r = {name: r[name] - _times(alpha, ap[name]) for name in r}
        now = _dot(r, r)
        beta = torch.where(size != 0, now / size.where(size != 0, 1), 0)
        p = {name: r[name] + _times(beta, p[name]) for name in p}
        size = now
    return x


def _dot(a: Vectors, b: Vectors) -> Tensor:
    """[T]"""
    return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0) if a else torch.zeros(())


def _times(factor: Tensor, value: Tensor) -> Tensor:
    return value * factor.view(-1, *[1] * (value.dim() - 1))


def _values(offset: Dense | Rows) -> Tensor:
    return offset.value if isinstance(offset, Dense) else offset.values


def _around(end: Dense | Rows, values: Tensor) -> Dense | Rows:
    return Dense(values) if isinstance(end, Dense) else Rows(end.ids, values, end.n_rows)


def _restricted(gradient: Offset | None, end: Dense | Rows) -> Tensor:
    """The part of a gradient that lies where the vectors of `end` live."""
    if gradient is None:
        return torch.zeros_like(_values(end))
    if isinstance(end, Dense):
        return gradient.dense()
    filling = torch.zeros_like(end.ids, dtype=torch.bool)
    filling[:, 1:] = end.ids[:, 1:] == end.ids[:, :-1]  # the repeats stand for no row
    return rows_at(gradient, end.ids).masked_fill(filling.unsqueeze(-1), 0.0)
