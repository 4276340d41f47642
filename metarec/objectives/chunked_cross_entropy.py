"""Cross-entropy over the whole catalogue, without ever holding the scores of the whole catalogue.

    each = log sum over chunks of sum exp(scores of the chunk)  -  score of the target

Exact: only sums of a chunk are kept, and the backward pass scores each chunk again (Chen et al. 2016, arXiv:1604.06174).
So memory is T * N * chunk numbers in place of a few times T * N * V, and time is one product more. It can be
differentiated as often as `CrossEntropy`, and gives its numbers to rounding.

In the inner loop it is `CrossEntropy` itself: there the gradient of every task by every score, [T, N, V], is what the
step of the output layer is made of (`core.offsets.LowRank`), so leaving out the scores would save nothing.

Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metarec.objectives import Items
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.scores import Scores
from metarec.options import Anchored, ranged


@dataclass
class Config(Anchored):
    """conf/objective/chunked_cross_entropy.yaml"""

    name: str = "chunked_cross_entropy"
    chunk: int = ranged(8192, min=1)
    label_smoothing: float = ranged(0.0, min=0, max=1, exclusive=["max"])


def build(config: Config, items: Items) -> ChunkedCrossEntropy:
    """`chunk` is a number of items; the loss does not depend on it."""
    return ChunkedCrossEntropy(config.chunk, config.label_smoothing)


@dataclass(frozen=True)
class ChunkedCrossEntropy:
    chunk: int = 8192  # items scored at a time, >= 1
    label_smoothing: float = 0.0  # in [0, 1)

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """target int64 [T, N] -> [T, N]; -1 (unknown) and 0 (no pair) cost nothing."""
        if scores.tapped:
            return CrossEntropy(self.label_smoothing)(scores, target, generator)

        s = self.label_smoothing

        def sums(items: Tensor) -> tuple[Tensor, ...]:
            logits = scores.of(items)
            return (logits.logsumexp(-1), logits.sum(-1)) if s else (logits.logsumexp(-1),)

        everything = torch.arange(1, scores.n_items + 1, device=target.device)
        parts = [
            checkpoint(sums, items, use_reentrant=False, preserve_rng_state=False)
            for items in torch.split(everything, self.chunk)
        ]
        each = torch.stack([part[0] for part in parts]).logsumexp(0)
        each = each - (1 - s) * scores.at(target.clamp(min=1))
        if s:
            each = each - s / scores.n_items * torch.stack([part[1] for part in parts]).sum(0)
        return torch.where(target > 0, each, 0.0)
