"""BPR-max against its formula in plain Python; who is drawn; what is left out."""

from __future__ import annotations

import math

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, weights

from metarec.objectives import bpr_max
from metarec.objectives.bpr_max import BPRMax
from metarec.objectives.scores import Scores
from metarec.tasks import Tasks


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(scores: list[float], target: int, negatives: list[int], reg: float) -> float:
    """Items from 1, negatives with their repeats."""
    kept = [scores[j - 1] for j in negatives if j != target]
    if not kept:
        return 0.0
    total = sum(math.exp(s) for s in kept)
    gain = sum(math.exp(s) / total / (1 + math.exp(s - scores[target - 1])) for s in kept)
    return -math.log(gain) + reg * sum(math.exp(s) / total * s * s for s in kept)


NEGATIVES = [1, 2, 2, 5]
LOGITS = torch.randn(2, 3, 6, generator=seeded(), dtype=torch.float64)
TARGET = torch.tensor([[1, 2, 6], [5, -1, 0]])


def check_formula(monkeypatch: pytest.MonkeyPatch, reg: float) -> None:
    drawn = torch.unique(torch.tensor(NEGATIVES), return_counts=True)
    monkeypatch.setattr(bpr_max, "by_weight", lambda *args: drawn)
    got = BPRMax(torch.ones(6), 4, reg=reg)(Scores.of_logits(LOGITS), TARGET, seeded())
    wanted = [
        [plain(LOGITS[t, i].tolist(), int(TARGET[t, i]), NEGATIVES, reg) if TARGET[t, i] > 0 else 0.0 for i in range(3)]
        for t in range(2)
    ]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reg", [0.0, 0.7])
def test_the_formula(monkeypatch: pytest.MonkeyPatch, reg: float) -> None:
    check_formula(monkeypatch, reg)


@pytest.mark.parametrize("fault", ["hits stay", "repeats count once"])
def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "hits stay":
        monkeypatch.setattr(torch.Tensor, "masked_fill", lambda self, mask, value: self)
    else:
        monkeypatch.setattr(torch.Tensor, "log", lambda self: torch.zeros_like(self))
    with pytest.raises(AssertionError):
        check_formula(monkeypatch, 0.7)


def test_equal_scores_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores s: sigmoid(0) = 1/2 whatever the weights, so log 2 + reg s^2."""
    loss = BPRMax(torch.ones(6), 8, reg=0.5)(
        Scores.of_logits(torch.full((1, 1, 6), 3.0).double()), torch.tensor([[2]]), seeded()
    )
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * 9, abs=1e-12)


@pytest.mark.parametrize("only", [2, 3])
def test_a_pair_without_another_negative_costs_nothing(only: int) -> None:
    """Only one item is ever drawn; where it is the target there is nothing to compare with."""
    counts = torch.zeros(6)
    counts[only - 1] = 4
    logits = LOGITS.clone().requires_grad_()
    target = torch.tensor([[2, 3, -1], [2, 3, 0]])
    loss = BPRMax(counts, 5)(Scores.of_logits(logits), target, seeded())
    assert torch.equal(loss == 0, (target <= 0) | (target == only))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(grad).all() and not grad[target == only].any()


def test_alpha_bends_who_is_drawn() -> None:
    """Counts 1, 4, 16: weights 1, 2, 4 at 1/2; equal at 0; at 1 the counts. What never occurs is drawn at 0 alone."""
    counts = torch.tensor([1, 4, 16, 0])
    for alpha, wanted in ((0.5, [1, 3, 7, 7]), (0.0, [1, 2, 3, 4]), (1.0, [1, 5, 21, 21])):
        assert BPRMax(counts, alpha=alpha).summed.tolist() == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(ValueError, match=r"counts are all zero, so with alpha > 0 nothing can be drawn; give alpha=0"):
        _ = BPRMax(torch.zeros(3)).summed


def test_far_apart_scores_stay_finite_twice_differentiated() -> None:
    """The plain formula has log(0) here."""
    logits = torch.tensor([[[-500.0, 400.0]]], dtype=torch.float64).requires_grad_()
    loss = BPRMax(torch.ones(2), 20, reg=0.0)(Scores.of_logits(logits), torch.tensor([[1]]), seeded())
    assert loss.item() == pytest.approx(900, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (twice,) = torch.autograd.grad(grad.square().sum(), logits)
    assert torch.isfinite(grad).all() and torch.isfinite(twice).all()


def test_errors_say_what_to_do() -> None:
    pairs = small_log(7).episodes(4, 4).support
    with pytest.raises(ValueError, match="BPRMax draws items, but there is no generator"):
        Tasks(MODEL, BPRMax(torch.ones(11)), lambda phi: phi).loss(pairs)(weights())
    with pytest.raises(ValueError, match="counts of 3 items, the model has 11"):
        Tasks(MODEL, BPRMax(torch.ones(3)), lambda phi: phi).loss(pairs, seeded())(weights())
