"""Teachers of many users together: those of each user alone, and of a plain loop over copies that shares no code with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference.matrix_models import MODELS
from reference.small_episodes import Pair, small_log
from torch import Tensor

from metarec import build, teach
from metarec.algorithms.inner import InnerLoop
from metarec.core.weights import Params
from metarec.data.past import Past
from metarec.errors import DivergedError
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import context, lora
from metarec.tasks import Tasks

LOG = small_log(3, n_users=5, n_pairs=9, unknown=0.2, max_len=5)
MIDDLE = np.arange(5) * 9 + 7
PAST = Past(LOG.batcher, np.arange(5), MIDDLE - np.array([7, 1, 4, 2, 5]), MIDDLE, 2, 3, torch.device("cpu"))
RANK, ALPHA, LR, STEPS = 2, 3.0, 0.7, 4
SEQUENCES = ["gru4rec", "sasrec", "narm"]


def weights(name: str) -> Params:
    generator = torch.Generator().manual_seed(1)
    found = MODELS[name].model.init(generator, torch.float64)
    return {n: v + 0.4 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in found.items()}


def setting(name: str, kind: str) -> tuple[Any, Params, Tasks, InnerLoop]:
    """(residual, phi, tasks, loop) of residual=lora or context in float64."""
    on: Any = lora.Config(rank=RANK, alpha=ALPHA) if kind == "lora" else context.Config()
    model = MODELS[name].model
    over = build.residual(on, model, weights(name))
    moving = frozenset(n for n, adapts in build.learnable(on, model).items() if adapts)
    phi = over.init(torch.Generator().manual_seed(2))
    return over, phi, Tasks(model, cross_entropy, over.compose), InnerLoop(LR, STEPS, adapted=moving)


def whole(found: list[Params]) -> Params:
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


@pytest.mark.parametrize("kind", ["lora", "context"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_users_teacher_is_the_same_whoever_stands_beside_him(name: str, kind: str) -> None:
    _, phi, tasks, loop = setting(name, kind)
    alone = whole(list(teach.found(tasks, phi, PAST.of(np.arange(5), 1), loop)))
    for order, chunk in ((np.arange(5), 5), (np.array([3, 0, 4, 1, 2]), 3), (np.argsort(PAST.pairs), 2)):
        together = whole(list(teach.found(tasks, phi, PAST.of(order, chunk), loop)))
        assert together["user"].tolist() == order.tolist()
        assert together["pairs"].tolist() == PAST.pairs[order].tolist()
        for key, value in together.items():
            assert (value.double() - alone[key][order].double()).abs().max() < 1e-10, key
    moved = {key: float((alone[key] - phi[key]).abs().max()) for key in phi if loop.moves(key)}
    assert min(moved.values()) > 1e-3  # something was found


@pytest.mark.parametrize("name", SEQUENCES)
def test_teachers_are_those_of_a_plain_loop_over_whole_matrices(name: str) -> None:
    over, phi, tasks, loop = setting(name, "lora")
    found = whole(list(teach.found(tasks, phi, PAST, loop)))
    base, logits = weights(name), MODELS[name].logits

    def loss(own: Params, pairs: list[Pair]) -> Tensor:
        known = [(prefix[-5:], target - 1) for prefix, target in pairs if target > 0]
        theta = dict(base)
        for weight in over.targets:
            theta[weight] = base[weight] + ALPHA / RANK * own[weight + ".lora_b"] @ own[weight + ".lora_a"]
        if not known:
            return sum(value.sum() for value in own.values()) * 0
        rows = logits(theta, [prefix for prefix, _ in known]).log_softmax(-1)
        return -torch.stack([row[target] for row, (_, target) in zip(rows, known, strict=True)]).mean()

    for user in range(5):
        support = LOG.expand(np.arange(PAST.first[user], PAST.middle[user]))
        query = LOG.expand(np.arange(PAST.middle[user], PAST.middle[user] + 2))
        own = {key: value.clone() for key, value in phi.items()}
        before = loss(own, query)
        for _ in range(STEPS):
            own = {key: value.requires_grad_() for key, value in own.items()}
            slopes = torch.autograd.grad(loss(own, support), list(own.values()))
            own = {key: (v - LR * g).detach() for (key, v), g in zip(own.items(), slopes, strict=True)}
        for key, value in own.items():
            assert (found[key][user] - value).abs().max() < 1e-10, key
        assert abs(float(found["loss_before"][user] - before)) < 1e-10
        assert abs(float(found["loss_after"][user] - loss(own, query))) < 1e-10


def test_a_teacher_that_diverges_is_told_with_a_way_out() -> None:
    _, phi, tasks, loop = setting("gru4rec", "lora")
    wild = InnerLoop(float("inf"), STEPS, adapted=loop.adapted)
    with pytest.raises(DivergedError, match=r"one of the users in rows 0 to 2 -- lower algorithm\.teacher\.lr"):
        list(teach.found(tasks, phi, PAST, wild))


def test_a_batch_has_room_for_some_pairs_of_any_catalogue() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert teach.most_pairs(3416, cpu) == 613  # 2^21 scores
    assert teach.most_pairs(3416, gpu) == 78581
    assert teach.most_pairs(10**9, cpu) == 1
