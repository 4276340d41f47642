"""What each model says of its linear layers is so, and an inner step that forgets along them is exact in all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.small_cases import images
from reference.small_episodes import small_log
from reference.small_tensors import normal
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.forgetting import Forget
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core import inputs
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params
from metarec.models import causal_lm
from metarec.models.conv4 import Conv4
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.context import Config as Context
from metarec.residual.context import build as contexts_of
from metarec.tasks import Tasks

LOG = small_log(5, n_users=3, max_len=4)
LLAMA = causal_lm.Config(hidden_size=8, n_layers=1, n_heads=2, n_kv_heads=1, max_len=8)
MODELS: dict[str, Any] = {
    "gru4rec": GRU4Rec(11, 3, 4, n_layers=2),
    "gru4rec tied": GRU4Rec(11, 4, 4, tie=True),
    "narm": NARM(11, 3, 4),
    "narm untied": NARM(11, 3, 4, tie=False),
    "nested": Nested(11, 4, "gru", 5, 6),
    "nested lstm": Nested(11, 4, "lstm", 5, 6, tie=True),
    "sasrec": SASRec(11, 4, 2, 2, max_len=4),
    "sasrec untied": SASRec(11, 4, 1, 2, max_len=4, tie=False),
    "causal_lm": causal_lm.build(LLAMA, 11),
    "causal_lm recomputed": causal_lm.build(replace(LLAMA, gradient_checkpointing=True), 11),
    "conv4": Conv4(3, filters=2, image_size=16),
}
FORMS = ("explicit", "proximal")
every_model = pytest.mark.parametrize("name", MODELS)


def start(model: Any) -> Params:
    params = model.init(torch.Generator().manual_seed(1), torch.float64)
    return {name: value + 0.2 * normal(*value.shape, seed=n) for n, (name, value) in enumerate(params.items())}


def episodes(name: str, users: list[int] | None = None) -> EpisodeBatch:
    users = [0, 1, 2] if users is None else users
    return images(users) if name == "conv4" else LOG.episodes(3, 4, users)


def loop_of(model: Any, form: str, a: float = 0.1, steps: int = 2) -> InnerLoop:
    """All that can forget adapts, and all vectors."""
    fixed = getattr(model, "fixed", ())
    moves = {*model.linear, *(n for n, shape in model.shapes().items() if len(shape) == 1 and n not in fixed)}
    forget = Forget(a, form, "clip" if form == "explicit" else "stop", frozenset(model.linear))
    return InnerLoop(0.1, steps, adapted=frozenset(moves), forget=forget)


def moments(model: Any, params: Params, batch: EpisodeBatch) -> dict[str, Tensor]:
    """M of all matrices that are multiplied by, over the batch, as an optimizer is told of it."""
    found = inputs.Moments([name for name, shape in model.shapes().items() if len(shape) == 2])
    with inputs.recorded(found):
        Tasks(model, cross_entropy, lambda phi: phi).loss(batch.support, recorded=True)(params).sum()
    taken = found.take()
    return {name: moment for name, (moment, shares) in taken.items() if moment is not None and shares is None}


@every_model
def test_the_linear_layers_are_what_is_multiplied_by_and_no_table_and_no_recurrence(name: str) -> None:
    model = MODELS[name]
    recurrent = {own for own in model.shapes() if "weight_hh" in own}
    assert sorted(model.linear) == sorted(set(moments(model, start(model), episodes(name))) - recurrent)


@every_model
def test_what_a_task_reads_is_what_an_optimizer_is_told_of_a_batch_of_it_alone(name: str) -> None:
    """Tasks in chunks, of unlike lengths, or with prefixes of their own: M of each is its own."""
    model = MODELS[name]
    params, batch = start(model), episodes(name)
    loop = loop_of(model, "proximal")
    assert loop.forget is not None
    reads = loop.forget.asked(params)
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(batch.support)
    losses, grads = inner.gradients(loss, params, {}, [n for n in params if loop.moves(n)], False, reads)
    pulls = loop.forget.of(reads, len(losses), grads, 0)
    assert set(pulls) == set(model.linear)
    for task in range(3):
        alone = moments(model, params, episodes(name, [task]))
        for weight, pull in pulls.items():
            found = pull.moment if pull.x is None else pull.x.mT @ pull.x
            assert found is not None
            torch.testing.assert_close(found[task], alone[weight], rtol=1e-11, atol=1e-11, msg=weight)


@pytest.mark.parametrize("form", FORMS)
@every_model
def test_tasks_are_adapted_as_if_alone(name: str, form: str) -> None:
    model = MODELS[name]
    params, loop = start(model), loop_of(model, form)
    tasks = Tasks(model, cross_entropy, lambda phi: phi)
    whole = inner.adapt(tasks.loss(episodes(name).support), params, 3, loop)
    for task in range(3):
        alone = inner.adapt(tasks.loss(episodes(name, [task]).support), params, 1, loop)
        for weight in model.linear:
            torch.testing.assert_close(alone[weight].dense()[0], whole[weight].dense()[task], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@every_model
def test_the_meta_gradient_equals_central_differences(name: str, form: str) -> None:
    """Along a random direction, to 1e-6 relative. (The error of the difference falls with the square of its size.)"""
    model, size = MODELS[name], 2e-6
    phi, batch = start(model), episodes(name)
    tasks = Tasks(model, cross_entropy, lambda own: own)
    support, query = tasks.loss(batch.support), tasks.loss(batch.query)
    direction = {own: normal(*value.shape, seed=len(own)) for own, value in phi.items()}
    loop = loop_of(model, form, a=0.05 if form == "explicit" else 0.5)

    def loss(phi: Params) -> Tensor:
        return MAML(loop).meta_losses(phi, support, query, 3).mean()

    def at(sign: float) -> float:
        return float(loss({own: value + sign * size * direction[own] for own, value in phi.items()}).detach())

    leaves = {own: value.clone().requires_grad_() for own, value in phi.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    along = sum(float((grad * direction[own]).sum()) for own, grad in zip(leaves, found, strict=True))
    wanted = (at(1) - at(-1)) / (2 * size)
    assert along == pytest.approx(wanted, rel=1e-6)


def test_prefix_tokens_are_inputs_of_the_projection_that_reads_them() -> None:
    """SASRec's prefix is read beside the chunks of events, once a task; both are in one mean."""
    model = MODELS["sasrec"]
    over = contexts_of(Context(), start(model), model)
    phi = {n: v + 0.3 for n, v in over.init(torch.Generator()).items()}
    tasks, loop = Tasks(model, cross_entropy, over.compose), loop_of(model, "proximal")
    whole = inner.adapt(tasks.loss(episodes("sasrec").support), phi, 3, loop)
    for task in range(3):
        alone = inner.adapt(tasks.loss(episodes("sasrec", [task]).support), phi, 1, loop)
        for weight in model.linear:
            torch.testing.assert_close(alone[weight].dense()[0], whole[weight].dense()[task], rtol=1e-9, atol=1e-9)
