"""What the benches of sequences, images and text have in common: hardware, chunks of tasks, rows that are tuned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

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
