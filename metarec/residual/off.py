"""No residual: what is adapted is the model itself, started from the warm start ("naive warm start")."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarec.core.weights import Params, Weights


@dataclass(frozen=True)
class NoResidual:
    """theta = phi."""

    base: Params

    def init(self, generator: torch.Generator) -> Params:
        return {name: value.clone() for name, value in self.base.items()}

    def compose(self, phi: Weights) -> Weights:
        return phi
