"""Adam with the delta rule: matrices forget along what they read, apart from the moments of the gradient.

    W <- W (I - a M) - lr * m' / (sqrt(v') + eps)       or proximal; M the second moment of W's own inputs
                                                        (`metarec.optimizers.delta`); m', v' as in `optimizers.adam`

With decay 0 it is Adam, bit for bit. Forgetting is decoupled, as AdamW's decay is. Source: Behrouz et al. 2025, Nested
Learning; Schlag, Irie & Schmidhuber 2021, arXiv:2102.11174. Shapes: W [out, in].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metarec.optimizers import Given, delta
from metarec.optimizers.base import base_of
from metarec.options import ranged


@dataclass
class Config:
    """conf/optimizer/delta_adam.yaml"""

    name: str = "delta_adam"
    lr: float | None = ranged(None, min=0, exclusive=["min"])  # None = that of adam
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    decay: float = ranged(1e-3, min=0)
    form: str = ranged("explicit", choices=["explicit", "proximal"])
    unstable: str = ranged("stop", choices=["stop", "clip"])
    clip_norm: float = ranged(10.0, min=0)

    slots: ClassVar[int] = 2
    asks_names: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True


def build(config: Config, given: Given) -> delta.Delta:
    """Over torch's Adam."""
    lr = given.lr if config.lr is None else config.lr
    matrices = delta.matrices_of(given, config.decay)
    base = base_of("adam", given.groups, lr=lr, betas=config.betas, eps=config.eps, momentum=0.0, weight_decay=0.0)
    return delta.Delta(base, matrices, config.decay, config.form, config.unstable)
