"""Gradient descent, with momentum.

    b <- momentum * b + g,   w <- w - lr * b

Source: Robbins & Monro 1951; Polyak 1964; torch's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarec.optimizers import Given
from metarec.options import ranged


@dataclass
class Config:
    """conf/optimizer/sgd.yaml"""

    name: str = "sgd"
    lr: float = ranged(0.1, min=0, exclusive=["min"])
    momentum: float = ranged(0.0, min=0, max=1, exclusive=["max"])
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(10.0, min=0)

    adaptive: ClassVar[bool] = False

    @property
    def slots(self) -> int:
        """Numbers kept for every number trained."""
        return int(self.momentum > 0)


def build(config: Config, given: Given) -> torch.optim.Optimizer:
    """torch's own."""
    return torch.optim.SGD(given.groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
