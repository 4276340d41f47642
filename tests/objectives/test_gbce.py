"""gBCE: beta by hand, BCE at t = 0, and where scores settle."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from metarec.objectives import bce
from metarec.objectives.bce import BCE
from metarec.objectives.gbce import GBCE
from metarec.objectives.scores import Scores


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_beta_by_hand() -> None:
    """a = 2/8: beta = a (t (1 - 1/a) + 1/a)."""
    for t, wanted in ((0.0, 1), (1.0, 1 / 4), (0.5, 5 / 8), (0.75, 7 / 16)):
        assert GBCE(2, t).beta(9) == pytest.approx(wanted, abs=1e-15)
        assert GBCE(2, t).beta(9) == pytest.approx(2 / 8 * (t * (1 - 8 / 2) + 8 / 2), abs=1e-15)
    assert GBCE(100, 1.0).beta(9) == 1  # all negatives are seen: nothing to make good
    assert GBCE(1, 1.0).beta(1) == 1


def test_t_zero_is_bce_and_beta_weighs_the_target_alone() -> None:
    logits = torch.randn(2, 3, 30, generator=seeded(), dtype=torch.float64)
    target = torch.tensor([[1, 30, -1], [7, 7, 0]])
    plain = BCE(5)(Scores.of_logits(logits), target, seeded(2))
    assert torch.equal(GBCE(5, 0.0)(Scores.of_logits(logits), target, seeded(2)), plain)
    own = torch.nn.functional.logsigmoid(logits.gather(2, target.clamp(min=1)[..., None] - 1)[..., 0])
    wanted = plain + torch.where(target > 0, (1 - GBCE(5, 0.6).beta(30)) * own / 6, 0.0)
    torch.testing.assert_close(GBCE(5, 0.6)(Scores.of_logits(logits), target, seeded(2)), wanted, rtol=0, atol=1e-12)
    assert not plain[target <= 0].any()


P = [0.5, 0.3, 0.15, 0.05, 0.0]  # true probabilities of five items


def expected_slope(monkeypatch: pytest.MonkeyPatch, objective: GBCE, sigmoids: list[float]) -> torch.Tensor:
    """The gradient of the loss at these sigmoids of the scores, its mean over targets and all draws of one negative."""
    logits = torch.tensor(sigmoids, dtype=torch.float64).logit().expand(1, 5, 5).clone().requires_grad_()
    p, total = torch.tensor(P, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for drawn, spare in permutations(range(1, 6), 2):
        items = torch.tensor(sorted((drawn, spare)))
        monkeypatch.setattr(bce, "uniform", lambda *args, found=(items, items == spare): found)
        loss = objective(Scores.of_logits(logits), torch.tensor([[1, 2, 3, 4, 5]]), seeded())[0]
        total += torch.autograd.grad((p * loss).sum(), logits)[0][0].sum(0) / 20
    return total


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_where_scores_settle(monkeypatch: pytest.MonkeyPatch, t: float) -> None:
    """At sigmoid = beta p / (beta p + a (1 - p)) the expected gradient is zero; with t = 1 that is p itself."""
    objective, a = GBCE(1, t), 1 / 4
    beta = objective.beta(5)
    settled = [beta * p / (beta * p + a * (1 - p)) for p in P[:4]]
    if t == 1:
        assert settled == pytest.approx(P[:4], abs=1e-12)
    there = expected_slope(monkeypatch, objective, [*settled, 1e-6])
    assert there[:4].tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    elsewhere = expected_slope(monkeypatch, objective, [*[(1 + s) / 2 for s in settled], 1e-6])
    assert (elsewhere[:4] > 1e-3).all()
