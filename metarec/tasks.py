"""What a batch of pairs costs under some weights: model and objective in one place, for every path.

One forward pass serves pretraining, the inner loop, the outer loss and evaluation: sequences -> states -> logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metarec.core.batch import PairBatch
from metarec.core.weights import Params, Weights


class Model(Protocol):
    """A model: named weights, states of its inputs, scores of all items.

    `context_shapes`: further named vectors, zero without effect, that `residual=context` adapts for each task; `encode` and
    `score` read them where `params` holds them. `head`: names of the weights that `score` reads (contexts among them).
    """

    @property
    def n_items(self) -> int: ...

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def context_shapes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def head(self) -> tuple[str, ...]: ...

    def init(self, generator: torch.Generator, dtype: torch.dtype = ...) -> Params: ...

    def encode(self, params: Weights, inputs: Any) -> Tensor: ...

    def score(self, params: Weights, states: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Tasks:
    model: Model
    objective: Callable[[Tensor, Tensor], Tensor]  # logits [T, N, V], target [T, N] -> [T]
    compose: Callable[[Weights], Weights]  # what is adapted -> the model's weights (the residual)

    def logits(self, phi: Weights, pairs: PairBatch, generator: torch.Generator | None = None) -> Tensor:
        """[T, N, V]; a generator switches dropout on."""
        theta = self.compose(phi)
        return self.model.score(theta, pairs.gather(self.model.encode(theta, pairs.inputs)), generator)

    def loss(self, pairs: PairBatch, generator: torch.Generator | None = None) -> Callable[[Weights], Tensor]:
        """phi -> the loss of every task [T]."""
        return lambda phi: self.objective(self.logits(phi, pairs, generator), pairs.target)
