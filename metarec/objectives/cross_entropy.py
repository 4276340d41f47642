"""Cross-entropy over the whole catalogue.

    each = -log softmax(scores)[target]

With label smoothing s the target has probability 1 - s + s/V and every other item s/V (Szegedy et al. 2016,
arXiv:1512.00567, sec. 7). Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.objectives.scores import Scores


@dataclass(frozen=True)
class CrossEntropy:
    label_smoothing: float = 0.0  # in [0, 1)

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; targets are 1..V; -1 (unknown) and 0 (no pair) cost nothing."""
        logits = scores.all()
        column = (target - 1).clamp(min=-1)  # -1 is ignored: no pair (0) and an unknown item (-1)
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            column.reshape(-1),
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).view(target.shape)


def cross_entropy(
    scores: Scores | Tensor, target: Tensor, generator: torch.Generator | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """`CrossEntropy` as a function; of plain logits [T, N, V] it is the mean of each task [T]."""
    objective = CrossEntropy(label_smoothing)
    if isinstance(scores, Tensor):
        return objective(Scores.of_logits(scores), target).sum(1) / (target > 0).sum(1).clamp(min=1)
    return objective(scores, target, generator)
