"""Bias: a delta for every vector among the weights, on frozen pretrained weights.

    theta_b = base_b + alpha * delta        b of one dimension: biases, weights of norms; every matrix is the base's

`residual.on` over the weights of one dimension, a few hundred numbers a user beside the bias of the output layer.

Source: Ben Zaken, Ravfogel & Goldberg 2022 (BitFit), arXiv:2106.10199; weights of norms are among them here.
"""

from __future__ import annotations

from dataclasses import dataclass

from metarec.core.weights import Params
from metarec.options import Delta
from metarec.residual import Named
from metarec.residual.on import FullResidual


@dataclass
class Config(Delta):
    """conf/residual/bias.yaml"""

    name: str = "bias"


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """A delta for every weight of one dimension, and all of them adapt."""
    return dict.fromkeys((name for name, shape in model.shapes().items() if len(shape) == 1), True)


def build(config: Config, base: Params, model: Named) -> FullResidual:
    """Deltas have the shapes of the model's vectors."""
    return FullResidual(base, config.alpha, config.init_scale, tuple(learnable(config, model)))
