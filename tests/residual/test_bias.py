"""The vectors' delta: every algorithm, one task at a time, matrices are the base's; zero is the pretrained model."""

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
from metarec.errors import ConfigError
from metarec.residual import bias
from metarec.residual.on import FullResidual

LOG = small_log(13, n_users=4, unknown=0.2)
NUMBERS = {
    "gru4rec": 15 + 15 + 11,
    "sasrec": 12 + 4 + 4 + 4 + 3 * 8,
    "narm": 12 + 12 + 4,
    "nested": 2 * 12 + 3 * 2 * 4 + (3 + 4) + (5 + 4) + 11,
    "conv4": 4 * 9 + 3,
}  # by hand
WITHOUT_A_BIAS_IN_THE_HEAD = ("sasrec", "narm")  # tied


@pytest.mark.parametrize("setting", ["clip", "prox"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", MODELS)
def test_meta_losses_and_gradients_are_those_of_one_task_at_a_time(model: str, algorithm: str, setting: str) -> None:
    if algorithm == "anil" and model in WITHOUT_A_BIAS_IN_THE_HEAD:
        with pytest.raises(ConfigError, match=r"algorithm\.head: .*nothing of it adapts"):
            found(model, algorithm, "bias", setting, 1)
        return
    it = found(model, algorithm, "bias", setting, 1)
    check_losses(it)
    check_gradients(it)


@pytest.mark.parametrize("model", MODELS)
def test_a_user_is_all_vectors(model: str) -> None:
    shapes = MODELS[model].model.shapes()
    names = bias.learnable(bias.Config(), MODELS[model].model)
    assert sum(torch.Size(shapes[name]).numel() for name in names) == NUMBERS[model]


def test_zero_is_the_pretrained_model_and_matrices_stay() -> None:
    base, batch = weights(), LOG.episodes(4, 4)
    residual = build.residual(bias.Config(), MODEL, base)
    assert isinstance(residual, FullResidual)
    delta, tasks = residual.init(torch.Generator()), tasks_over(residual)
    assert list(delta) == ["gru.bias_ih_l0", "gru.bias_hh_l0", "fc.bias"]
    assert torch.equal(tasks.logits(delta, batch.query), tasks_over().logits(base, batch.query))
    own = fomaml(InnerLoop(0.3, 3)).adapt(delta, tasks.loss(batch.support), 4)
    theta = residual.compose(own)
    assert all(theta[name] is base[name] for name in base if name not in delta)
    assert not torch.equal(tasks.logits(own, batch.query), tasks_over().logits(base, batch.query))


def test_another_alpha_is_seen() -> None:
    it = cell("sasrec", "maml", "bias", "clip", alpha=0.699)
    with pytest.raises(AssertionError):
        check_losses(replace(found("sasrec", "maml", "bias", "clip", 1), losses=it.engine()[0]))
