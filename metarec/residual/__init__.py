"""How a user's weights are composed from a pretrained base and what is meta-learned and adapted.

Its file brings `Config`, `build(config, base, model)` and `learnable(config, model)` (`metarec.parts`): the name of
everything that the outer loop may train -> whether the inner loop adapts it unless told otherwise. Options that say more:
`l2`, a pull of the inner loop and the outer loss towards the base; the class attribute `beside`, whether what adapts are
few numbers beside the model's weights, that start at zero and take steps which would wreck whole weights. Where what is
learned are parts of weights under names of their own, `weight_of(name)` gives the weight's.

A residual that has no number a user says `adapts = False`. One that changes scores in place of weights has a method
`mix(phi, scores, pairs, states, encode)`; with `reads_memory` its batches say what is known ahead of each pair
(`core.batch.Recall`). `outer_lrs` (beginning of a name -> step size) takes what is learned for all users, and stands beside
the weights, out of the outer loop's own.
A residual may have more than `Residual` asks for: `compose_on(pairs)`, which gives the `compose` of a loss of these pairs
where what adapts depends on them (`of_support` of its Config, for the rules); `fixed`, names of phi that the outer loop
does not train; `most_rows(pairs)`, where a user keeps rows of tables; `dropout` with `dropping(generator)`, the `compose`
of a query loss in training that drops units of its own.
"""

from __future__ import annotations

from typing import Protocol

import torch

from metarec.core.weights import Params, Weights


class Named(Protocol):
    """What a residual may know of a model: the names and shapes of its weights and contexts, and which are its head."""

    @property
    def head(self) -> tuple[str, ...]:
        """Names of what the output layer reads, contexts and scales among them."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what may adapt beside the weights; zero is no effect."""


class Residual(Protocol):
    @property
    def base(self) -> Params:
        """The pretrained weights that the warm start gave; nothing moves them."""

    def init(self, generator: torch.Generator) -> Params:
        """phi, as meta-training starts from it."""

    def compose(self, phi: Weights) -> Weights:
        """phi -> the model's weights."""
