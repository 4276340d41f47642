"""The head's delta: every algorithm, one task at a time, over a body that is the base's; zero is the pretrained model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference.matrix_cells import ALGORITHMS, cell, check_gradients, check_losses, found
from reference.matrix_models import MODELS
from reference.small_episodes import small_log
from reference.small_models import MODEL, tasks_over, weights

from metarec import build
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.residual import head
from metarec.residual.on import FullResidual

LOG = small_log(13, n_users=4, unknown=0.2)
NUMBERS = {"gru4rec": 11 * 5 + 11, "sasrec": 12 * 4, "narm": 12 * 3 + 3 * 8, "nested": 11 * 4 + 11,
           "conv4": 3 * 3 + 3}  # a user, by hand  # fmt: skip


@pytest.mark.parametrize("setting", ["clip", "prox"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", MODELS)
def test_meta_losses_and_gradients_are_those_of_one_task_at_a_time(model: str, algorithm: str, setting: str) -> None:
    it = found(model, algorithm, "head", setting, 1)
    check_losses(it)
    check_gradients(it)


@pytest.mark.parametrize("model", MODELS)
def test_a_user_is_the_head(model: str) -> None:
    names = head.learnable(head.Config(), MODELS[model].model)
    assert tuple(names) == MODELS[model].head
    shapes = MODELS[model].model.shapes()
    assert sum(torch.Size(shapes[name]).numel() for name in names) == NUMBERS[model]


def test_zero_is_the_pretrained_model_and_the_body_stays() -> None:
    base, batch = weights(), LOG.episodes(4, 4)
    residual = build.residual(head.Config(), MODEL, base)
    assert isinstance(residual, FullResidual)
    delta, tasks = residual.init(torch.Generator()), tasks_over(residual)
    assert list(delta) == ["fc.weight", "fc.bias"]
    assert torch.equal(tasks.logits(delta, batch.query), tasks_over().logits(base, batch.query))
    own = fomaml(InnerLoop(0.3, 3)).adapt(delta, tasks.loss(batch.support), 4)
    theta = residual.compose(own)
    assert all(theta[name] is base[name] for name in base if name not in delta)
    assert not torch.equal(tasks.logits(own, batch.query), tasks_over().logits(base, batch.query))


def test_another_alpha_or_a_part_that_stays_is_seen() -> None:
    class Still(FullResidual):
        def compose(self, phi):  # type: ignore[no-untyped-def]
            return super().compose({name: value for name, value in phi.items() if name != "fc.bias"})

    it = cell("gru4rec", "maml", "head", "clip", alpha=0.699)
    true = found("gru4rec", "maml", "head", "clip", 1)
    with pytest.raises(AssertionError):
        check_losses(replace(true, losses=it.engine()[0]))
    right = cell("gru4rec", "maml", "head", "clip")
    frozen = right.tasks.compose.__self__  # type: ignore[attr-defined]
    still = Still(frozen.base, frozen.alpha, frozen.init_scale, frozen.names)
    with pytest.raises(AssertionError):
        check_losses(
            replace(true, losses=replace(right, tasks=replace(right.tasks, compose=still.compose)).engine()[0])
        )
