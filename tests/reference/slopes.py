"""Central differences of the meta-loss of a cell (`matrix_cells`) along directions, against its meta-gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from reference.matrix_cells import Cell, normal
from reference.meta_reference import Params

# The smaller ones are for a direction along which the first crosses a kink of ReLU, of max-pooling or of the clip. Of two
# that are both too long the chance falls with their length; below them the loss's last digit counts.
DIFFERENCES = (1e-5, 3e-6, 1e-6)


def slope_error(it: Cell, grads: Params, along: Params, differences: tuple[float, ...] = DIFFERENCES) -> float:
    """|<gradient, along> - slope| / |slope| for a direction that is made to have length 1."""
    size = sum(float(value.square().sum()) for value in along.values()) ** 0.5
    whole = sum(float(value.square().sum()) for value in grads.values()) ** 0.5
    got = sum(float((grads[name] * value).sum()) for name, value in along.items()) / size

    def at(eps: float) -> float:
        moved = {name: it.phi[name] + eps / size * value for name, value in along.items()}
        with torch.no_grad():
            return float(it.losses(it.phi | moved, first_order(it.algorithm)).mean())

    worst = float("inf")
    for eps in differences:
        slope = (at(eps) - at(-eps)) / (2 * eps)
        worst = min(worst, abs(got - slope) / max(abs(slope), 1e-2 * whole))
        if worst < 1e-7:
            break
    return worst


def first_order(algorithm: Any) -> Any:
    """The same meta-loss, whose value is all that a difference needs, made without the graph through the steps."""
    return replace(algorithm, order="first") if hasattr(algorithm, "order") else algorithm


def jointly(it: Cell, count: int, seed: int = 7) -> Iterator[Params]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield {name: normal(tuple(it.phi[name].shape), generator) for name in it.trained}


def one_by_one(it: Cell, seed: int = 8) -> Iterator[Params]:
    generator = torch.Generator().manual_seed(seed)
    for name in it.trained:
        yield {name: normal(tuple(it.phi[name].shape), generator)}
