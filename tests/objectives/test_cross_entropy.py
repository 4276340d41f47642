"""Cross-entropy against hand numbers: unknown targets, empty tasks, label smoothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from metarec.objectives import cross_entropy as module
from metarec.objectives.cross_entropy import CrossEntropy, _Each, cross_entropy
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

    class Halved:
        @staticmethod
        def apply(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, None]:
            each, _ = _Each.apply(logits, target)
            return each * torch.tensor([[1.0, 1.0], [0.5, 0.5]]), None

    monkeypatch.setattr(module, "_Each", Halved)
    with pytest.raises(AssertionError):
        check_hand_numbers()


def of_torch(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    found = F.cross_entropy(
        logits.flatten(0, 1), (target - 1).clamp(min=-1).flatten(), ignore_index=-1, reduction="none"
    )
    return found.view(target.shape)


@pytest.mark.parametrize("size", [1.0, 60.0, 900.0])
def test_values_and_both_orders_of_gradient_are_torchs(size: float) -> None:
    """Also where e^-score underflows and where one item has all of p."""
    generator = torch.Generator().manual_seed(3)
    logits = (size * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([[1, 7, -1], [3, 0, 2]])
    weights = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    probe = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    found = []
    for way in (lambda x, y: CrossEntropy()(Scores.of_logits(x), y), of_torch):
        each = way(logits, target)
        (slope,) = torch.autograd.grad((weights * each).sum(), logits, create_graph=True)
        (bend,) = torch.autograd.grad((slope * probe).sum(), logits)
        found.append((each, slope, bend))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_are_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.tensor([[2, -1, 4]])

    def each(x: torch.Tensor) -> torch.Tensor:
        return CrossEntropy()(Scores.of_logits(x), target)

    assert torch.autograd.gradcheck(each, logits)
    assert torch.autograd.gradgradcheck(each, logits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_not_hidden(bad: float) -> None:
    logits = LOGITS.clone()
    logits[0, 0, 2] = bad
    assert not torch.isfinite(CrossEntropy()(Scores.of_logits(logits), torch.tensor([[1, 3], [2, -1]]))[0, 0])


def test_of_scores_it_is_the_loss_of_every_pair() -> None:
    scores, target = Scores.of_logits(LOGITS), torch.tensor([[1, 3], [2, -1]])
    wanted = [[math.log(8 / 1), math.log(8 / 4)], [math.log(4 / 1), 0.0]]
    for each in (CrossEntropy()(scores, target), cross_entropy(scores, target)):
        torch.testing.assert_close(each, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(CrossEntropy(0.3)(scores, target), cross_entropy(scores, target, label_smoothing=0.3))
