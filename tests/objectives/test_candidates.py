"""How often an item is drawn: hand values, and counts of many draws within five standard deviations."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from metarec.objectives import candidates
from metarec.objectives.candidates import by_weight, log_uniform, uniform

DRAWS = 4000
ZIPF = [math.log(2) / math.log(4), math.log(3 / 2) / math.log(4), math.log(4 / 3) / math.log(4)]  # three items


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(count: float, n: int, p: float) -> bool:
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9


def zipf_draws(monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`log_uniform` over three items where these ranks are drawn: numbers in the middle of each rank's interval."""
    edges = [0.0, ZIPF[0], ZIPF[0] + ZIPF[1], 1.0]
    middles = torch.tensor([(edges[k] + edges[k + 1]) / 2 for k in ranks], dtype=torch.float64)
    monkeypatch.setattr(candidates, "_uniforms", lambda n, generator: middles)
    return log_uniform(3, len(ranks), seeded())


def test_log_uniform_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(ZIPF) == pytest.approx(1, abs=1e-15) and ZIPF[0] == 1 / 2
    for ranks in product(range(3), repeat=2):
        found, expected = zipf_draws(monkeypatch, ranks)
        assert found.tolist() == sorted(set(ranks))
        assert expected.tolist() == pytest.approx([1 - (1 - ZIPF[k]) ** 2 for k in found.tolist()], abs=1e-14)
        if 0 in ranks:
            assert expected[0].item() == pytest.approx(3 / 4, abs=1e-15)


def test_log_uniform_draws_what_it_says() -> None:
    counts, expected, generator = torch.zeros(50), torch.zeros(50, dtype=torch.float64), seeded()
    for _ in range(DRAWS):
        ranks, each = log_uniform(50, 10, generator)
        counts[ranks] += 1
        expected[ranks] = each
    assert (expected > 0).all()
    assert all(within(count, DRAWS, p) for count, p in zip(counts.tolist(), expected.tolist(), strict=True))


@pytest.mark.parametrize("n_draws", [50, 51])
def test_as_many_draws_as_items_are_all_items(n_draws: int) -> None:
    ranks, expected = log_uniform(50, n_draws, seeded())
    assert ranks.tolist() == list(range(50)) and (expected == 1).all()


def test_by_weight() -> None:
    """Weights 1, 0, 3: a quarter, never, three quarters; what comes up twice is counted."""
    items, often = by_weight(torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64), DRAWS, seeded())
    assert items.tolist() == [1, 3]
    assert int(often.sum()) == DRAWS
    assert within(float(often[0]), DRAWS, 1 / 4)


def test_uniform_gives_every_pair_as_many_negatives_as_asked_for_drawn_evenly() -> None:
    counts, generator, target = torch.zeros(2, 6), seeded(), [2, 5]
    for _ in range(DRAWS):
        items, spare = uniform(6, 3, generator)
        assert len(items) == 4 and int(spare.sum()) == 1 and (items.diff() > 0).all()
        for row, own in enumerate(target):
            hit = items == own
            negative = items[~(hit if hit.any() else spare)]
            assert len(negative) == 3
            counts[row, negative - 1] += 1
    for row, own in enumerate(target):
        for item in range(1, 7):
            assert within(counts[row, item - 1].item(), DRAWS, 0.0 if item == own else 3 / 5)
