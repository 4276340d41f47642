"""CAVIA: only contexts adapt, from zero for every task; all other weights are shared.

    c_t[0] = 0;   c_t[j+1] = c_t[j] - rate_j * grad_c L_t(w, c_t[j], support)
    meta_loss(w) = mean over tasks of  L_t(w, c_t[K], query)

MAML (`algorithms.maml`) over what stands beside the weights, with its start taken out of what is learned: it is the number
zero, so it has no gradient. The meta-gradient of second order looks through the inner steps, of which the slope depends on
w; that of first order takes the adapted contexts for constants.

`phi` holds the contexts all the same, since that is where the model looks for them: nothing there reads or moves them.

Source: Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019, arXiv:1810.03642, Alg. 1. Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from metarec.algorithms import Given
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.algorithms.maml import MAML
from metarec.core.weights import FastWeight, Params
from metarec.errors import ConfigError
from metarec.options import LearnedInner, ranged


@dataclass
class Config:
    """conf/algorithm/cavia.yaml"""

    name: str = "cavia"
    inner: LearnedInner = field(default_factory=LearnedInner)
    order: str = ranged("second", choices=["first", "second"])

    adapts: ClassVar[str] = "beside"  # the weights; the rules read both
    learns_start: ClassVar[bool] = False
    needs_adapted: ClassVar[bool] = True


def build(config: Config, given: Given) -> CAVIA:
    """The contexts are all that stands beside the weights; ConfigError where `algorithm.inner.adapt` names anything else."""
    moves = [name for name in given.names if given.inner.moves(name)]
    if others := sorted(set(moves) - given.beside):
        what = f"algorithm=cavia adapts contexts alone, and {', '.join(others)} is none"
        raise ConfigError("algorithm.inner.adapt", moves, what, f"choose among {', '.join(sorted(given.beside))}")
    return cavia(given.inner, given.beside, config.order)


@dataclass(frozen=True)
class CAVIA(MAML):
    contexts: frozenset[str] = frozenset()  # names, of those as well that the inner loop leaves at zero

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The contexts of every task after adaptation from zero, beside the weights that all share."""
        return super().adapt(self.from_zero(phi), support_loss, n_tasks, lr=lr, steps=steps)

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """[T], the contexts from zero: no gradient reaches those that `phi` holds."""
        return super().meta_losses(self.from_zero(phi), support_loss, query_loss, n_tasks, step)

    def from_zero(self, phi: Params) -> Params:
        """`phi` with every context at zero, outside of the graph."""
        return {name: torch.zeros_like(value) if name in self.contexts else value for name, value in phi.items()}


def cavia(inner: InnerLoop, contexts: Collection[str], order: str = "second") -> CAVIA:
    """`contexts`: names of all contexts of the model; what the inner loop may not adapt stays at zero."""
    kept = frozenset(name for name in contexts if inner.moves(name))
    if not kept:
        raise ValueError(f"of the contexts {sorted(contexts)} nothing adapts")
    return CAVIA(replace(inner, adapted=kept), order=order, contexts=frozenset(contexts))
