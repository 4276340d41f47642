"""Cross-entropy against hand numbers: unknown targets, empty tasks, label smoothing."""

from __future__ import annotations

import math

import pytest
import torch

from metarec.objectives import cross_entropy as module
from metarec.objectives.cross_entropy import CrossEntropy, cross_entropy
from metarec.objectives.scores import Scores

# softmax of (log 1, log 2, log 5) = 1/8, 2/8, 5/8
LOGITS = torch.tensor(
    [[[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]], [[1.0, 1.0, 2.0], [1.0, 1.0, 6.0]]], dtype=torch.float64
).log()


def check_hand_numbers() -> None:
    loss = cross_entropy(LOGITS, torch.tensor([[1, 3], [2, -1]]))
    wanted = [(math.log(8 / 1) + math.log(8 / 4)) / 2, math.log(4 / 1)]  # the unknown target does not count
    assert loss.tolist() == pytest.approx(wanted, abs=1e-12)


def test_hand_numbers() -> None:
    check_hand_numbers()


def test_unknown_and_absent_targets_are_alike_and_an_empty_task_costs_nothing() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = cross_entropy(logits, torch.tensor([[-1, 3], [0, -1]]))
    assert loss.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-12)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert not grad[1].any()
    assert not grad[0, 0].any()
    assert torch.isfinite(grad).all()


def test_the_gradient_is_softmax_minus_one_hot_over_the_pairs_that_count() -> None:
    logits = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([[1, 3], [2, 1]])).sum(), logits)
    assert grad[0, 0].tolist() == pytest.approx([(1 / 8 - 1) / 2, 2 / 8 / 2, 5 / 8 / 2], abs=1e-12)


def test_label_smoothing() -> None:
    """(1 - s) * -log p[target] + s * mean of -log p."""
    loss = cross_entropy(LOGITS, torch.tensor([[1, -1], [0, 0]]), label_smoothing=0.3)
    p = [math.log(8 / 1), math.log(8 / 2), math.log(8 / 5)]
    assert loss.tolist() == pytest.approx([0.7 * p[0] + 0.3 * sum(p) / 3, 0.0], abs=1e-12)


def test_a_mean_over_all_pairs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: unknown targets divided by as well."""

    class Functions:
        @staticmethod
        def cross_entropy(*args: object, **options: object) -> torch.Tensor:
            found = torch.nn.functional.cross_entropy(*args, **options)  # type: ignore[arg-type]
            return found * torch.tensor([1.0, 1.0, 0.5, 0.5])

    monkeypatch.setattr(module, "F", Functions)
    with pytest.raises(AssertionError):
        check_hand_numbers()


def test_of_scores_it_is_the_loss_of_every_pair() -> None:
    scores, target = Scores.of_logits(LOGITS), torch.tensor([[1, 3], [2, -1]])
    wanted = [[math.log(8 / 1), math.log(8 / 4)], [math.log(4 / 1), 0.0]]
    for each in (CrossEntropy()(scores, target), cross_entropy(scores, target)):
        torch.testing.assert_close(each, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(CrossEntropy(0.3)(scores, target), cross_entropy(scores, target, label_smoothing=0.3))
