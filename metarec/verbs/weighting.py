"""What each support pair counts in the loss of its task, wherever the meta-learned start is adapted.

    uniform       all alike
    recency       pair i of K counts exp(recency * i / (K - 1)): older pairs count less
    reliability   the reliability of the pair's session up to its target (`metarec.data.reliability`)

The fine-tune control and pretraining count all pairs alike. Shapes: T tasks, K support pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.config.schema import MetaConfig
from metarec.core.batch import EpisodeBatch


@dataclass(frozen=True)
class Weighting:
    """`by`: uniform, recency or reliability; `strength`: of recency."""

    by: str = "uniform"
    strength: float = 0.0

    def weights(self, batch: EpisodeBatch) -> Tensor | None:
        """[K] or [T, K], > 0; None = all alike."""
        if self.by == "reliability":
            assert batch.reliability is not None  # `metarec.build.bench` asks for it
            return batch.reliability
        n_pairs = batch.support.target.shape[1]
        if self.by == "uniform" or self.strength == 0 or n_pairs < 2:
            return None
        return torch.linspace(0.0, self.strength, n_pairs, device=batch.support.target.device).exp()


UNIFORM = Weighting()


def weighting_of(options: MetaConfig) -> Weighting:
    """Of `algorithm.inner`: the way and, only where it weighs by recency, its strength."""
    section = options.inner
    return Weighting(section.support_weights, section.recency if section.support_weights == "recency" else 0.0)
