"""The delta rule of an inner step: beside its gradient step, a task's weight forgets along what it reads on its support.

    M_t = mean over the positions of task t's support loss of x x^T         [in, in],  x what the weight multiplies
    explicit    W_t <- W_t (I - a M_t) - d_t
    proximal    W_t <- V,   V (I + a M_t) = W_t - d_t

d_t is all that the step does otherwise (`algorithms.inner`: rate * gradient, clip, pull, prox), W_t the weight before it:
what adapts, under its own name, so of a delta over frozen weights the delta, and of a product each factor. Along an input
the explicit form takes W x to (1 - a |x|^2) W x, which contracts where a times the largest eigenvalue of M_t is below 2.
The proximal form is the minimiser over V of <d, V> + |V - W|^2 / 2 + a / 2 * mean |V x|^2, stable for every a. Of one
position and d = - a u x^T it is the published W - a' (W x) x^T + a' u x^T with a' = a / (1 + a |x|^2). The rule of an
optimizer, over all tasks: `optimizers.delta`.

**Of low rank.** With X [N, in] the N positions of a task, each by 1 / sqrt(how many count), M = X^T X, and both forms take
off W X^T C X with

    C = a I   (explicit),    C = a (I + a X X^T)^-1   (proximal, Woodbury; of W - d)          [N, N]

That has the form of a linear layer's gradient, G^T X, so no matrix is written for a task where N < in; else, and where
positions of a task stand in several chunks, M itself is formed and I + a M solved.

**Order.** Second order differentiates through x, so through M and the solve, and through W. First order takes what is
forgotten for a constant, as it does gradient and pull: d W_t / d phi stays the identity.

Source: Behrouz et al. 2025, Nested Learning; Schlag, Irie & Schmidhuber 2021, arXiv:2102.11174.
Shapes: T tasks, C chunks, N positions, a weight [out, in].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.core.offsets import Dense, LowRank, Offset
from metarec.core.ops import linear
from metarec.core.weights import FastWeight, Read
from metarec.errors import DivergedError

LIMIT = 2.0


@dataclass(frozen=True)
class Forget:
    """How an inner step forgets; `names`: of the weights that do, where they adapt."""

    decay: float  # a, > 0
    form: str = "explicit"  # explicit | proximal
    unstable: str = "stop"  # stop | clip, of the explicit form
    names: frozenset[str] = frozenset()

    def asked(self, moving: Collection[str]) -> dict[str, list[Read]]:
        """A list for each weight whose inputs are wanted, to be filled while the support loss is made."""
        return {name: [] for name in moving if name in self.names}

    def of(self, reads: Mapping[str, list[Read]], n_tasks: int, used: Collection[str], step: int) -> dict[str, Pull]:
        """What each weight forgets, or DivergedError, naming step, task and weight, before anything moves.

        `used`: what the loss has a gradient for. A weight that nothing reads forgets nothing.
        """
        found = {}
        for name, told in reads.items():
            if not told:
                if name in used:
                    raise ValueError(f"{name} is said to be a linear layer, and the loss does not read it as one")
                continue
            found[name] = self._pull(name, told, n_tasks, step)
        return found

    def _pull(self, name: str, told: list[Read], n_tasks: int, step: int) -> Pull:
        width = told[0].x.shape[2]
        if all(one.owner is None for one in told) and sum(one.x.shape[1] for one in told) < width:
            x = torch.cat([_real(one) for one in told], 1) / _count(told, n_tasks).sqrt()[:, None, None]
            return Pull(self._rate(name, x @ x.mT, step), x, None, self.form == "proximal")
        moment = _moment(told, n_tasks)
        return Pull(self._rate(name, moment, step), None, moment, self.form == "proximal")

    def _rate(self, name: str, gram: Tensor, step: int) -> Tensor:
        """a of every task [T, 1, 1], of matrices [T, n, n] with the eigenvalues of M that are not zero."""
        trace = gram.detach().diagonal(dim1=1, dim2=2).sum(1)  # at least the largest eigenvalue
        rate = gram.new_full((len(gram), 1, 1), self.decay)
        if not bool(trace.isfinite().all()):
            task = int((~trace.isfinite()).nonzero()[0])
            what = "the second moment of its inputs is not finite; no weight has moved in this step"
            fix = "lower algorithm.inner.lr or algorithm.inner.steps"
            raise DivergedError(_where(name, step, task), float(trace[task]), what, fix, task=task)
        if self.form == "proximal" or not len(trace) or float(trace.max()) * self.decay < LIMIT:
            return rate
        clips = self.unstable == "clip"
        top = torch.linalg.eigvalsh(gram if clips else gram.detach())[:, -1]
        grows = self.decay * top.detach() >= LIMIT
        if not bool(grows.any()):
            return rate
        if not clips:
            raise _unstable(name, step, int(grows.nonzero()[0]), self.decay, top)
        return torch.where(grows, 1 / top.clamp(min=LIMIT / self.decay), self.decay)[:, None, None]


@dataclass(frozen=True)
class Pull:
    """What a weight of T tasks forgets in a step: by `x` [T, N, in] with M = x^T x, or by M itself, `moment` [T, in, in]."""

    rate: Tensor  # [T, 1, 1]
    x: Tensor | None
    moment: Tensor | None
    proximal: bool

    def of(self, weight: FastWeight) -> Offset:
        """What is added to W_t as it is before the step (explicit), or to W_t - d_t (proximal)."""
        if self.x is not None:
            seen = linear(self.x, weight)  # x W_t^T [T, N, out]
            if self.proximal:
                seen = torch.linalg.solve(self._ahead(self.x @ self.x.mT), seen)
            return LowRank.of(-self.rate * seen, self.x)
        assert self.moment is not None
        taken = self.rate * self.moment
        if self.proximal:
            taken = torch.linalg.solve(self._ahead(self.moment), taken)  # (I + a M)^-1 a M, symmetric
        found = weight.shared @ taken
        return Dense(-(found if weight.offset is None else torch.baddbmm(found, weight.offset.dense(), taken)))

    def _ahead(self, gram: Tensor) -> Tensor:
        """I + a gram, [T, n, n]."""
        return torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) + self.rate * gram


def _real(told: Read) -> Tensor:
    """x [C, N, in], zero where it does not count."""
    return told.x if told.real is None else torch.where(told.real[..., None], told.x, 0.0)


def _by_task(values: Tensor, told: Read, n_tasks: int) -> Tensor:
    """values [C, ...] -> their sums over a task's chunks, [T, ...]."""
    if told.owner is None:
        return values
    return values.new_zeros(n_tasks, *values.shape[1:]).index_add(0, told.owner, values)


