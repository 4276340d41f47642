"""Three small tasks of GRU4Rec, SASRec and Conv4: meta-losses and gradients of an algorithm, and the inner loop once more
as a plain loop over full copies, one task at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, leaves
from reference.small_tensors import T, normal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarec.algorithms import Algorithm
from metarec.algorithms.inner import RATE, InnerLoop, TaskLoss
from metarec.core.batch import EpisodeBatch, ImageBatch
from metarec.core.weights import FastWeight, Params
from metarec.models.conv4 import Conv4
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Model, Tasks


@dataclass(frozen=True)
class Case:
    model: Model
    phi: Params
    batch: Callable[[list[int]], EpisodeBatch]  # of some of the tasks 0..T-1

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.model, cross_entropy, lambda phi: phi)

    def all(self) -> EpisodeBatch:
        return self.batch(list(range(T)))

    def losses(self, users: list[int] | None = None) -> tuple[TaskLoss, TaskLoss]:
        batch = self.batch(users or list(range(T)))
        return self.tasks.loss(batch.support), self.tasks.loss(batch.query)


LOG = small_log(7, n_users=T, n_pairs=7)


def episodes(users: list[int]) -> EpisodeBatch:
    return LOG.episodes(3, 4, users)


def images(users: list[int]) -> EpisodeBatch:
    """3-way: one support and two query images a class, of 16 x 16 pixels."""
    pixels, target = normal(T, 9, 1, 16, 16, seed=6)[users], torch.tensor([1, 2, 3]).repeat(len(users), 1)
    query = ImageBatch(pixels[:, 3:], target.repeat_interleave(2, 1))
    return EpisodeBatch(ImageBatch(pixels[:, :3], target), query, torch.tensor(users))


def start_of(model: Model, scale: float = 1.0) -> Params:
    params = model.init(torch.Generator().manual_seed(1), torch.float64)
    return {name: value + scale * normal(*value.shape, seed=n) for n, (name, value) in enumerate(params.items())}


SASREC, CONV4 = SASRec(11, 6, n_layers=1, n_heads=2, max_len=12, ffn_dim=5), Conv4(3, filters=2, image_size=16)
CASES = {
    "gru4rec": Case(MODEL, start_of(MODEL, 0.3), episodes),
    "sasrec": Case(SASREC, start_of(SASREC, 0.5), episodes),
    "conv4": Case(CONV4, start_of(CONV4, 0.2), images),
}
every_model = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def outer(algorithm: Algorithm, case: Case, phi: Params | None = None, step: int = 0) -> tuple[Tensor, Params]:
    """(meta-losses, gradient of their mean with respect to all that is learned)."""
    begin = leaves(algorithm.learned(case.phi) if phi is None else phi)
    losses = algorithm.meta_losses(begin, *case.losses(), T, step)
    found = torch.autograd.grad(losses.mean(), list(begin.values()), allow_unused=True, materialize_grads=True)
    return losses.detach(), dict(zip(begin, found, strict=True))


def same(a: tuple[Tensor, Params], b: tuple[Tensor, Params]) -> bool:
    """Bit for bit."""
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][name], b[1][name]) for name in b[1])


def dense(weights: dict[str, FastWeight], n_tasks: int = T) -> Params:
    return {name: w.dense().expand(n_tasks, *w.shared.shape) for name, w in weights.items()}


def plainly(loss: TaskLoss, phi: Params, loop: InnerLoop) -> Params:
    """The inner loop of one task on full copies of its weights, by autograd alone; the graph is kept."""
    now = {name: value for name, value in phi.items() if not name.startswith(RATE)}
    begin = dict(now)
    for step in range(loop.steps):
        moving = [name for name in now if loop.adapted is None or name in loop.adapted]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
            losses = loss(now)
        found = torch.autograd.grad(
            losses.sum(), [now[n] for n in moving], create_graph=True, allow_unused=True, materialize_grads=True
        )
        factor: float | Tensor = 1.0
        if loop.clip:
            factor = (loop.clip / torch.stack([g.square().sum() for g in found]).sum().sqrt()).clamp(max=1.0)
        for name, grad in zip(moving, found, strict=True):
            rate: float | Tensor = loop.lr
            if loop.rates != "fixed":
                rate = phi[RATE + name].exp()
                rate = rate[step] if loop.rates.endswith("_step") else rate
            away = loop.pull * now[name] + loop.prox * (now[name] - begin[name])
            now = now | {name: now[name] - rate * (factor * grad + away)}
    return now
