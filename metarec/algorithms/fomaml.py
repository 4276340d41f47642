"""FOMAML: a start from which a few gradient steps fit one user, learned without the Hessian term.

    phi_t = phi adapted on the support loss of task t
    meta-gradient = mean over tasks of grad L_query at phi_t

MAML (`algorithms.maml`) with the graph through the inner steps cut: the same inner loop, about the memory of one step.

Source: Finn, Abbeel & Levine 2017, arXiv:1703.03400, Alg. 1 and sec. 5.2 (first-order approximation).
"""

from __future__ import annotations

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML


def fomaml(inner: InnerLoop) -> MAML:
    return MAML(inner, order="first")
