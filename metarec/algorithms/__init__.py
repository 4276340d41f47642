"""One paper, one file. An algorithm is handed losses of tasks; it never hears of items or models."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.core.weights import FastWeight, Params


class Algorithm(Protocol):
    """What every algorithm is to the loops: something that adapts, and that has a meta-loss to descend."""

    @property
    def inner(self) -> InnerLoop: ...

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
