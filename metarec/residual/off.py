"""No residual: what is adapted is the model itself, started from the warm start ("naive warm start")."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarec.core.weights import Params, Weights
from metarec.residual import Named


@dataclass
class Config:
    """conf/residual/off.yaml"""

    name: str = "off"


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """Every weight, and all of them adapt."""
    return dict.fromkeys(model.shapes(), True)


def build(config: Config, base: Params, model: Named) -> NoResidual:
    """Nothing of the model is read: what adapts is the base itself."""
    return NoResidual(base)


@dataclass(frozen=True)
class NoResidual:
    """theta = phi."""

    base: Params

    def init(self, generator: torch.Generator) -> Params:
        """A copy of the base; nothing is drawn."""
        return {name: value.clone() for name, value in self.base.items()}

    def compose(self, phi: Weights) -> Weights:
        """phi, unchanged."""
        return phi
