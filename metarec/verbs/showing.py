"""What an algorithm is told beside losses: what each support pair is, and what a teacher has found for each task.

Most algorithms are told nothing more, and their losses stay what they are. One with `reads_support` sees every support
pair as the frozen pretrained model does (`Tasks.evidence`); with teachers, its query loss brings their numbers and the
scores that the two are compared by.

Shapes: T tasks, Q query pairs, V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from metarec.algorithms import Algorithm, Shown, Taught
from metarec.algorithms.inner import TaskLoss
from metarec.benches import AnyBench
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params, Weights
from metarec.residual import Residual
from metarec.tasks import Tasks


class Teachers(Protocol):
    """What teachers are to training (`metarec.runs.teachers`)."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """Of a product's weight, and of every name: mean squared norm over teachers of what it adds."""

    @property
    def scales(self) -> Mapping[str, float]:
        """Weight -> the factor s of its product."""

    def of(self, users: np.ndarray) -> dict[str, Tensor]:
        """Name -> what the teachers of users int64 [T] have found, [T, *S]."""


@dataclass(frozen=True)
class Showing:
    plain: Tasks
    over: Tasks
    base: Params
    reads: bool
    teachers: Teachers | None = None

    @staticmethod
    def of(bench: AnyBench, residual: Residual, algorithm: Algorithm, teachers: Teachers | None = None) -> Showing:
        """Of a run: its frozen weights, and what its residual composes."""
        reads = bool(getattr(algorithm, "reads_support", False))
        return Showing(bench.tasks(), bench.tasks(residual), residual.base, reads, teachers)

    def support(self, batch: EpisodeBatch, loss: TaskLoss) -> TaskLoss:
        """`loss` of the support of `batch`, and what its pairs are where that is read."""
        return Shown(loss, *self.plain.evidence(self.base, batch.support)) if self.reads else loss

    def query(self, batch: EpisodeBatch, loss: TaskLoss) -> TaskLoss:
        """`loss` of the query of `batch`, and what the teachers of its users have found where there are any."""
        if self.teachers is None:
            return loss
        like = next(iter(self.base.values()))
        numbers = {name: value.to(like.device, like.dtype)
                   for name, value in self.teachers.of(batch.user.cpu().numpy()).items()}  # fmt: skip

        def outputs(weights: Weights) -> Tensor:
            return self.over.logits(weights, batch.query).log_softmax(-1)

        there = batch.query.target != 0
        return Taught(loss, outputs, there, numbers, self.teachers.sizes, self.teachers.scales)
