"""Sampled softmax: cross-entropy against items drawn by popularity, their scores corrected for how they were drawn.

    each = log( exp(s_target) + sum over drawn j != target of exp(s_j - log pi_j) ) - s_target

Items are drawn log-uniformly by rank of popularity, P(k) = log((k+2)/(k+1)) / log(V+1) for k = 0, 1, ... (Zipf's law), n
times; those that came up are the candidates of all pairs of the batch. pi_j = 1 - (1 - P_j)^n is the expected count of an
item among them. With 1/pi_j the sum inside the logarithm has the softmax's own denominator as its mean, so loss and
gradient approach those of the full softmax as n grows, with a bias of order 1/n (the logarithm of a mean). The target is
always there: its expected count is 1, and as a candidate it is left out (an accidental hit).

Source: Bengio & Senecal 2008, "Adaptive importance sampling to accelerate training of a neural probabilistic language
model"; Jean et al. 2015, arXiv:1412.2007, sec. 3. Correcting the target's score as well, as is often done, makes the
denominator's mean another one (Khrylchenko et al. 2025, arXiv:2507.09331).

Shapes: T tasks, N pairs, V items, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metarec.objectives import Items, drawn
from metarec.objectives.candidates import log_uniform, needed
from metarec.objectives.scores import Scores
from metarec.objectives.standing import Standing
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/sampled_softmax.yaml"""

    name: str = "sampled_softmax"
    n_samples: int | None = ranged(None, min=1)  # None = 1024, at most a quarter of the items


def build(config: Config, items: Items) -> Standing:
    """`n_samples` null: a quarter of the items, at most 1,024. The ranks of popularity are made here, ties by the item.

    Raises ConfigError for more than there are.
    """
    n = drawn("n_samples", config.n_samples, 1024, items.n)
    by_rank = torch.from_numpy(np.argsort(-items.popularity(), kind="stable") + 1)
    return Standing(SampledSoftmax(by_rank.to(items.device), n), items.seed)


@dataclass(frozen=True)
class SampledSoftmax:
    by_rank: Tensor = field(repr=False, compare=False)  # int64 [V]: all items, the most popular first
    n_samples: int = 1024  # draws, >= 1; from V on it is the full softmax

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; -1 (unknown) and 0 (no pair) cost nothing."""
        if len(self.by_rank) != scores.n_items:
            raise ValueError(f"SampledSoftmax: by_rank names {len(self.by_rank)} items, the model has {scores.n_items}")
        ranks, expected = log_uniform(scores.n_items, self.n_samples, needed(generator, self))
        items, order = self.by_rank.to(target.device)[ranks.to(target.device)].sort()
        own = scores.at(target.clamp(min=1))
        drawn = scores.of(items)
        drawn = drawn - expected.log().to(drawn)[order]
        drawn = drawn.masked_fill(items == target[..., None], -torch.inf)
        each = torch.cat([own[..., None], drawn], -1).logsumexp(-1) - own
        return torch.where(target > 0, each, 0.0)
