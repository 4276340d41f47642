"""What an objective sees of a model: the scores of all items, or only of those that it asks for.

Shapes: T tasks, N pairs, H hidden, V items, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from metarec.core.weights import Weights, fast_parts


class Scorer(Protocol):
    """The part of a model that turns states [T, N, H] into scores.

    `items` int64 [C], rising without a repeat -> [T, N, C]; [T, N], one for each pair -> [T, N]; none -> all, [T, N, V].
    """

    @property
    def n_items(self) -> int:
        """V; items are 1..V."""

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """Scores as the class says; a generator switches dropout on."""


@dataclass(frozen=True)
class Scores:
    """`columns` is asked for all items (None), for candidates [C], or for one item a pair [T, N], as often as one likes."""

    states: Tensor  # [T, N, H]
    n_items: int
    columns: Callable[[Tensor | None], Tensor]
    tapped: bool = False  # each task's own gradient is asked for, so what is scored stays until the gradient is there

    def all(self) -> Tensor:
        """[T, N, V], column i - 1 for item i."""
        return self.columns(None)

    def of(self, items: Tensor) -> Tensor:
        """items int64 [C], rising without a repeat -> [T, N, C]."""
        return self.columns(items)

    def at(self, items: Tensor) -> Tensor:
        """items int64 [T, N], 1..V -> [T, N]."""
        return self.columns(items)

    def through(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """What `change` makes of all scores, [T, N, V] -> [T, N, V]; they are all made, whatever is asked for."""
        return replace(Scores.of_logits(change(self.all())), states=self.states, tapped=self.tapped)

    def kept(self) -> Scores:
        """The same; the scores of all items are made at most once, for however many ask for them."""
        made: list[Tensor] = []

        def columns(items: Tensor | None) -> Tensor:
            if items is not None:
                return self.columns(items)
            if not made:
                made.append(self.columns(None))
            return made[0]

        return replace(self, columns=columns)

    @staticmethod
    def of_model(model: Scorer, theta: Weights, states: Tensor, generator: torch.Generator | None = None) -> Scores:
        """A generator switches dropout on; whatever is asked for, and however often, sees the same units dropped."""
        start = None if generator is None else generator.clone_state()

        def columns(items: Tensor | None) -> Tensor:
            again = None if start is None else start.clone_state()
            return model.score(theta, states, again) if items is None else model.score(theta, states, again, items)

        tapped = any(part.tap is not None for weight in theta.values() for part in fast_parts(weight))
        return Scores(states, model.n_items, columns, tapped)

    @staticmethod
    def of_logits(logits: Tensor) -> Scores:
        """Scores that are there already, [T, N, V]."""

        def columns(items: Tensor | None) -> Tensor:
            if items is None:
                return logits
            return logits[..., items - 1] if items.dim() == 1 else logits.gather(2, items[..., None] - 1)[..., 0]

        return Scores(logits, logits.shape[2], columns)
