"""What tests of the memory share: small logs, cut and full of unknown items, a small model, residuals and their phi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from reference.small_episodes import SmallLog, small_log
from torch import Tensor

from metarec import build, parts
from metarec.core.weights import Params
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

T, K, Q = 4, 4, 4
MODEL = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.0)
LOGS = {
    "whole": small_log(5, unknown=0.2),
    "cut": small_log(6, unknown=0.3, max_len=3, longest=7),
    "mostly unknown": small_log(8, unknown=0.7, max_len=2),
}


def log_of(name: str, n_read: int | None = None) -> SmallLog:
    found = LOGS[name]
    return replace(found, batcher=replace(found.batcher, recall=True, n_read=n_read))


def normal(shape: tuple[int, ...], seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASE = {name: value + normal(value.shape, 40 + n, 0.3) for n, (name, value) in
        enumerate(MODEL.init(torch.Generator().manual_seed(1), torch.float64).items())}  # fmt: skip


def over(name: str = "memory", model: Any = MODEL, base: Params | None = None, **options: Any) -> Any:
    on: Any = parts.default("residual", name)
    on = replace(on, **options) if name == "memory" else replace(on, memory=replace(on.memory, **options))
    return build.residual(on, model, BASE if base is None else base)


def tasks_over(residual: Any, model: Any = MODEL, objective: Any = cross_entropy) -> Tasks:
    return Tasks(model, objective, residual.compose, mix=residual.mix)


def moved(residual: Any, size: float = 0.7) -> Params:
    """phi away from its start."""
    start = residual.init(torch.Generator().manual_seed(3))
    return {name: value + normal(value.shape, 90 + n, size if name.startswith("memory.") else 0.3)
            for n, (name, value) in enumerate(start.items())}  # fmt: skip


def pairs_of(log: SmallLog, user: int) -> tuple[list[int], list[int]]:
    first = user * log.n_pairs
    return list(range(first, first + K)), list(range(first + K, first + K + Q))