def _count(told: list[Read], n_tasks: int) -> Tensor:
    """How many positions of each task count, [T], at least 1."""
    total = told[0].x.new_zeros(n_tasks)
    for one in told:
        chunks, width, _ = one.x.shape
        each = one.x.new_full((chunks,), float(width)) if one.real is None else one.real.sum(1).to(one.x.dtype)
        total = total + _by_task(each, one, n_tasks)
    return total.clamp(min=1)


def _moment(told: list[Read], n_tasks: int) -> Tensor:
    """M_t, [T, in, in]."""
    width = told[0].x.shape[2]
    total = told[0].x.new_zeros(n_tasks, width, width)
    for one in told:
        x = _real(one)
        total = total + _by_task(x.mT @ x, one, n_tasks)
    return total / _count(told, n_tasks)[:, None, None]


def _where(name: str, step: int, task: int) -> str:
    return f"delta rule, {name}, inner step {step}, task {task} of the batch"


def _unstable(name: str, step: int, task: int, decay: float, top: Tensor) -> DivergedError:
    largest = float(top[task])
    what = (
        f"the weight would grow along its inputs: {decay:.4g} times the largest eigenvalue {largest:.4g} of their second "
        "moment is not below 2; no weight has moved in this step"
    )
    fix = (
        f"lower algorithm.inner.decay to below {LIMIT / float(top.max()):.2g}, or set algorithm.inner.form=proximal or "
        "algorithm.inner.unstable=clip"
    )
    return DivergedError(_where(name, step, task), f"{decay * largest:.4g}", what, fix, task=task)
