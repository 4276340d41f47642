"""MAML: a start from which a few gradient steps fit one task.

    phi_t[0] = phi;   phi_t[j+1] = phi_t[j] - rate_j * grad L_t(phi_t[j], support)
    meta_loss(phi) = mean over tasks of  sum_j w_j L_t(phi_t[j], query)          w = (0, ..., 0, 1) without multi-step loss

The order says how far the meta-gradient looks: `second` through the inner steps (exact), `first` at their end only (FOMAML,
sec. 5.2), `annealed` first, then second from outer step `switch_step` on. The multi-step loss judges the weights after
every step; annealed, its weight moves from 1/K each to the last step alone by outer step `multi_step_until` (Antoniou et
al. 2019, arXiv:1810.09502, sec. 4).

Source: Finn, Abbeel & Levine 2017, arXiv:1703.03400, Alg. 1. Shapes: T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from metarec.algorithms import Given, inner
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.core.weights import FastWeight, Params, squared_norm
from metarec.options import LearnedInner, ranged

ORDERS = ("first", "second", "annealed")
MULTI_STEP = ("last", "uniform", "annealed")


@dataclass
class Config:
    """conf/algorithm/maml.yaml"""

    name: str = "maml"
    inner: LearnedInner = field(default_factory=LearnedInner)
    order: str = ranged("second", choices=ORDERS)
    switch: float = ranged(0.5, min=0, max=1)
    multi_step: str = ranged("last", choices=MULTI_STEP)
    multi_step_until: float = ranged(0.15, min=0, max=1)


def build(config: Config, given: Given) -> MAML:
    """`switch` and `multi_step_until` are shares of the outer steps, rounded to steps here."""
    switch, until = (round(share * given.outer_steps) for share in (config.switch, config.multi_step_until))
    return MAML(given.inner, config.order, switch, config.multi_step, until)


@dataclass(frozen=True)
class MAML:
    inner: InnerLoop
    order: str = "second"
    switch_step: int = 0
    multi_step: str = "last"
    multi_step_until: int = 0

    def learned(self, phi: Params) -> Params:
        """What the outer loop trains: `phi`, and what the inner loop learns beside it."""
        return self.inner.learned(phi)

    def second_order(self, step: int) -> bool:
        """Whether the meta-gradient of outer step `step` looks through the inner steps."""
        return self.order == "second" or (self.order == "annealed" and step >= self.switch_step)

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """The weights of every task after adaptation; `lr` (for all weights) and `steps` may differ at test time."""
        return inner.adapt(support_loss, phi, n_tasks, at_test(self.inner, lr, steps))

    def step_weights(self, step: int) -> list[float]:
        """The weight of the query loss after 0, 1, ..., K inner steps; they sum to 1."""
        k = self.inner.steps
        if self.multi_step == "last" or k == 0:
            return [0.0] * k + [1.0]
        left = 1.0
        if self.multi_step == "annealed":
            left = max(0.0, 1 - step / self.multi_step_until) if self.multi_step_until else 0.0
        early = left / k
        return [0.0] + [early] * (k - 1) + [1 - early * (k - 1)]

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """The meta-loss of every task [T] in outer step `step`; the outer step descends their mean."""
        total: Tensor | None = None
        found = inner.path(support_loss, phi, n_tasks, self.inner, second_order=self.second_order(step))
        for weight, weights in zip(self.step_weights(step), found, strict=True):
            if weight:
                part = weight * judged(query_loss, weights, self.inner)
                total = part if total is None else total + part
        assert total is not None
        return total


def judged(loss: TaskLoss, weights: dict[str, FastWeight], loop: InnerLoop) -> Tensor:
    """The loss [T] with the pull of the inner loop."""
    losses = loss(weights)
    if loop.pull:
        pulled = [weight for name, weight in weights.items() if name not in loop.kept]
        losses = losses + 0.5 * loop.pull * sum(squared_norm(weight) for weight in pulled)
    return losses


def at_test(loop: InnerLoop, lr: float | None, steps: int | None) -> InnerLoop:
    """The inner loop with another step size (then the same for all weights) or another number of steps."""
    if lr is not None:
        loop = replace(loop, lr=lr, rates="fixed")
    return loop if steps is None else replace(loop, steps=steps)
