"""Sampled softmax: its limit is the full softmax, its denominator has the full one as mean, and it can be adapted by."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, furthest, leaves, weights
from torch import Tensor

from metarec.algorithms.inner import InnerLoop, adapt
from metarec.algorithms.maml import MAML
from metarec.core.batch import EpisodeBatch
from metarec.core.offsets import Rows
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives import candidates, sampled_softmax
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.sampled_softmax import SampledSoftmax
from metarec.objectives.scores import Scores
from metarec.tasks import Tasks

# softmax of (log 1, log 2, log 5) = 1/8, 2/8, 5/8
LOGITS = torch.tensor([[[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]]], dtype=torch.float64).log()
TARGET = torch.tensor([[1, 3]])
BY_RANK = torch.tensor([3, 1, 2])  # item 3 is the most popular
ZIPF = [math.log(2) / math.log(4), math.log(3 / 2) / math.log(4), math.log(4 / 3) / math.log(4)]


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_ranks(monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]) -> Tensor:
    """Losses where these ranks are drawn."""
    edges = [0.0, ZIPF[0], ZIPF[0] + ZIPF[1], 1.0]
    middles = torch.tensor([(edges[k] + edges[k + 1]) / 2 for k in ranks], dtype=torch.float64)
    monkeypatch.setattr(candidates, "_uniforms", lambda n, generator: middles)
    return SampledSoftmax(BY_RANK, len(ranks))(Scores.of_logits(LOGITS), TARGET, seeded())


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice rank 0, item 3, whose expected count of two draws is 3/4; it is the second pair's target."""
    loss = with_ranks(monkeypatch, (0, 0))
    assert loss.tolist()[0] == pytest.approx([math.log(1 + 5 / (3 / 4)), 0.0], abs=1e-12)


def check_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all nine outcomes of two draws, the mean of e^loss is 1 / p[target] of the full softmax: 8 and 2."""
    mean = torch.zeros(1, 2, dtype=torch.float64)
    for ranks in product(range(3), repeat=2):
        mean += ZIPF[ranks[0]] * ZIPF[ranks[1]] * with_ranks(monkeypatch, ranks).exp()
    assert mean.tolist()[0] == pytest.approx([8 / 1, 8 / 4], abs=1e-12)


def test_the_denominator_has_the_full_one_as_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    check_denominator(monkeypatch)


@pytest.mark.parametrize("fault", ["no correction", "ranks taken for items", "hits stay", "counts of draws"])
def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    true = candidates.log_uniform
    if fault == "no correction":
        monkeypatch.setattr(
            sampled_softmax, "log_uniform", lambda *a: (true(*a)[0], torch.ones_like(true(*a)[1]))
        )  # fmt: skip
    elif fault == "counts of draws":  # n P, where each item is taken once
        monkeypatch.setattr(
            sampled_softmax, "log_uniform", lambda *a: (true(*a)[0], 2 * torch.tensor(ZIPF).double()[true(*a)[0]])
        )
    elif fault == "ranks taken for items":
        monkeypatch.setitem(globals(), "BY_RANK", torch.tensor([1, 2, 3]))
        assert with_ranks(monkeypatch, (0, 0)).tolist()[0] != pytest.approx([math.log(1 + 5 / (3 / 4)), 0.0])
        return
    else:
        monkeypatch.setattr(Tensor, "masked_fill", lambda self, mask, value: self)
    with pytest.raises(AssertionError):
        check_denominator(monkeypatch)


def test_all_items_drawn_is_the_full_softmax() -> None:
    logits = torch.randn(2, 5, 30, generator=seeded(), dtype=torch.float64).requires_grad_()
    target = torch.tensor([[1, 30, -1, 0, 7], [3, 3, 3, -1, 12]])
    by_rank = torch.randperm(30, generator=seeded(2)) + 1
    found = []
    for loss in (
        SampledSoftmax(by_rank, 30)(Scores.of_logits(logits), target, seeded()),
        CrossEntropy()(Scores.of_logits(logits), target),
    ):
        found.append((loss, torch.autograd.grad(loss.sum(), logits)[0]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert not found[0][0][target <= 0].any()


def test_the_mean_gradient_nears_the_full_one() -> None:
    """Within four standard errors of the mean of 300 draws and a bias of 1 / n, in units of the full gradient's norm."""
    n_items, n_draws = 300, 300
    logits = torch.randn(1, 20, n_items, generator=seeded(), dtype=torch.float64)
    target = torch.randint(1, n_items + 1, (1, 20), generator=seeded(2))
    by_rank = torch.randperm(n_items, generator=seeded(3)) + 1

    def gradient(objective: SampledSoftmax | CrossEntropy, draw: torch.Generator) -> Tensor:
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(objective(Scores.of_logits(leaf), target, draw).sum(), leaf)[0]

    full, draw, errors = gradient(CrossEntropy(), seeded()), seeded(4), []
    for n in (10, 160):
        each = torch.stack([gradient(SampledSoftmax(by_rank, n), draw) for _ in range(n_draws)])
        deviation = (each.var(0).sum() / n_draws).sqrt() / full.norm()
        errors.append(float((each.mean(0) - full).norm() / full.norm()))
        assert errors[-1] < 4 * deviation + 1 / n
    assert errors[1] < errors[0] / 2


