"""BPR-max: the target against the negatives that score highest.

    each = -log sum_j w_j sigmoid(s_target - s_j)  +  reg * sum_j w_j s_j^2,     w = softmax of the negatives' scores

Negatives are drawn with P(i) ~ popularity(i)^alpha (0 = uniformly, 1 = as items occur), n times, for all pairs of the
batch. One that was drawn twice counts twice; a negative that is a pair's own target does not count for that pair, and a
pair that has no other negative costs nothing. What differs from the authors' code: the targets of the other pairs are not
negatives beside the drawn ones, and there is no final activation.

Source: Hidasi & Karatzoglou 2018, arXiv:1706.03847, eq. 10 to 12 and sec. 3.1. Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.objectives import Items, drawn
from metarec.objectives.candidates import by_weight, needed
from metarec.objectives.scores import Scores
from metarec.objectives.standing import Standing
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/bpr_max.yaml"""

    name: str = "bpr_max"
    n_samples: int | None = ranged(None, min=1)  # None = 2048, at most a quarter of the items
    alpha: float = ranged(0.75, min=0)
    reg: float = ranged(1.0, min=0)

    with_repeats: ClassVar[bool] = True


def build(config: Config, items: Items) -> Standing:
    """`n_samples` null: a quarter of the items, at most 2,048; any number may be asked for, since draws repeat."""
    n = drawn("n_samples", config.n_samples, 2048, items.n, with_repeats=True)
    return Standing(BPRMax(torch.from_numpy(items.popularity()), n, config.alpha, config.reg), items.seed)


@dataclass(frozen=True)
class BPRMax:
    counts: Tensor = field(repr=False, compare=False)  # [V]: how often each item occurs in what is trained on
    n_samples: int = 2048  # draws, >= 1
    alpha: float = 0.75  # >= 0
    reg: float = 1.0  # >= 0

    @cached_property
    def summed(self) -> Tensor:
        """Running sums of the weights, float64 [V] on the CPU."""
        sums = self.counts.cpu().double().pow(self.alpha).cumsum(0)
        if not sums[-1] > 0:
            raise ValueError("BPRMax: counts are all zero, so with alpha > 0 nothing can be drawn; give alpha=0")
        return sums

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; -1 (unknown) and 0 (no pair) cost nothing."""
        if len(self.counts) != scores.n_items:
            raise ValueError(f"BPRMax: counts of {len(self.counts)} items, the model has {scores.n_items}")
        items, often = by_weight(self.summed, self.n_samples, needed(generator, self))
        items, often = items.to(target.device), often.to(target.device)
        own, negative = scores.at(target.clamp(min=1)), scores.of(items)
        hit = items == target[..., None]
        empty = hit.all(-1)
        weighed = (negative + often.to(negative).log()).masked_fill(hit & ~empty[..., None], -torch.inf)
        log_w = weighed.log_softmax(-1)
        each = -(log_w + F.logsigmoid(own[..., None] - negative)).logsumexp(-1)
        if self.reg:
            each = each + self.reg * (log_w.exp() * negative.square()).sum(-1)
        return torch.where((target > 0) & ~empty, each, 0.0)
