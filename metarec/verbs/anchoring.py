"""Which scores adaptation and the outer loss are held near to, as `objective.kl_anchor` says.

    pretrained   the base weights, residual off
    initial      the start of all tasks at this outer step, before adaptation; a constant to the gradient

Inside, the anchor is part of the support loss, and so of every adaptation of the run, at validation and test as well;
outside, of the query loss. The fine-tune control and pretraining have none. Reference scores are made without dropout and
without a gradient, once for a batch of pairs.

Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarec.algorithms.inner import InnerLoop, start
from metarec.benches import AnyBench
from metarec.core.batch import ImageBatch, PairBatch
from metarec.core.weights import Params
from metarec.objectives.kl_anchor import Anchor
from metarec.options import KLAnchor
from metarec.residual import Residual
from metarec.tasks import Tasks


@dataclass(frozen=True)
class Anchoring:
    """What is needed to anchor any batch; with weight 0 nothing is computed."""

    options: KLAnchor
    plain: Tasks
    over: Tasks
    base: Params
    loop: InnerLoop

    @staticmethod
    def of(options: KLAnchor, bench: AnyBench, residual: Residual, loop: InnerLoop) -> Anchoring:
        """Of a run: its model over the base weights, and over what its residual composes."""
        return Anchoring(options, bench.tasks(), bench.tasks(residual), residual.base, loop)

    def support(self, phi: Params, pairs: PairBatch | ImageBatch) -> Anchor | None:
        """The anchor of a support loss; `phi`: what adaptation starts from, [*S] each."""
        return self._at(phi, pairs) if self.options.where in ("inner", "both") else None

    def query(self, phi: Params, pairs: PairBatch | ImageBatch) -> Anchor | None:
        """The anchor of a query loss; `phi`: what adaptation starts from, [*S] each."""
        return self._at(phi, pairs) if self.options.where in ("outer", "both") else None

    def _at(self, phi: Params, pairs: PairBatch | ImageBatch) -> Anchor | None:
        asked = self.options
        if asked.weight == 0:
            return None
        with torch.no_grad():
            if asked.reference == "pretrained":
                scores = self.plain.logits(self.base, pairs)
            else:
                scores = self.over.logits(start(phi, self.loop), pairs)
        return Anchor.at(scores, asked.weight, asked.direction, asked.temperature)
