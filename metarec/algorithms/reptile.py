"""Reptile: move the start towards where plain training on each task ends.

    phi <- phi + eps * mean over tasks of (phi_t - phi)

There is no support and query in training: the inner loop runs on all pairs of a task (support and query losses mixed by
their numbers of pairs). The outer optimizer is handed phi - mean phi_t as gradient, so SGD with step size eps is the
published rule; at test, adaptation is on the support alone. With one inner step that gradient is inner.lr times the
gradient of the joint loss: joint training.

Source: Nichol, Achiam & Schulman 2018, arXiv:1803.02999, Alg. 1 (batch version, Alg. 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from metarec.algorithms import Given, inner
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.algorithms.maml import at_test, judged
from metarec.core.offsets import Dense, LowRank, Offset, Rows
from metarec.core.weights import FastWeight, Params, Weights
from metarec.options import Inner


@dataclass
class Config:
    """conf/algorithm/reptile.yaml"""

    name: str = "reptile"
    inner: Inner = field(default_factory=Inner)

    needs_adapted: ClassVar[bool] = True
    joint: ClassVar[bool] = True  # one loop over support and query pairs, in training
    taps_query: ClassVar[bool] = True  # each task's own gradient of the query loss is taken


def build(config: Config, given: Given) -> Reptile:
    """The share of the support in a task's pairs is the run's: it mixes the two losses to that of all pairs."""
    return Reptile(given.inner, given.support_share)


@dataclass(frozen=True)
class Reptile:
    inner: InnerLoop
    support_share: float = 1 / 3  # of a task's pairs: K / (K + Q)

    def learned(self, phi: Params) -> Params:
        """`phi` with what the inner loop learns beside it; raises ValueError for learned step sizes."""
        if self.inner.rates != "fixed":
            raise ValueError("Reptile has no gradient by which step sizes could be learned")
        return self.inner.learned(phi)

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The weights of every task after adaptation on its support; `lr` and `steps` may differ at test time."""
        return inner.adapt(support_loss, phi, n_tasks, at_test(self.inner, lr, steps))

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """Query losses [T] after the inner loop; the gradient of their mean with respect to `phi` is Reptile's."""
        share = self.support_share

        def all_pairs(weights: Weights) -> Tensor:
            return share * support_loss(weights) + (1 - share) * query_loss(weights)

        with torch.no_grad():  # the direction too: where nothing is pulled, `weight.shared` is the leaf phi itself
            weights = inner.adapt(all_pairs, phi, n_tasks, self.inner)
            losses = judged(query_loss, weights, self.inner)
            moved = {
                name: _mean_offset(weight, n_tasks) + (weight.shared - phi[name])
                for name, weight in weights.items()
                if self.inner.moves(name)
            }
        pseudo = torch.stack([(phi[name] * direction).sum() for name, direction in moved.items()]).sum()
        return losses + (pseudo.detach() - pseudo)


def _mean_offset(weight: FastWeight, n_tasks: int) -> Tensor:
    """The mean over tasks of the offset, [*S], in one product where it is factored."""
    return weight.shared.new_zeros(weight.shared.shape) if weight.offset is None else total(weight.offset) / n_tasks


def total(offset: Offset) -> Tensor:
    """The sum over tasks, [*S]."""
    if isinstance(offset, Dense):
        return offset.value.sum(0)
    if isinstance(offset, LowRank):
        return reduce(torch.add, [left.flatten(0, 1).T @ right.flatten(0, 1) for left, right in offset.blocks])
    if isinstance(offset, Rows):
        rows = offset.values.flatten(0, 1)
        return rows.new_zeros(offset.n_rows, rows.shape[1]).index_add(0, offset.ids.flatten(), rows)
    return total(offset.low) + total(offset.rows)
