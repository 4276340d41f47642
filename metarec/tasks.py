"""What a batch of pairs costs under some weights: model and objective in one place, for every path.

One forward pass serves pretraining, the inner loop, the outer loss and evaluation: sequences -> states -> logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metarec.core.batch import PairBatch, Sequences
from metarec.core.weights import Params, Weights


class Model(Protocol):
    """A sequence model: named weights, hidden states behind events, scores of all items."""

    @property
    def n_items(self) -> int: ...

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def init(self, generator: torch.Generator, dtype: torch.dtype = ...) -> Params: ...

    def encode(self, params: Weights, sequences: Sequences) -> Tensor: ...

    def score(self, params: Weights, states: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Tasks:
    model: Model
    objective: Callable[[Tensor, Tensor], Tensor]  # logits [T, N, V], target [T, N] -> [T]
    compose: Callable[[Weights], Weights]  # what is adapted -> the model's weights (the residual)

    def logits(self, phi: Weights, pairs: PairBatch, generator: torch.Generator | None = None) -> Tensor:
        """[T, N, V]; a generator switches dropout on."""
        theta = self.compose(phi)
        return self.model.score(theta, pairs.gather(self.model.encode(theta, pairs.sequences)), generator)

    def loss(self, pairs: PairBatch, generator: torch.Generator | None = None) -> Callable[[Weights], Tensor]:
        """phi -> the loss of every task [T]."""
        return lambda phi: self.objective(self.logits(phi, pairs, generator), pairs.target)