def test_draws_are_shared_by_the_batch_and_follow_from_the_generator() -> None:
    logits = torch.randn(3, 4, 40, generator=seeded(), dtype=torch.float64)
    logits[:] = logits[0, 0]
    target, objective = torch.full((3, 4), 5), SampledSoftmax(torch.arange(1, 41), 6)
    once, again = (objective(Scores.of_logits(logits), target, seeded(7)) for _ in range(2))
    assert torch.equal(once, again) and len(once.unique()) == 1
    assert not torch.equal(once, objective(Scores.of_logits(logits), target, seeded(8)))


def test_errors_say_what_to_do() -> None:
    tasks = Tasks(MODEL, SampledSoftmax(torch.arange(1, 12), 4), lambda phi: phi)
    with pytest.raises(
        ValueError, match=r"SampledSoftmax draws items, but there is no generator: give one to Tasks.loss"
    ):
        tasks.loss(small_log(7).episodes(4, 4).support)(weights())
    with pytest.raises(ValueError, match="by_rank names 3 items, the model has 11"):
        Tasks(MODEL, SampledSoftmax(BY_RANK), lambda phi: phi).loss(small_log(7).episodes(4, 4).support, seeded())(
            weights()
        )


BATCH = small_log(7).episodes(4, 4)
MODELS = {
    "one layer": MODEL,
    "two layers": GRU4Rec(11, 3, 4, 0.5, n_layers=2),
    "tied": GRU4Rec(11, 4, 4, 0.2, tie=True, embedding_dropout=0.2),
}


def sampled(model: GRU4Rec) -> Tasks:
    return Tasks(model, SampledSoftmax(torch.randperm(11, generator=seeded(5)) + 1, 5), lambda phi: phi)


def meta_losses(algorithm: MAML, tasks: Tasks, phi: Params, batch: EpisodeBatch) -> Tensor:
    """Support and query each drop units and draw items, by a generator of their own."""
    support, query = (
        tasks.loss(pairs, generator(1, kind)) for kind, pairs in (("s", batch.support), ("q", batch.query))
    )
    return algorithm.meta_losses(phi, support, query, batch.n_tasks)


@pytest.mark.parametrize("model", MODELS)
def test_the_meta_gradient_equals_a_central_difference(model: str) -> None:
    tasks, algorithm = sampled(MODELS[model]), MAML(InnerLoop(0.5, 3, 0.1, 0.05))
    phi = leaves(MODELS[model].init(seeded(), torch.float64))
    names, values = list(phi), list(phi.values())
    direction = {name: torch.randn(v.shape, generator=seeded(6), dtype=v.dtype) for name, v in phi.items()}

    def along(sign: float) -> float:
        there = {name: value.detach() + sign * 1e-5 * direction[name] for name, value in phi.items()}
        return meta_losses(algorithm, tasks, there, BATCH).mean().item()

    wanted = (along(1.0) - along(-1.0)) / 2e-5
    errors = []
    for kind in (
        algorithm,
        replace(algorithm, order="first"),
        replace(algorithm, inner=replace(algorithm.inner, recompute=True)),
    ):
        grads = torch.autograd.grad(meta_losses(kind, tasks, phi, BATCH).mean(), values)
        got = sum(float((grad * direction[name]).sum()) for name, grad in zip(names, grads, strict=True))
        errors.append(abs(got - wanted) / abs(wanted))
    second, first, recomputed = errors
    assert second < 1e-6
    assert recomputed < 1e-6
    assert first > 1e-3


def test_what_a_task_learns_of_the_output_layer_is_rows() -> None:
    """Candidates and targets alone: nothing of the size of the vocabulary is kept for a task."""
    loss = sampled(MODEL).loss(BATCH.support, seeded())
    adapted = adapt(loss, weights(), 4, InnerLoop(0.5, 2))
    offset = adapted["fc.weight"].offset
    assert isinstance(offset, Rows)
    assert offset.values.shape[1] <= 5 + 4  # draws, and the targets of four pairs


def test_a_step_equals_autograd_on_copies_of_the_full_weights() -> None:
    loss, start = sampled(MODEL).loss(BATCH.support, seeded()), weights()
    adapted = adapt(loss, start, 4, InnerLoop(0.5, 1))
    for task in range(4):
        phi = leaves(start)
        grads = torch.autograd.grad(loss(phi)[task], list(phi.values()))
        wanted = {name: value - 0.5 * grad for (name, value), grad in zip(start.items(), grads, strict=True)}
        assert furthest({name: adapted[name].dense()[task] for name in start}, wanted) < 1e-12
