"""Head: a delta for what the output layer reads, on frozen pretrained weights.

    theta_head = base_head + alpha * delta        the body is the base's

`residual.on` over the model's `head` alone. Where the output layer is the item embedding (`model.tie`), that is the head,
and it moves where it is looked up as well. `algorithm=anil` adapts the head too, but learns the body; here it stays.

Source: Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157, sec. 4 (the head alone adapts).
"""

from __future__ import annotations

from dataclasses import dataclass

from metarec.core.weights import Params
from metarec.options import Delta
from metarec.residual import Named
from metarec.residual.on import FullResidual


@dataclass
class Config(Delta):
    """conf/residual/head.yaml"""

    name: str = "head"


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """A delta for every weight of the head, and all of them adapt."""
    return dict.fromkeys((name for name in model.shapes() if name in model.head), True)


def build(config: Config, base: Params, model: Named) -> FullResidual:
    """Deltas have the shapes of the head's weights."""
    return FullResidual(base, config.alpha, config.init_scale, tuple(learnable(config, model)))
