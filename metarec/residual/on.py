"""A full residual on frozen pretrained weights.

    theta = theta_base + alpha * delta

`residual.head` and `residual.bias` are the same with a delta for some weights; the others are the base's.
`delta` is meta-learned and adapted, theta_base never moves. With delta = 0 the model is the pretrained one, bit for
bit. With alpha = 1, l2 = 0 and delta = 0 at the start this *is* naive warm start: same gradients, same steps
(tests/residual/test_on.py shows the identity over 20 Adam steps). What makes a residual mean something is the
pull towards the base (`residual.l2`, taken by the inner loop and the outer loss) and alpha: by the chain rule an inner
step moves theta by alpha^2 * lr * grad.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from metarec.core.weights import FastWeight, Params, Weight, Weights
from metarec.options import Delta
from metarec.residual import Named


@dataclass
class Config(Delta):
    """conf/residual/on.yaml"""

    name: str = "on"


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """A delta for every weight, and all of them adapt."""
    return dict.fromkeys(model.shapes(), True)


def build(config: Config, base: Params, model: Named) -> FullResidual:
    """Nothing of the model is read: deltas have the shapes of the base."""
    return FullResidual(base, config.alpha, config.init_scale)


@dataclass(frozen=True)
class FullResidual:
    base: Params
    alpha: float = 1.0
    init_scale: float = 0.0
    names: Collection[str] | None = None  # of the weights that have a delta; None = all

    def init(self, generator: torch.Generator) -> Params:
        """delta ~ N(0, init_scale^2); zero by default, since any noise already moves the pretrained function."""
        moved = {name: value for name, value in self.base.items() if self.names is None or name in self.names}
        if self.init_scale == 0:
            return {name: torch.zeros_like(value) for name, value in moved.items()}
        return {
            name: (torch.randn(value.shape, generator=generator, dtype=value.dtype) * self.init_scale).to(value.device)
            for name, value in moved.items()
        }

    def compose(self, phi: Weights) -> Weights:
        """base + alpha * delta, or base alone; what has no base, such as statistics, stays as it is."""
        theta: dict[str, Weight] = dict(self.base)
        for name, delta in phi.items():
            base = self.base.get(name)
            if base is None:  # kept beside the weights, such as statistics: not composed
                theta[name] = delta
                continue
            if isinstance(delta, FastWeight):
                theta[name] = delta.onto(base, self.alpha)
            else:
                assert isinstance(delta, torch.Tensor)
                theta[name] = torch.add(base, delta, alpha=self.alpha)
        return theta
