"""Surprise: what the levels of a model put out is drawn to where the loss would have it go, pair by pair.

    each += sum over levels of lambda * || y - u ||^2,      u = -dL/dy        target: neg_grad, the way down
                                                            u = +dL/dy        target: grad, Eq. 27 to the letter
                                                            u = 0             target: zero, the control: decay of y
y is the state of the pair at a level (`fast` is what `encode` gives, or each level that the model names), L the loss of
the task as it is without this term. L is a mean over N pairs, so a pair's own dL/dy shrinks as 1/N, and y - u would be y: a
plain decay of activations, whatever the target. `scale` mends that:

    per_token    u is N times as long: the gradient of the pair's own loss, whatever the size of the batch
    raw          u as it is
    normalised   u of length one, or zero where there is no gradient

then `clip`: u is no longer than that. u is a constant, unless `second_order`: then the gradient goes through u as well. The
loss of a task takes the mean over its pairs that count, as of any other loss (`metarec.tasks`).

Source: Behrouz et al. 2025, "Nested Learning", Eq. 27 (the surprise of a state is the gradient of the loss by it). Scale,
clip and controls are ours. Shapes: T tasks, N pairs, d width of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.objectives import seen
from metarec.options import SurpriseTerm

LEVELS = ("fast", "medium", "slow")


@dataclass(frozen=True)
class Surprise:
    """What one loss pays beside its pairs: `weights` is the lambda of each level that has one, > 0."""

    weights: Mapping[str, float]
    target: str = "neg_grad"
    scale: str = "per_token"
    clip: float = 10.0  # 0 = off
    second_order: bool = False

    @staticmethod
    def at(asked: SurpriseTerm, loop: str, step: int) -> Surprise | None:
        """What the loss of this step of a loop, pretrain or outer, pays; None where it pays nothing."""
        weights = {level: value for level in LEVELS if (value := getattr(asked, level)) > 0}
        if not weights or asked.where not in (loop, "both") or step % asked.every:
            return None
        return Surprise(weights, asked.target, asked.scale, asked.clip, asked.second_order)

    def __call__(
        self, loss: Tensor, levels: Mapping[str, Tensor], gather: Callable[[Tensor], Tensor], target: Tensor
    ) -> Tensor:
        """loss [T], made of `levels`, states as `encode` gives them -> the term of every pair [T, N].

        gather: such states -> those of the pairs [T, N, d]. target int64 [T, N]: pairs that do not count cost nothing.
        Raises ValueError for a level that the model has not put out.
        """
        missing = [level for level in self.weights if level not in levels]
        if missing:
            raise ValueError(f"objective.surprise: the model has no level {missing[0]}, it has {', '.join(levels)}")
        y = {level: levels[level] for level in self.weights}
        grads: tuple[Tensor | None, ...] = (None,) * len(y)
        if self.target != "zero":
            grads = torch.autograd.grad(
                loss.sum(), list(y.values()), retain_graph=True, create_graph=self.second_order, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
        counts = (target > 0).sum(1).clamp(min=1)[:, None, None]
        terms, known = [], target > 0
        for (level, states), grad in zip(y.items(), grads, strict=True):
            at_pairs = gather(states).to(loss.dtype)
            u = None if grad is None else self._aim(gather(grad).to(loss.dtype), counts)
            off = at_pairs if u is None else at_pairs - u
            terms.append(self.weights[level] * off.square().flatten(2).sum(2))
            if seen.active is not None:
                seen.active.add(level, at_pairs, u, terms[-1], known)
        return torch.where(known, torch.stack(terms).sum(0), 0.0)

    def _aim(self, grad: Tensor, counts: Tensor) -> Tensor:
        """u [T, N, d] out of the pairs' dL/dy [T, N, d]."""
        u = grad if self.target == "grad" else -grad
        if self.scale == "per_token":
            u = u * counts
        elif self.scale == "normalised":
            length = _length(u, 0.0)
            u = torch.where(length > 0, u / torch.where(length > 0, length, 1.0), 0.0)
        if self.clip:
            length = _length(u, self.clip)
            u = torch.where(length > 0, u * (self.clip / torch.where(length > 0, length, 1.0)), u)
        return u


def _length(u: Tensor, above: float) -> Tensor:
    """|u| [T, N, 1] of the vectors longer than `above`, else 0; no root of a zero is taken, which has no derivative."""
    square = u.square().sum(-1, keepdim=True)
    long = square > above**2
    return torch.where(long, torch.where(long, square, 1.0).sqrt(), 0.0)
