"""Ranks: hand values, ties, unknown targets, a slow reference, and scores that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.errors import DivergedError
from metarec.metrics import ranks
from metarec.metrics.ranking import METRICS
from metarec.metrics.ranks import rank_of_target


def slow_rank(scores: list[float], target: int, ties: str) -> int:
    """Sort, then look where the target stands."""
    items = range(1, len(scores) + 1)
    if ties == "conservative":  # the target behind all that are as good
        order = sorted(items, key=lambda item: (-scores[item - 1], item == target))
    else:
        order = sorted(items, key=lambda item: (-scores[item - 1], item))
    return order.index(target) + 1


def test_hand_values() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5]])
    for target, conservative, first in ((1, 4, 4), (2, 1, 1), (3, 3, 2), (4, 3, 3)):
        wanted = torch.tensor([target])
        assert rank_of_target(scores, wanted).item() == conservative
        assert rank_of_target(scores, wanted, "first").item() == first


def test_a_constant_scorer_lands_at_the_last_rank() -> None:
    scores, target = torch.zeros(3, 2, 7), torch.arange(1, 7).reshape(3, 2)
    assert (rank_of_target(scores, target) == 7).all()
    assert torch.equal(rank_of_target(scores, target, "first"), target)


def test_unknown_targets_rank_behind_every_item() -> None:
    rank = rank_of_target(torch.rand(2, 5), torch.tensor([-1, 3]))
    assert rank[0].item() == 6
    assert 1 <= rank[1].item() <= 5
    assert rank.dtype == torch.int64


@pytest.mark.parametrize("ties", ["conservative", "first"])
def test_against_the_slow_reference(ties: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 4, (40, 3, 9), generator=generator).float()  # many ties
    target = torch.randint(1, 10, (40, 3), generator=generator)
    fast = rank_of_target(scores, target, ties)
    slow = [
        slow_rank(s, t, ties) for s, t in zip(scores.reshape(-1, 9).tolist(), target.reshape(-1).tolist(), strict=True)
    ]
    assert fast.reshape(-1).tolist() == slow


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    scores = torch.zeros(2, 3, 5)
    scores[1, 2, 3] = bad
    with pytest.raises(DivergedError, match=r"row 1, 2, item 4: (nan|inf|-inf): a score that is not finite"):
        rank_of_target(scores, torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("target", [0, 6, -2])
def test_targets_outside_the_catalogue_are_a_bug(target: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.5 or -1"):
        rank_of_target(torch.zeros(1, 5), torch.tensor([target]))


def check_chance_oracle_constant() -> None:
    """The law: random scores give chance within 3 sigma, an oracle 1.0, constant scores at most chance."""
    n, n_items = 20_000, 50
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(1, n_items + 1, (n,), generator=generator)
    random = ranks.rank_of_target(torch.rand(n, n_items, generator=generator), target).numpy()
    oracle = ranks.rank_of_target(torch.nn.functional.one_hot(target - 1, n_items).float(), target).numpy()
    constant = ranks.rank_of_target(torch.ones(n, n_items), target).numpy()
    every = np.arange(1, n_items + 1)
    for name, metric in METRICS.items():
        chance, sigma = metric(every, n_items).mean(), metric(every, n_items).std() / math.sqrt(n)
        assert abs(metric(random, n_items).mean() - chance) < 3 * sigma, name
        assert (metric(oracle, n_items) == 1.0).all(), name
        assert metric(constant, n_items).mean() <= chance, name


def test_random_oracle_and_constant_scorers() -> None:
    check_chance_oracle_constant()


def _optimistic(scores: Tensor, target: Tensor, ties: str = "conservative") -> Tensor:
    own = scores.gather(-1, (target - 1).unsqueeze(-1))
    return 1 + (scores > own).sum(-1)  # the usual fault: a constant scorer hits every time


def _zero_based(scores: Tensor, target: Tensor, ties: str = "conservative") -> Tensor:
    own = scores.gather(-1, target.clamp(max=scores.shape[-1] - 1).unsqueeze(-1))
    return (scores >= own).sum(-1)  # the target's column is off by one


@pytest.mark.parametrize("fault", [_optimistic, _zero_based])
def test_the_law_catches_a_planted_fault(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "rank_of_target", fault)
    with pytest.raises(AssertionError):
        check_chance_oracle_constant()
