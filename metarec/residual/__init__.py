"""How a user's weights are composed from a pretrained base and what is meta-learned and adapted."""

from __future__ import annotations

from typing import Protocol

import torch

from metarec.core.weights import Params, Weights


class Residual(Protocol):
    @property
    def base(self) -> Params: ...

    def init(self, generator: torch.Generator) -> Params:
        """phi, as meta-training starts from it."""

    def compose(self, phi: Weights) -> Weights:
        """phi -> the model's weights."""
