"""Cross-entropy over the whole catalogue.

    each = -log softmax(scores)[target]

With label smoothing s the target has probability 1 - s + s/V and every other item s/V (Szegedy et al. 2016,
arXiv:1512.00567, sec. 7). Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.objectives import Items
from metarec.objectives.scores import Scores
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/cross_entropy.yaml"""

    name: str = "cross_entropy"
    label_smoothing: float = ranged(0.0, min=0, max=1, exclusive=["max"])


def build(config: Config, items: Items) -> Callable[..., Tensor]:
    """Draws nothing, so the items are not looked at."""
    return partial(cross_entropy, label_smoothing=config.label_smoothing)


@dataclass(frozen=True)
class CrossEntropy:
    label_smoothing: float = 0.0  # in [0, 1)

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; targets are 1..V; -1 (unknown) and 0 (no pair) cost nothing."""
        logits = scores.all()
        if self.label_smoothing == 0:
            each: Tensor = _Each.apply(logits, target)[0]  # type: ignore[no-untyped-call]
            return each
        column = (target - 1).clamp(min=-1)  # -1 is ignored: no pair (0) and an unknown item (-1)
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            column.reshape(-1),
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).view(target.shape)


class _Each(torch.autograd.Function):
    """(logits [T, N, V], target [T, N]) -> (loss of every pair [T, N], softmax p [T, N, V]).

    What torch's own does, with fewer passes over the catalogue and one array of it kept instead of two: neither the
    logarithms of p nor the gradient that is zero but at the target is ever written. log sum exp is known from the largest p,
    which is at least 1/V. p is a result, and so the backward pass can itself be differentiated through it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        p = logits.softmax(-1)
        counts = target > 0
        column = (target - 1).clamp(min=0)[..., None]
        log_sum = logits.amax(-1) - p.amax(-1).log()
        each = torch.where(counts, log_sum - logits.gather(-1, column)[..., 0], 0.0)
        ctx.save_for_backward(p, column, counts)
        ctx.set_materialize_grads(False)
        return each, p

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_p: Tensor | None) -> tuple[Tensor | None, None]:
        p, column, counts = ctx.saved_tensors
        slope: Tensor | None = None
        if g is not None:
            g = torch.where(counts, g, 0.0)[..., None]
            slope = (p * g).scatter_add_(-1, column, -g)
        if g_p is not None:
            through = p * (g_p - (p * g_p).sum(-1, keepdim=True))
            slope = through if slope is None else slope + through
        return slope, None


def cross_entropy(
    scores: Scores | Tensor, target: Tensor, generator: torch.Generator | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """`CrossEntropy` as a function; of plain logits [T, N, V] it is the mean of each task [T]."""
    objective = CrossEntropy(label_smoothing)
    if isinstance(scores, Tensor):
        return objective(Scores.of_logits(scores), target).sum(1) / (target > 0).sum(1).clamp(min=1)
    return objective(scores, target, generator)
