"""Binary cross-entropy by hand, over all items, and over drawn ones."""

from __future__ import annotations

import math

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, weights
from torch import Tensor

from metarec.objectives import bce
from metarec.objectives.bce import BCE
from metarec.objectives.scores import Scores
from metarec.tasks import Tasks

# sigmoid of log 1, log 2, log 3, log 4 = 1/2, 2/3, 3/4, 4/5
LOGITS = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64).log()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 1, 2, 4 drawn, 4 the spare: the pair of target 2 has negatives 1 and 4, that of target 3 has 1 and 2."""
    drawn = torch.tensor([1, 2, 4]), torch.tensor([False, False, True])
    monkeypatch.setattr(bce, "uniform", lambda *args: drawn)
    loss = BCE(2)(Scores.of_logits(LOGITS), torch.tensor([[2, 3]]), seeded())
    wanted = [-(math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 5)) / 3,
              -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 3)) / 3]  # fmt: skip
    assert loss.tolist()[0] == pytest.approx(wanted, abs=1e-12)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    check_by_hand(monkeypatch)


def test_a_negative_that_is_the_target_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "masked_fill", lambda self, mask, value: self)
    with pytest.raises(AssertionError):
        check_by_hand(monkeypatch)


@pytest.mark.parametrize("n", [3, 4, 100])
def test_from_all_other_items_on_nothing_is_left_to_chance(n: int) -> None:
    for seed in range(5):
        loss = BCE(n)(Scores.of_logits(LOGITS), torch.tensor([[1, -1]]), seeded(seed))
        wanted = -(math.log(1 / 2) + math.log(1 / 3) + math.log(1 / 4) + math.log(1 / 5)) / 4
        assert loss.tolist()[0] == pytest.approx([wanted, 0.0], abs=1e-12)


def test_the_gradient_reaches_the_target_and_the_drawn_alone() -> None:
    logits = torch.randn(1, 3, 50, generator=seeded(), dtype=torch.float64).requires_grad_()
    target = torch.tensor([[1, 7, 0]])
    (grad,) = torch.autograd.grad(BCE(5)(Scores.of_logits(logits), target, seeded()).sum(), logits)
    assert (grad[0] != 0).sum(-1).tolist() == [6, 6, 0]
    for pair, own in ((0, 1), (1, 7)):
        assert grad[0, pair, own - 1] < 0
        assert (grad[0, pair] > 0).sum() == 5


def test_no_generator() -> None:
    with pytest.raises(ValueError, match="BCE draws items, but there is no generator"):
        Tasks(MODEL, BCE(), lambda phi: phi).loss(small_log(7).episodes(4, 4).support)(weights())
