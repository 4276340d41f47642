"""One paper, one file. An algorithm is handed losses of tasks; it never hears of items or models.

Its file brings `Config` and `build(config, given)` (`metarec.parts`). With `needs_adapted` among its class attributes it is
refused where nothing adapts (`residual.adapts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.core.weights import FastWeight, Params


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
