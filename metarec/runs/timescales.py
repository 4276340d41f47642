"""What a loop tells of its timescales: updates of each level, the largest a * eigenvalue, and surprise by level.

    optimizer=cms              updates of each level, and gradients since its last
    optimizer=delta_*          the largest a * eigenvalue of each matrix that forgets, so far
    objective.surprise         |u|, term and cosine of each level, means since the line before (`objectives.seen`)

A line of history.jsonl has them under `timescales`, metrics.json the state at the end. All follows from the optimizer's
state and from sums that stand in each checkpoint, so a resumed run tells the same. A loop with none of the three has no
`Timescales`, and writes nothing.

Shapes: what a checkpoint keeps is [2, 5] for each level with surprise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from metarec.objectives.seen import Seen

KEY = "timescales"  # of a line, and of metrics.json
PRETRAIN_FILE = "pretrain_timescales.json"
Json = dict[str, Any]


class Timescales:
    """Of one loop: what `metarec.train.fit` asks at each step. `seen`: of losses that pay surprise."""

    def __init__(self, optimizer: torch.optim.Optimizer, seen: Seen | None) -> None:
        self.optimizer, self.seen = optimizer, seen

    @staticmethod
    def of(optimizer: torch.optim.Optimizer, surprised: bool) -> Timescales | None:
        """`surprised`: whether losses pay surprise. None where there is nothing to tell."""
        if not surprised and not _of_optimizer(optimizer):
            return None
        return Timescales(optimizer, Seen() if surprised else None)

    def step(self) -> AbstractContextManager[None]:
        """Around the losses of a step."""
        return nullcontext() if self.seen is None else self.seen.step()

    def stand(self) -> None:
        """Behind a step that stands; one that a guard left out has not been seen."""
        if self.seen is not None:
            self.seen.stand()

    def line(self) -> Json:
        """For a line of history.jsonl; empties what is summed since the one before."""
        found = _of_optimizer(self.optimizer)
        out: Json = {}
        if levels := found.get("levels"):
            out |= {key: {level: own[key] for level, own in levels.items()} for key in ("updates", "since")}
        if largest := found.get("largest"):
            out["largest"] = largest
        if self.seen is not None and (surprise := self.seen.told()):
            out["surprise"] = surprise
        return {KEY: out} if out else {}

    def document(self, steps: int) -> Json:
        """The state behind so many steps, for metrics.json."""
        found = {"steps": steps, **_of_optimizer(self.optimizer)}
        return found if self.seen is None else {**found, "surprise": self.seen.total()}

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, [2, 5] each."""
        return {} if self.seen is None else self.seen.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the tensors [*S] of a checkpoint; the optimizer's own are restored with it."""
        if self.seen is not None:
            self.seen.load(tensors, self.optimizer.param_groups[0]["params"][0].device)


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Json:
    """What it says of itself (`metarec.optimizers`); of most nothing."""
    asked = getattr(optimizer, "timescales", None)
    return {} if asked is None else asked()
