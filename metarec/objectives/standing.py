"""An objective that draws its items once and for all where it is given no generator.

Training hands every step a generator, so there items are drawn anew. Validation, the tuning of the control and the final
measurement adapt without one; then the items are those of (seed, V), the same for every user, inner step, chunk of tasks
and call. So two evaluations agree to the last digit, and what a step size or a number of steps does is compared on the
same draw. Ranks have no part in it: they are always over all items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.core import seeding
from metarec.objectives.scores import Scores


@dataclass(frozen=True)
class Standing:
    objective: Callable[[Scores, Tensor, torch.Generator | None], Tensor]
    seed: int

    def __call__(self, scores: Scores, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """scores, target int64 [T, N] -> [T, N]."""
        if generator is None:
            generator = seeding.generator(self.seed, "standing items", 0, target.device)
        return self.objective(scores, target, generator)
