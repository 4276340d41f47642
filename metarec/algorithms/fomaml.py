"""FOMAML: a start from which a few gradient steps fit one user, learned without the Hessian term.

    phi_t = phi adapted on the support loss of task t
    meta-gradient = mean over tasks of grad L_query at phi_t

MAML (`algorithms.maml`) with the graph through the inner steps cut: the same inner loop, about the memory of one step.

Source: Finn, Abbeel & Levine 2017, arXiv:1703.03400, Alg. 1 and sec. 5.2 (first-order approximation).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from metarec.algorithms import Given
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.options import LearnedInner, ranged


@dataclass
class Config:
    """conf/algorithm/fomaml.yaml"""

    name: str = "fomaml"
    inner: LearnedInner = field(default_factory=LearnedInner)
    multi_step: str = ranged("last", choices=["last", "uniform", "annealed"])
    multi_step_until: float = ranged(0.15, min=0, max=1)


def build(config: Config, given: Given) -> MAML:
    """`multi_step_until` is a share of the outer steps, rounded to a step here."""
    until = round(config.multi_step_until * given.outer_steps)
    return replace(fomaml(given.inner), multi_step=config.multi_step, multi_step_until=until)


def fomaml(inner: InnerLoop) -> MAML:
    """`MAML` at first order; the multi-step loss is left off."""
    return MAML(inner, order="first")
