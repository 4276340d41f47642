"""What the benches of sequences, images and text have in common: hardware, chunks of tasks, rows that are tuned on."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.config.schema import HardwareConfig
from metarec.core import fused, heap
from metarec.errors import EnvironmentFault
from metarec.residual import Residual
from metarec.tasks import Model, Objective, Tasks

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Hardware:
    device: torch.device
    dtype: torch.dtype
    line: str  # for the reader
    mixed: bool = False  # products in bfloat16, all else in `dtype`
    compiled: bool = False  # what `core.fused` holds

    @property
    def changes(self) -> list[str]:
        """What changes a number beside device, dtype and threads."""
        return [name for name in ("mixed", "compiled") if getattr(self, name)]


DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}  # of all but products


def hardware(config: HardwareConfig) -> Hardware:
    """Choose the device, and set threads, determinism and compilation for the process.

    Raises EnvironmentFault for a device that is not there or cannot do the precision.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.device
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
        if name == "mps" and config.precision != "float32":
            name = "cpu"  # mps has no float64, and nobody has seen it multiply in bfloat16
    if not there[name]:
        raise EnvironmentFault(
            "hardware.device", name, "this machine has no such device", "choose hardware=cpu or hardware=auto"
        )
    mixed = config.precision == "bfloat16"
    if mixed and name == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise EnvironmentFault(
            "hardware.precision", "bfloat16", f"{torch.cuda.get_device_name()} does not multiply in it",
            "use hardware.precision=float32",
        )  # fmt: skip
    if config.threads:
        torch.set_num_threads(config.threads)
    elif hasattr(os, "sched_getaffinity"):  # the cores this process may use, not those of the machine
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA asks of deterministic products
    if config.compile:
        torch.use_deterministic_algorithms(config.deterministic)
    else:  # the same setting, without the compiler, whose import is 1.3 s of a start
        torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
    heap.keep_freed()
    compiled = fused.switch(config.compile, torch.device(name), tell)
    line = f"{name}, {config.precision}, {torch.get_num_threads()} threads{', compiled' if compiled else ''}"
    return Hardware(torch.device(name), DTYPES[config.precision], line, mixed, compiled)


def tell(line: str) -> None:
    """A line on stderr, even when quiet: what was asked for is not done."""
    print(line, file=sys.stderr, flush=True)


class Identified(Protocol):
    """Prepared data of any kind."""

    @property
    def n_items(self) -> int:
        """V: what is scored."""

    @property
    def contents(self) -> str:
        """SHA-256 of the data."""

    @property
    def vocabulary_sha256(self) -> str:
        """What a model fits."""


def tasks_over(model: Model, objective: Objective, hardware: Hardware, over: Residual | None) -> Tasks:
    """Losses and logits over the model's own weights, or over what `over` composes from them."""
    compose = (lambda phi: phi) if over is None else over.compose
    return Tasks(
        model, objective, compose, hardware.mixed, getattr(over, "mix", None), getattr(over, "compose_on", None)
    )


def spread(count: int, most: int) -> Ints:
    """int64 [N]: all rows, or `most` of them, evenly spaced: those that are tuned on."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def chunks(n_tasks: int, size: int) -> list[slice]:
    """Ranges of `size` tasks, 0 = all in one; the last may be smaller."""
    return [slice(begin, begin + (size or n_tasks)) for begin in range(0, n_tasks, size or n_tasks)]


def identity(prepared: Identified, candidates: str) -> dict[str, Any]:
    """What figures of two runs must share before they are compared (`report.protocol`)."""
    return {
        "candidates": candidates,
        "n_items": prepared.n_items,
        "data_sha256": prepared.contents,
        "vocabulary_sha256": prepared.vocabulary_sha256,
    }
