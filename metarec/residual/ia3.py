"""IA3: all weights are shared by all users; a user rescales some activations, element by element.

    theta_t = (w, s_t)        a <- (1 + s_t) o a         w learned in the outer loop, s_t adapted from s in the inner loop

The model names the activations (`scale_shapes`): for SASRec keys, values and the inner layer of each feed-forward part (the
paper's three), for GRU4Rec the input projections of each layer, for Conv4 the channels of each block; for all of them what
the output layer reads. Behind a linear layer this is the scaling of its rows and its bias, ahead of one that of its columns;
no matrix is written for it. All scales are zero at the start, where they change nothing: the model before training is the
pretrained one, bit for bit.

What is adapted stands beside the weights like a context, so how it is composed is `residual.context`'s.

Source: Liu, Tam, Muqeeth, Mohta, Huang, Bansal & Raffel 2022, arXiv:2205.05638, sec. 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metarec.core.weights import Params
from metarec.options import matching
from metarec.residual import Named
from metarec.residual.context import ContextResidual


@dataclass
class Config:
    """conf/residual/ia3.yaml"""

    name: str = "ia3"
    train_weights: bool = True
    targets: list[str] | None = None  # None = all that the model has

    beside: ClassVar[bool] = True

    @property
    def frozen(self) -> bool:
        """Whether the pretrained weights stay as they are: then there must be some."""
        return not self.train_weights


def scales(config: Config, model: Named) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the scales; ConfigError for a pattern that matches none."""
    found: dict[str, tuple[int, ...]] = getattr(model, "scale_shapes", dict)()
    if config.targets is None:
        return found
    chosen = matching("residual.targets", config.targets, found, "scale")
    return {name: shape for name, shape in found.items() if name in chosen}


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """Scales adapt; weights are trained for all tasks, or with `train_weights` off not at all."""
    weights = dict.fromkeys(model.shapes(), False) if config.train_weights else {}
    return weights | dict.fromkeys(scales(config, model), True)


def build(config: Config, base: Params, model: Named) -> ContextResidual:
    """The scales are those of `targets`; null: all that the model names. Raises ConfigError for one that it does not."""
    return ContextResidual(base, scales(config, model), config.train_weights)
