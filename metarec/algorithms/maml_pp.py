"""MAML++: MAML with the six repairs that make its training stable, each a flag.

    msl    multi-step loss: the query loss after every step, its weight annealed from 1/K each to the last step
    lslr   a learned step size for each tensor and step
    da     derivative-order annealing: first order before `switch_step`, second order from then on
    bnrs   batch-norm statistics of each step, in place of those of the batch at hand     (models with batch norm)
    bnwb   weight and bias of the norms for each step, learned, not adapted               (models with norms)
    ca     cosine annealing of the outer step size                                        (`schedule`)

The first three stand here; bnwb and bnrs are `InnerLoop.per_step`; ca is the schedule of the outer loop. The statistics of
bnrs are running means over training tasks of what each step's images had; training, validation and test normalise by them
alike, so that no image of a task sees another one's. (The authors' code keeps such statistics and then normalises by the
images at hand all the same; `bnrs=False` is what their figures were made with, and it learns faster.)

Source: Antoniou, Edwards & Storkey 2019, arXiv:1810.09502, sec. 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from metarec.algorithms import Given
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.errors import ConfigError
from metarec.options import DifferentiatedInner, ranged


@dataclass
class Config:
    """conf/algorithm/maml_pp.yaml"""

    name: str = "maml_pp"
    inner: DifferentiatedInner = field(default_factory=DifferentiatedInner)
    msl: bool = True
    lslr: bool = True
    da: bool = True
    bnrs: bool | None = None  # None = where the model has batch norm
    bnwb: bool | None = None  # None = where the model has norms
    ca: bool = True
    switch: float = ranged(0.5, min=0, max=1)
    msl_until: float = ranged(0.15, min=0, max=1)


def build(config: Config, given: Given) -> MAML:
    """`switch` and `msl_until` are shares of the outer steps, rounded to steps here; bnwb, bnrs null: where there are any.

    Raises ConfigError where one is asked for and the model has nothing of the kind that adapts.
    """
    for key, there, what in (("bnwb", given.norms, "norms"), ("bnrs", given.statistics, "batch norm")):
        if getattr(config, key) and not there:
            raise ConfigError(f"algorithm.{key}", True, f"the model has no {what} that adapt", "drop it")
    return maml_pp(
        given.inner,
        msl=config.msl,
        lslr=config.lslr,
        da=config.da,
        switch_step=round(config.switch * given.outer_steps),
        msl_until=round(config.msl_until * given.outer_steps),
        norms=() if config.bnwb is False else given.norms,
        statistics=() if config.bnrs is False else given.statistics,
    )


def maml_pp(
    inner: InnerLoop,
    *,
    msl: bool = True,
    lslr: bool = True,
    da: bool = True,
    switch_step: int = 0,
    msl_until: int = 0,
    norms: Collection[str] = (),
    statistics: Collection[str] = (),
) -> MAML:
    """Names that each step has for itself: `norms` weights and biases (empty: bnwb off), `statistics` (empty: bnrs off)."""
    loop = replace(
        inner,
        rates="tensor_step" if lslr else inner.rates,
        per_step=frozenset([*norms, *statistics]),
        kept=frozenset(statistics),
    )
    return MAML(
        loop,
        order="annealed" if da else "second",
        switch_step=switch_step,
        multi_step="annealed" if msl else "last",
        multi_step_until=msl_until,
    )
