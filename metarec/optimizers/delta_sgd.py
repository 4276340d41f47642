"""SGD with the delta rule: matrices forget along what they read.

    W <- W (I - a M) - lr * g          or proximal; M the second moment of W's own inputs (`metarec.optimizers.delta`)

With decay 0 it is SGD, bit for bit. Source: Behrouz et al. 2025, Nested Learning; Schlag, Irie & Schmidhuber 2021,
arXiv:2102.11174. Shapes: W [out, in].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metarec.optimizers import Given, delta
from metarec.optimizers.base import base_of
from metarec.options import ranged


@dataclass
class Config:
    """conf/optimizer/delta_sgd.yaml"""

    name: str = "delta_sgd"
    lr: float = ranged(0.1, min=0, exclusive=["min"])
    momentum: float = ranged(0.0, min=0, max=1, exclusive=["max"])
    decay: float = ranged(1e-3, min=0)
    form: str = ranged("explicit", choices=["explicit", "proximal"])
    unstable: str = ranged("stop", choices=["stop", "clip"])
    clip_norm: float = ranged(10.0, min=0)

    asks_names: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    @property
    def slots(self) -> int:
        """Numbers kept for every number trained."""
        return int(self.momentum > 0)


def build(config: Config, given: Given) -> delta.Delta:
    """Over torch's SGD."""
    matrices = delta.matrices_of(given, config.decay)
    base = base_of(
        "sgd", given.groups, lr=config.lr, betas=[0.9, 0.999], eps=1e-8, momentum=config.momentum, weight_decay=0.0
    )
    return delta.Delta(base, matrices, config.decay, config.form, config.unstable)
