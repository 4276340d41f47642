"""Meta-learning one task at a time: full copies, torch.optim.SGD, autograd. The slow second version of `algorithms`.

    theta = base + alpha * delta;   delta[j+1] = delta[j] - lr * (grad_delta L_support + pull * delta[j])

Without a residual base = 0 and alpha = 1, so delta is the model. `fomaml` takes the gradient at the adapted delta (Finn
et al. 2017, arXiv:1703.03400, sec. 5.2); `maml` differentiates through the inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from reference.gru4rec_reference import ReferenceGRU4Rec, reference_of
from reference.small_episodes import Pair
from torch import Tensor

Params = dict[str, Tensor]
Task = tuple[list[Pair], list[Pair]]  # support, query


@dataclass(frozen=True)
class Reference:
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
        own = {name: value.detach().clone().requires_grad_() for name, value in delta.items()}
        optimizer = torch.optim.SGD(own.values(), lr=self.lr, weight_decay=self.pull)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.loss(own, support).backward()
            for value in own.values():  # a weight that no prefix reads has gradient zero, so that the pull acts on it
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            optimizer.step()
        return own

    def query_loss(self, delta: Params, query: Sequence[Pair]) -> Tensor:
        pulled = sum((value.square().sum() for value in delta.values()), torch.zeros(()))
        return self.loss(delta, query) + 0.5 * self.pull * pulled

    def fomaml(self, delta: Params, tasks: Sequence[Task]) -> tuple[list[float], Params]:
        """(query loss of every task, meta-gradient = mean over tasks of the gradient at the adapted delta)."""
        losses, total = [], {name: torch.zeros_like(value) for name, value in delta.items()}
        for support, query in tasks:
            own = {name: value.detach().requires_grad_() for name, value in self.adapt(delta, support).items()}
            loss = self.query_loss(own, query)
            losses.append(loss.item())
            found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            for name, grad in zip(own, found, strict=True):
                if grad is not None:
                    total[name] += grad / len(tasks)
        return losses, total

    def maml(self, delta: Params, tasks: Sequence[Task]) -> tuple[list[float], Params]:
        """The same with the graph through the inner steps kept: the exact gradient of the meta-objective."""
        start = {name: value.detach().clone().requires_grad_() for name, value in delta.items()}
        losses = []
        for support, query in tasks:
            own = dict(start)
            for _ in range(self.steps):
                found = torch.autograd.grad(
                    self.loss(own, support), list(own.values()), create_graph=True, allow_unused=True
                )
                for (name, value), grad in zip(list(own.items()), found, strict=True):
                    full = self.pull * value if grad is None else grad + self.pull * value
                    own[name] = value - self.lr * full
            losses.append(self.query_loss(own, query))
        mean = torch.stack(losses).mean()
        found = torch.autograd.grad(mean, list(start.values()), allow_unused=True)
        grads = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(start.items(), found, strict=True)}
        return [loss.item() for loss in losses], grads


def no_base(params: Params) -> Params:
    """The base of a model without residual: zero."""
    return {name: torch.zeros_like(value) for name, value in params.items()}
