"""Adaptation writes into no weight, so there is nothing to restore before the backward pass; who does so is told.

A meta-gradient is silently wrong where adapted weights are written into the model and put back before `backward`: the graph
then reads the restored numbers. Here adapted weights are new tensors, and a write into what the graph holds is an error.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, leaves, weights

from metarec import build, parts
from metarec.evaluate import Control
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

BASE, LOG = weights(), small_log(3)
ALGORITHMS = ("fomaml", "maml", "maml_pp", "meta_sgd", "anil", "reptile", "imaml")


def made(algorithm: str, residual: str) -> tuple[Any, Any, dict[str, torch.Tensor], Tasks]:
    on: Any = parts.default("residual", residual)
    if residual == "lora":
        on.rank, on.targets = 2, ["fc.weight", "gru.weight_ih_l0"]
    over = build.residual(on, MODEL, BASE)
    learner = build.algorithm(
        parts.default("algorithm", algorithm), on, MODEL, Control(0.2, 2, 0.0, []), outer_steps=4, support_share=0.5
    )
    phi = leaves(learner.learned(over.init(torch.Generator().manual_seed(1))))
    compose_on = getattr(over, "compose_on", None)
    return learner, over, phi, Tasks(MODEL, cross_entropy, over.compose, compose_on=compose_on)


@pytest.mark.parametrize("residual", ["off", "on", "lora", "context"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_weight_is_written_to(algorithm: str, residual: str) -> None:
    """torch counts the writes into every tensor: from the first loss to the end of the backward pass there is none."""
    learner, over, phi, tasks = made(algorithm, residual)
    batch = LOG.episodes(4, 4)
    held = {**phi, **{f"base/{name}": value for name, value in over.base.items()}}
    before = {name: (value._version, value.detach().clone()) for name, value in held.items()}
    support = tasks.loss(batch.support)
    learner.adapt(phi, support, batch.n_tasks)
    learner.meta_losses(phi, support, tasks.loss(batch.query), batch.n_tasks).mean().backward()
    for name, value in held.items():
        version, numbers = before[name]
        assert value._version == version, name
        assert torch.equal(value.detach(), numbers)


@pytest.mark.parametrize("residual", ["off", "lora"])
@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_a_restore_before_the_backward_pass_is_an_error(algorithm: str, residual: str) -> None:
    """The planted fault: weights put back in place, as one does who has written into them."""
    learner, _, phi, tasks = made(algorithm, residual)
    batch = LOG.episodes(4, 4)
    kept = {name: value.detach().clone() for name, value in phi.items()}
    loss = learner.meta_losses(phi, tasks.loss(batch.support), tasks.loss(batch.query), batch.n_tasks).mean()
    with torch.no_grad():
        for name, value in phi.items():
            value.copy_(kept[name])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
