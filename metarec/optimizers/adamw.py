"""AdamW: Adam whose weight decay is apart from the gradient.

    w <- w - lr * weight_decay * w - lr * m' / (sqrt(v') + eps)             moments as in `optimizers.adam`

Source: Loshchilov & Hutter 2019, arXiv:1711.05101; torch's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarec.optimizers import Given
from metarec.options import ranged


@dataclass
class Config:
    """conf/optimizer/adamw.yaml"""

    name: str = "adamw"
    lr: float | None = ranged(None, min=0, exclusive=["min"])  # None = 5e-4 with contexts, else 3e-4
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    weight_decay: float = ranged(0.01, min=0)
    clip_norm: float = ranged(10.0, min=0)

    slots: ClassVar[int] = 2
    adaptive: ClassVar[bool] = True


def build(config: Config, given: Given) -> torch.optim.Optimizer:
    """torch's own."""
    lr, (beta1, beta2) = given.lr if config.lr is None else config.lr, config.betas
    return torch.optim.AdamW(
        given.groups, lr=lr, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay
    )
