"""How the outer step size moves over a run: step -> factor, a pure function, so a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metarec.options import ranged


@dataclass
class ConstantConfig:
    name: str = "constant"
    warmup_steps: int = ranged(0, min=0)


@dataclass
class CosineConfig:
    name: str = "cosine"
    warmup_steps: int = ranged(0, min=0)
    final_factor: float = ranged(0.0, min=0, max=1)


@dataclass
class WarmCosineConfig:
    name: str = "warm_cosine"
    warmup_steps: int = ranged(20, min=0)
    final_factor: float = ranged(0.01, min=0, max=1)


@dataclass
class LinearConfig:
    name: str = "linear"
    warmup_steps: int = ranged(0, min=0)
    final_factor: float = ranged(0.0, min=0, max=1)


def factor(step: int, *, steps: int, name: str, warmup_steps: int = 0, final_factor: float = 0.0) -> float:
    """The factor of step 0..steps-1.

    Warm-up rises linearly; then `constant`, or `linear` or `cosine` down to `final_factor` at the last step;
    `warm_cosine` is a cosine with a warm-up to begin with. Cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5,
    without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    done = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    if name == "linear":
        return 1.0 + (final_factor - 1.0) * done
    if name in ("cosine", "warm_cosine"):
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))
    raise KeyError(name)
