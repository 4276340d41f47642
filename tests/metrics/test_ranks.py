"""Ranks and best items: hand values, ties, unknown targets, a slow reference, and scores that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.errors import DivergedError
from metarec.metrics import METRICS, ranks
from metarec.metrics.ranks import rank_and_top, rank_of_target, rows_at_once


def slow_rank(scores: list[float], target: int, ties: str) -> int:
    """Sort, then look where the target stands."""
    items = range(1, len(scores) + 1)
    if ties == "conservative":  # the target behind all that are as good
        order = sorted(items, key=lambda item: (-scores[item - 1], item == target))
    else:
        order = sorted(items, key=lambda item: (-scores[item - 1], item if ties == "first" else -item))
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


@pytest.mark.parametrize("ties", ["conservative", "first", "last"])
def test_against_the_slow_reference(ties: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 4, (40, 3, 9), generator=generator).float()  # many ties
    target = torch.randint(1, 10, (40, 3), generator=generator)
    fast = rank_of_target(scores, target, ties)
    slow = [
        slow_rank(s, t, ties) for s, t in zip(scores.reshape(-1, 9).tolist(), target.reshape(-1).tolist(), strict=True)
    ]
    assert fast.reshape(-1).tolist() == slow


def slow_top(scores: list[float], k: int) -> list[int]:
    return sorted(range(1, len(scores) + 1), key=lambda item: (-scores[item - 1], item))[:k]


def check_rank_and_top(values: int, ties: str, k: int, n_items: int) -> None:
    """`values` different scores: few are many ties; one target in five is unknown."""
    generator = torch.Generator().manual_seed(values + n_items)
    scores = torch.randint(-values, values, (12, 3, n_items), generator=generator).double()
    target = torch.randint(1, n_items + 1, (12, 3), generator=generator)
    target[torch.rand(12, 3, generator=generator) < 0.2] = -1
    rank, top = rank_and_top(scores, target, ties, k)
    assert rank.dtype == top.dtype == torch.int64
    assert top.shape == (12, 3, min(k, n_items))
    lines = scores.reshape(-1, n_items).tolist()
    wanted = [
        slow_rank(s, t, ties) if t > 0 else n_items + 1 for s, t in zip(lines, target.reshape(-1).tolist(), strict=True)
    ]
    assert rank.reshape(-1).tolist() == wanted
    assert top.reshape(36, -1).tolist() == [slow_top(line, k) for line in lines]


@pytest.mark.parametrize("ties", ["conservative", "first", "last"])
@pytest.mark.parametrize(("n_items", "k"), [(1, 10), (9, 10), (9, 9), (70, 3), (300, 1), (700, 2), (3001, 10)])
@pytest.mark.parametrize("values", [1, 3, 40, 10**6])
def test_ranks_and_best_items_against_the_slow_reference(values: int, ties: str, n_items: int, k: int) -> None:
    """Catalogues searched whole and by groups, with items beyond the last group."""
    check_rank_and_top(values, ties, k, n_items)


@pytest.mark.parametrize("name", ["_first_of_equals", "_largest"])
def test_a_planted_fault_in_the_search_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_of_equals(scores: Tensor, last: Tensor, k: int) -> Tensor:
        return (scores.shape[-1] - 1 - true["_first_of_equals"](scores.flip(-1), last, k)).sort(-1).values

    def one_group_too_few(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        n_groups = scores.shape[-1] // 64
        rows = scores[:, : n_groups * 64].unflatten(-1, (64, n_groups))  # and the items beyond the groups are left out
        return true["_largest"](rows.flatten(1), k)

    true = {fault: getattr(ranks, fault) for fault in ("_first_of_equals", "_largest")}
    check_rank_and_top(3 if name == "_first_of_equals" else 10**6, "first", 10, 3001)
    monkeypatch.setattr(ranks, name, last_of_equals if name == "_first_of_equals" else one_group_too_few)
    with pytest.raises(AssertionError):
        check_rank_and_top(3 if name == "_first_of_equals" else 10**6, "first", 10, 3001)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, target = torch.rand(7, 5, 50, generator=generator), torch.randint(1, 51, (7, 5), generator=generator)
    whole = rank_and_top(scores, target)
    monkeypatch.setattr(ranks, "PIECE", 120)  # two rows
    for a, b in zip(rank_and_top(scores, target), whole, strict=True):
        assert torch.equal(a, b)
    expanded = torch.rand(50, generator=generator).expand(7, 5, 50)  # one list for everybody, as popularity has
    assert (rank_and_top(expanded, target)[1] == slow_top(expanded[0, 0].tolist(), 10)[0]).any()
    assert torch.equal(rank_of_target(expanded, target), rank_of_target(expanded.contiguous(), target))
    assert rows_at_once(50_000) == 83
    assert rows_at_once(10**9) == 1


def test_scores_whose_sum_alone_overflows_are_ranked() -> None:
    scores = torch.full((2, 4), 3e38)
    scores[:, 1] = 3.1e38
    rank, top = rank_and_top(scores, torch.tensor([2, 1]), k=2)
    assert rank.tolist() == [1, 4]
    assert top.tolist() == [[2, 1], [2, 1]]
    with pytest.raises(ValueError, match="one item at least"):
        rank_and_top(scores, torch.tensor([2, 1]), k=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    scores = torch.zeros(2, 3, 5)
    scores[1, 2, 3] = bad
    with pytest.raises(DivergedError, match=r"row 1, 2, item 4: (nan|inf|-inf): a score that is not finite"):
        rank_of_target(scores, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(DivergedError, match="row 1, 2, item 4"):
        rank_and_top(scores, torch.ones(2, 3, dtype=torch.int64))


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
