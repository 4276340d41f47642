"""residual.adapter: a run whose factors start from an adapter file.

The file decides: rank, alpha, scaling and targets are what it says, and stand as such in the checkpoint, which needs the
file no more. An option that was asked for and says otherwise is refused.
Shapes: A [r, in], B [out, r].
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metarec.config.schema import Part, TrainConfig
from metarec.config.show import show
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.residual import Residual, lora
from metarec.runs import adapters, checkpoint
from metarec.tasks import Model


def turned(model: Model) -> frozenset[str]:
    """The weights, [out, in] here, that transformers stores [in, out]: the model's `transposed`; mostly none."""
    return frozenset(getattr(model, "transposed", ()))


def resolved(config: TrainConfig, model: Model, given: Collection[str], found: Path | None) -> TrainConfig:
    """The configuration with rank, alpha, scaling and targets of the adapter file, or of the checkpoint `found`.

    `given`: the keys that were asked for. Raises ConfigError for one that contradicts the file, CheckpointError for a file
    that does not fit the model; without `residual.adapter` nothing is looked at.
    """
    asked: Any = config.residual
    if getattr(asked, "adapter", None) is None:
        return config
    if found is not None:
        _, state = checkpoint.load_checkpoint(found)
        return replace(config, residual=lora.Config(**state["config"]["residual"]))
    adapter, factors = adapters.read(Path(asked.adapter), model.shapes(), turned=turned(model))
    says = {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "scaling": "alpha/sqrt(r)" if adapter.rslora else "alpha/r",
        "targets": list(factors),
    }
    for name, value in says.items():
        wanted = getattr(asked, name)
        if (
            f"residual.{name}" in given
            and wanted != value
            and not (name == "targets" and _same(wanted, model, factors))
        ):
            what = f"the adapter file says {show(value)}, and the file decides"
            raise ConfigError(f"residual.{name}", show(wanted), what, "leave it out, or start without residual.adapter")
    config = replace(config, residual=replace(asked, **says))
    lora.targets(config.residual, model)  # type: ignore[arg-type]  # refuses a rank above a side, before anything runs
    return config


def _same(patterns: list[str] | None, model: Model, factors: Collection[str]) -> bool:
    """Whether patterns choose just these weights."""
    matrices = [name for name, shape in model.shapes().items() if len(shape) == 2]
    chosen = {name for pattern in patterns or () for name in fnmatch.filter(matrices, pattern)}
    return chosen == set(factors)


def start(config: Part, over: Residual, model: Model, generator: torch.Generator, *, anew: bool) -> Params:
    """phi as meta-training starts from it, of any shape: the residual's own, or `anew` the factors of the adapter file."""
    phi, path = over.init(generator), getattr(config, "adapter", None)
    if path is None or not anew:
        return phi
    _, factors = adapters.read(Path(path), model.shapes(), turned=turned(model))
    for name, (a, b) in factors.items():
        for key, value in ((name + lora.A, a), (name + lora.B, b)):
            phi[key] = value.to(phi[key])
    return phi
