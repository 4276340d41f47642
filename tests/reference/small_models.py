"""What tests of algorithms and residuals share: a small GRU4Rec, its tasks, and comparisons of named weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.off import NoResidual
from metarec.residual.on import FullResidual
from metarec.tasks import Tasks

MODEL = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.5)


def weights(seed: int = 1, scale: float = 1.0) -> Params:
    params = MODEL.init(torch.Generator().manual_seed(seed), torch.float64)
    return {name: value * scale for name, value in params.items()}


def tasks_over(residual: NoResidual | FullResidual | None = None, model: GRU4Rec = MODEL) -> Tasks:
    return Tasks(model, cross_entropy, (lambda phi: phi) if residual is None else residual.compose)


def leaves(params: Mapping[str, Tensor]) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def meta_gradient(algorithm: object, tasks: Tasks, phi: Params, batch: EpisodeBatch) -> tuple[list[float], Params]:
    """(query losses, gradient of their mean) as an outer step takes it."""
    start = leaves(phi)
    losses = algorithm.meta_losses(start, tasks.loss(batch.support), tasks.loss(batch.query), batch.n_tasks)  # type: ignore[attr-defined]
    found = torch.autograd.grad(losses.mean(), list(start.values()), allow_unused=True)
    grads = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(start.items(), found, strict=True)}
    return losses.tolist(), grads


def furthest(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest difference of any entry."""
    assert list(got) == list(wanted)
    return max(float((got[name] - wanted[name]).detach().abs().max()) for name in wanted)
