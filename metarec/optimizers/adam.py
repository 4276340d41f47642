"""Adam: steps scaled by running moments of the gradient.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr * m' / (sqrt(v') + eps)      m', v': bias corrected

Weight decay is added to the gradient. Source: Kingma & Ba 2015, arXiv:1412.6980; torch's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarec.optimizers import Given
from metarec.options import ranged


@dataclass
class Config:
    """conf/optimizer/adam.yaml"""

    name: str = "adam"
    lr: float | None = ranged(
        None, min=0, exclusive=["min"]
    )  # None = 5e-4 for contexts, 1e-3 for images, 3e-4 for weights
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(10.0, min=0)

    slots: ClassVar[int] = 2  # numbers kept for every number trained
    adaptive: ClassVar[bool] = True  # the size of a step does not follow that of the gradient


def build(config: Config, given: Given) -> torch.optim.Optimizer:
    """torch's own."""
    lr, (beta1, beta2) = given.lr if config.lr is None else config.lr, config.betas
    return torch.optim.Adam(given.groups, lr=lr, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay)
