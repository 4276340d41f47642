"""Meta-SGD: the start and a step size of its own for every element, learned together.

    phi_t = phi - rate o grad L_t(phi, support)          o element by element

One inner step as published; more are allowed. The rates are exp of what is trained, hence positive, and begin at `inner.lr`
(published: random in [0.005, 0.1], sign free). A factored gradient times an elementwise rate is no longer factored, so
adapted matrices are dense per task here.

Source: Li, Zhou, Chen & Li 2017, arXiv:1707.09835, Alg. 1.
"""

from __future__ import annotations

from dataclasses import replace

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML


def meta_sgd(inner: InnerLoop, order: str = "second") -> MAML:
    return MAML(replace(inner, rates="element"), order=order)
