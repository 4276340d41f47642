"""gBCE: binary cross-entropy against few negatives, without the overconfidence that comes of having few.

    each = -1 / (k + 1) * ( beta log sigmoid(s_target) + sum over negatives j of log(1 - sigmoid(s_j)) )
    beta = a (t (1 - 1/a) + 1/a) = 1 - t (1 - a),     a = k / (V - 1), the share of the negatives that is drawn

A negative is seen with probability a only, a target always, so under plain BCE (t = 0, beta = 1) the sigmoid of a score
settles at p / (p + a (1 - p)) where the true probability is p: everything near the top is close to 1. With t = 1 (beta =
a) it settles at p itself. In between is a trade of calibration against speed.

Source: Petrov & Macdonald 2023 (gSASRec), arXiv:2308.07192, eq. 8 and 14; k and t of its sec. 6. Shapes: T tasks, N pairs,
V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.objectives import Items, drawn
from metarec.objectives.bce import binary
from metarec.objectives.candidates import needed
from metarec.objectives.scores import Scores
from metarec.objectives.standing import Standing
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/gbce.yaml"""

    name: str = "gbce"
    n_negatives: int | None = ranged(None, min=1)  # None = 256, at most a quarter of the items
    t: float = ranged(0.75, min=0, max=1)


def build(config: Config, items: Items) -> Standing:
    """`n_negatives` null: a quarter of the items, at most 256; beta follows from V in every call. Raises ConfigError
    for more than there are.
    """
    return Standing(GBCE(drawn("n_negatives", config.n_negatives, 256, items.n), config.t), items.seed)


@dataclass(frozen=True)
class GBCE:
    n_negatives: int = 256  # >= 1; from V - 1 on, all items but the target
    t: float = 0.75  # in [0, 1]; 0 = BCE, 1 = calibrated

    def beta(self, n_items: int) -> float:
        """The exponent of the target's sigmoid for a catalogue of V items; 1 where nothing can be drawn."""
        if n_items < 2:
            return 1.0
        share = min(self.n_negatives, n_items - 1) / (n_items - 1)
        return 1 - self.t * (1 - share)

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; -1 (unknown) and 0 (no pair) cost nothing."""
        return binary(scores, target, needed(generator, self), self.n_negatives, self.beta(scores.n_items))
