"""FOMAML: a start from which a few gradient steps fit one user, learned without the Hessian term.

    phi_t = phi adapted by `inner.steps` steps of `inner.lr` on the support loss of task t
    meta-gradient = mean over tasks of grad L_query at phi_t

Source: Finn, Abbeel & Levine 2017, arXiv:1703.03400, Alg. 1 and sec. 5.2 (first-order approximation).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metarec.algorithms.inner import TaskLoss, adapt
from metarec.core.weights import FastWeight, Params, squared_norm


@dataclass(frozen=True)
class FOMAML:
    inner_lr: float = 0.01
    inner_steps: int = 3
    pull: float = 0.0  # pull / 2 * |phi_t|^2 joins the support and the query loss

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The weights of every task after adaptation; `lr` and `steps` may differ from training at test time."""
        lr = self.inner_lr if lr is None else lr
        steps = self.inner_steps if steps is None else steps
        return adapt(support_loss, phi, n_tasks, lr=lr, steps=steps, pull=self.pull)

    def meta_losses(self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int) -> Tensor:
        """Query losses [T] at the adapted weights; their mean is what the outer step descends."""
        adapted = self.adapt(phi, support_loss, n_tasks)
        losses = query_loss(adapted)
        if self.pull:
            losses = losses + 0.5 * self.pull * sum(squared_norm(weight) for weight in adapted.values())
        return losses
