"""MAML++: MAML with the six repairs that make its training stable, each a flag.

    msl    multi-step loss: the query loss after every step, its weight annealed from 1/K each to the last step
    lslr   a learned step size for each tensor and step
    da     derivative-order annealing: first order before `switch_step`, second order from then on
    bnrs   batch-norm statistics of each step, in place of those of the batch at hand     (models with batch norm)
    bnwb   weight and bias of the norms for each step, learned, not adapted               (models with norms)
    ca     cosine annealing of the outer step size                                        (`schedule`)

The first three stand here; bnwb is `InnerLoop.per_step`; bnrs is the model's; ca is the schedule of the outer loop.

Source: Antoniou, Edwards & Storkey 2019, arXiv:1810.09502, sec. 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML


def maml_pp(
    inner: InnerLoop,
    *,
    msl: bool = True,
    lslr: bool = True,
    da: bool = True,
    switch_step: int = 0,
    msl_until: int = 0,
    norms: Collection[str] = (),
) -> MAML:
    """`norms`: names of the norms' weights and biases that each step has for itself (empty: bnwb off)."""
    loop = replace(inner, rates="tensor_step" if lslr else inner.rates, per_step=frozenset(norms))
    return MAML(
        loop,
        order="annealed" if da else "second",
        switch_step=switch_step,
        multi_step="annealed" if msl else "last",
        multi_step_until=msl_until,
    )
