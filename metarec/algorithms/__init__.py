"""One paper, one file. An algorithm is handed losses of tasks; it never hears of items or models.

Its file brings `Config` and `build(config, given)` (`metarec.parts`). With `needs_adapted` among its class attributes it is
refused where nothing adapts (`residual.adapts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.core.offsets import Dense
from metarec.core.weights import FastWeight, Params, Weights


class Algorithm(Protocol):
    """What every algorithm is to the loops: something that adapts, and that has a meta-loss to descend."""

    @property
    def inner(self) -> InnerLoop:
        """How it adapts; the run reads from it what moves, what is learned and how many steps are taken."""

    def learned(self, phi: Params) -> Params:
        """`phi` with all that is learned beside it (step sizes, weights of single steps)."""

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The weights of every task after adaptation on its support."""

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """[T]; the gradient of the mean with respect to `phi` is the meta-gradient of outer step `step`."""


@dataclass(frozen=True)
class Given:
    """What a run gives an algorithm to be built from. Of the model it has names of weights, and no more."""

    inner: InnerLoop  # as `algorithm.inner` says; `adapted`: what may move
    names: tuple[str, ...]  # of everything that the outer loop may train
    head: frozenset[str]  # of them, the model's head
    norms: tuple[str, ...]  # of them, weights of norms
    statistics: tuple[str, ...]  # of batch norms: no weights, but each inner step may have its own
    beside: frozenset[str]  # of them, what is no weight of the model but stands beside them, zero without effect
    outer_steps: int
    support_share: float  # of a task's pairs: K / (K + Q)
    evidence: int = 0  # F, numbers that say what a support pair is, to an algorithm with `reads_support`
    products: Mapping[str, tuple[str, str, float]] = field(default_factory=dict)  # weight -> names of A and B, s: s B A
    seed: int = 0  # of the run, for weights of an algorithm's own


@dataclass(frozen=True)
class Shown:
    """A support loss that says as well what the support is, to an algorithm with `reads_support`."""

    loss: TaskLoss
    pairs: Tensor  # [T, K, F], a constant: each pair as a frozen model sees it
    there: Tensor  # bool [T, K]

    def __call__(self, weights: Weights) -> Tensor:
        """The loss of every task [T]."""
        return self.loss(weights)


@dataclass(frozen=True)
class Taught:
    """A query loss with what a teacher has found for each task, to an algorithm that learns from it."""

    loss: TaskLoss
    outputs: Callable[[Weights], Tensor]  # log-probabilities on the query pairs, [T, Q, C]
    there: Tensor  # bool [T, Q]
    numbers: Mapping[str, Tensor]  # the teacher's, by the names of phi that adapt, [T, *S]
    sizes: Mapping[str, float]  # of a product's weight or a name: mean squared norm over teachers of what it adds
    scales: Mapping[str, float]  # weight -> s of the teacher's products

    def __call__(self, weights: Weights) -> Tensor:
        """The loss of every task [T]."""
        return self.loss(weights)

    def weights(self, made: Mapping[str, FastWeight]) -> dict[str, FastWeight]:
        """`made` with the teacher's numbers in place of what it has under their names."""
        theirs = {name: FastWeight(torch.zeros_like(number[0]), Dense(number)) for name, number in self.numbers.items()}
        return dict(made) | theirs
