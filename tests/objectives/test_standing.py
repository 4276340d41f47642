"""Items that stand: the same in every call without a generator, those of the generator with one."""

from __future__ import annotations

import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, weights

from metarec.core.seeding import generator
from metarec.objectives.bce import BCE
from metarec.objectives.scores import Scores
from metarec.objectives.standing import Standing
from metarec.tasks import Tasks

LOGITS = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SCORES, TARGET = Scores.of_logits(LOGITS), torch.tensor([[1, 40, -1], [0, 7, 7]])


def test_without_a_generator_every_call_draws_the_same() -> None:
    objective = Standing(BCE(4), seed=1)
    once = objective(SCORES, TARGET)
    assert torch.equal(once, objective(SCORES, TARGET))
    assert torch.equal(once, Standing(BCE(4), seed=1)(SCORES, TARGET))
    assert not torch.equal(once, Standing(BCE(4), seed=2)(SCORES, TARGET))
    assert torch.equal(once[:1], objective(Scores.of_logits(LOGITS[:1]), TARGET[:1]))  # whatever else is in the batch


def test_a_generator_is_what_counts_where_there_is_one() -> None:
    given = Standing(BCE(4), seed=1)(SCORES, TARGET, generator(3, "x"))
    assert torch.equal(given, BCE(4)(SCORES, TARGET, generator(3, "x")))
    assert not torch.equal(given, Standing(BCE(4), seed=1)(SCORES, TARGET))


def test_a_loss_without_a_generator_can_be_adapted_by() -> None:
    pairs = small_log(7).episodes(4, 4).support
    loss = Tasks(MODEL, Standing(BCE(4), seed=1), lambda phi: phi).loss(pairs)
    assert torch.equal(loss(weights()), loss(weights()))
