"""KL anchor: what a model says of the items is held near to what a reference says of them, pair by pair.

    each = temperature^2 * KL(p || q)   or   temperature^2 * KL(q || p)
    p = softmax(reference scores / temperature),  q = softmax(scores / temperature)

The factor keeps the size of the gradient about the same for every temperature (Hinton, Vinyals & Dean 2015,
arXiv:1503.02531, sec. 2). KL(p || q) asks q to have all that p has; KL(q || p) asks it to have nothing that p has not. The
loss of a task takes the mean over its pairs that count, as of any other loss (`metarec.tasks`): never the sum over a
sequence divided by the number of sequences. p is a constant: no gradient reaches the reference.

Source: a KL penalty to the model that one started from, as in Ziegler et al. 2019, arXiv:1909.08593, sec. 2 (there
KL(q || p)). Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarec.objectives.scores import Scores

DIRECTIONS = ("base_adapted", "adapted_base")


@dataclass(frozen=True)
class Anchor:
    """A reference for one batch of pairs, and how much it weighs; made by `Anchor.at` once for all inner steps."""

    weight: float
    forward: bool  # KL(p || q)
    temperature: float
    log_p: Tensor  # [T, N, V], of the reference

    @staticmethod
    def at(reference: Tensor, weight: float, direction: str = "base_adapted", temperature: float = 1.0) -> Anchor:
        """reference [T, N, V]: scores of all items, outside of any graph from here on."""
        log_p = (reference.detach() / temperature).log_softmax(-1)
        return Anchor(weight, direction == "base_adapted", temperature, log_p)

    def __call__(self, scores: Scores, target: Tensor) -> Tensor:
        """target int64 [T, N] -> weight times the divergence of every pair [T, N]; 0 where it does not count."""
        logits = scores.all()
        scaled = logits if self.temperature == 1 else logits / self.temperature
        each: Tensor = _KL.apply(scaled, self.log_p, self.forward)[0]  # type: ignore[no-untyped-call]
        return torch.where(target > 0, (self.weight * self.temperature**2) * each, 0.0)


class _KL(torch.autograd.Function):
    """(x [T, N, V], log p [T, N, V]) -> (divergence [T, N], log q = log softmax x [T, N, V]).

    One array of V is kept beside log p, which all inner steps share. Terms are products with log p - log q, so that
    they are exactly 0 where the two agree. log q is a result, and so the backward pass can itself be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_p: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
        log_q = x.log_softmax(-1)
        ctx.save_for_backward(log_p, log_q)
        ctx.forward = forward
        ctx.set_materialize_grads(False)
        apart = log_p - log_q
        each = (apart * log_p.exp()).sum(-1) if forward else -(apart * log_q.exp()).sum(-1)
        return each, log_q

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_log_q: Tensor | None) -> tuple[Tensor | None, None, None]:
        log_p, log_q = ctx.saved_tensors
        q = log_q.exp()
        slope: Tensor | None = None
        if g is not None:
            if ctx.forward:
                slope = g[..., None] * (q - log_p.exp())
            else:
                apart = log_q - log_p
                slope = g[..., None] * q * (apart - (q * apart).sum(-1, keepdim=True))
        if g_log_q is not None:
            through = g_log_q - q * g_log_q.sum(-1, keepdim=True)
            slope = through if slope is None else slope + through
        return slope, None, None
