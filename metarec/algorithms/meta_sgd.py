"""Meta-SGD: the start and a step size of its own for every element, learned together.

    phi_t = phi - rate o grad L_t(phi, support)          o element by element

One inner step as published; more are allowed. The rates are exp of what is trained, hence positive, and begin at `inner.lr`
(published: random in [0.005, 0.1], sign free). A factored gradient times an elementwise rate is no longer factored, so
adapted matrices are dense per task here.

Source: Li, Zhou, Chen & Li 2017, arXiv:1707.09835, Alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from metarec.algorithms import Given
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.options import DifferentiatedInner, ranged


@dataclass
class InnerOptions(DifferentiatedInner):
    rates: str = ranged("element", choices=["element", "element_step"])


@dataclass
class Config:
    """conf/algorithm/meta_sgd.yaml"""

    name: str = "meta_sgd"
    inner: InnerOptions = field(default_factory=InnerOptions)
    order: str = ranged("second", choices=["first", "second"])


def build(config: Config, given: Given) -> MAML:
    """A step size for every element, shared by all steps; `rates: element_step` gives each step its own."""
    return meta_sgd(given.inner, config.order, each_step=config.inner.rates == "element_step")


def meta_sgd(inner: InnerLoop, order: str = "second", *, each_step: bool = False) -> MAML:
    """`each_step`: rates of its own for every inner step, where there are several."""
    return MAML(replace(inner, rates="element_step" if each_step else "element"), order=order)
