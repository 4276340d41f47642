"""Binary cross-entropy of the target and k negatives.

    each = -1 / (k + 1) * ( log sigmoid(s_target) + sum over negatives j of log(1 - sigmoid(s_j)) )

Negatives are drawn uniformly from all items but the target. SASRec draws one for each pair and does not divide by k + 1;
here k are drawn once for all pairs of the batch, so that scoring them is one product, and the division keeps the loss of
about the same size for every k (Petrov & Macdonald 2023, eq. 3).

Source: Kang & McAuley 2018 (SASRec), arXiv:1808.09781, eq. 6; arXiv:2308.07192. Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.objectives import Items, drawn
from metarec.objectives.candidates import needed, uniform
from metarec.objectives.scores import Scores
from metarec.objectives.standing import Standing
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/bce.yaml"""

    name: str = "bce"
    n_negatives: int | None = ranged(None, min=1)  # None = 256, at most a quarter of the items


def build(config: Config, items: Items) -> Standing:
    """`n_negatives` null: a quarter of the items, at most 256. Raises ConfigError for more than there are."""
    return Standing(BCE(drawn("n_negatives", config.n_negatives, 256, items.n)), items.seed)


@dataclass(frozen=True)
class BCE:
    n_negatives: int = 256  # >= 1; from V - 1 on, all items but the target

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; -1 (unknown) and 0 (no pair) cost nothing."""
        return binary(scores, target, needed(generator, self), self.n_negatives, 1.0)


def binary(scores: Scores, target: Tensor, generator: torch.Generator, n_negatives: int, beta: float) -> Tensor:
    """BCE with the sigmoid of the target's score to the power of `beta`, [T, N]."""
    k = min(n_negatives, scores.n_items - 1)
    items, spare = (found.to(target.device) for found in uniform(scores.n_items, k, generator))
    hit = items == target[..., None]
    left_out = hit | (spare & ~hit.any(-1, keepdim=True))
    negative = F.logsigmoid(-scores.of(items)).masked_fill(left_out, 0.0).sum(-1)
    positive = F.logsigmoid(scores.at(target.clamp(min=1)))
    return torch.where(target > 0, -(beta * positive + negative) / (k + 1), 0.0)
