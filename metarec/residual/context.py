"""Context: all weights are shared by all users; a user is a few numbers beside them.

    theta_t = (w, c_t)        w learned in the outer loop, c_t adapted from c in the inner loop

The model names the numbers (`context_shapes`): for GRU4Rec the state before any event and a shift of the last hidden state,
for SASRec prefix tokens and a shift, for Conv4 a shift of the first channels and of the features. All are zero at the start,
where they change nothing: the model before training is the pretrained one, bit for bit.

A user costs a few hundred numbers and no matrix of his own, in training and at serving. With `train_weights` off, the
pretrained weights are frozen and only the contexts (and their step sizes) are learned.

Source: Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019 (CAVIA), arXiv:1810.03642, Alg. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from metarec.core.weights import Params, Weights
from metarec.residual import Named


@dataclass
class Config:
    """conf/residual/context.yaml"""

    name: str = "context"
    train_weights: bool = True

    beside: ClassVar[bool] = True

    @property
    def frozen(self) -> bool:
        """Whether the pretrained weights stay as they are: then there must be some."""
        return not self.train_weights


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """Contexts adapt; weights are trained for all tasks, or with `train_weights` off not at all."""
    weights = dict.fromkeys(model.shapes(), False) if config.train_weights else {}
    return weights | dict.fromkeys(model.context_shapes(), True)


def build(config: Config, base: Params, model: Named) -> ContextResidual:
    """The contexts are those that the model names."""
    return ContextResidual(base, model.context_shapes(), config.train_weights)


@dataclass(frozen=True)
class ContextResidual:
    base: Params
    context: Mapping[str, tuple[int, ...]]
    train_weights: bool = True

    def init(self, generator: torch.Generator) -> Params:
        """The pretrained weights (where trained) and contexts of zero; nothing is drawn."""
        like = next(iter(self.base.values()))
        phi = {name: value.clone() for name, value in self.base.items()} if self.train_weights else {}
        return phi | {name: like.new_zeros(shape) for name, shape in self.context.items()}

    def compose(self, phi: Weights) -> Weights:
        """phi; with `train_weights` off the base stands in for the weights."""
        return phi if self.train_weights else {**self.base, **phi}
