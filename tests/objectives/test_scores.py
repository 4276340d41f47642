"""Scores of all items, of some, of one a pair: the same numbers, also where units are dropped."""

from __future__ import annotations

import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, weights

from metarec.core.weights import Factored, FastWeight, Params, Tap, Weights
from metarec.objectives.scores import Scores

SOME = torch.tensor([2, 3, 9])
EACH = torch.arange(32).view(4, 8) % 11 + 1


def check_columns(scores: Scores) -> None:
    logits = scores.all()
    assert logits.shape == (4, 8, scores.n_items)
    torch.testing.assert_close(scores.of(SOME), logits[..., SOME - 1])
    torch.testing.assert_close(scores.at(EACH), logits.gather(2, EACH[..., None] - 1)[..., 0])
    torch.testing.assert_close(scores.all(), logits, rtol=0, atol=0)


def of_model(params: Params, generator: torch.Generator | None = None) -> Scores:
    pairs = small_log(5).episodes(8, 0).support
    return Scores.of_model(MODEL, params, pairs.gather(MODEL.encode(params, pairs.inputs)), generator)


def test_columns() -> None:
    check_columns(of_model(weights()))
    check_columns(Scores.of_logits(of_model(weights()).all()))


def test_whatever_is_asked_for_sees_the_same_units_dropped_and_the_generator_stays() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    scores = of_model(weights(), generator)
    check_columns(scores)
    assert not torch.equal(scores.all(), of_model(weights()).all())
    assert torch.equal(generator.get_state(), before)


def test_tapped() -> None:
    params = weights()
    states = torch.zeros(4, 8, 4, dtype=torch.float64)
    dressed: Weights = {name: FastWeight(value) for name, value in params.items()}
    tapped: Weights = {**dressed, "fc.bias": FastWeight(params["fc.bias"], None, Tap())}
    a, b = FastWeight(torch.zeros(1, 4).double()), FastWeight(torch.zeros(11, 1).double(), None, Tap())
    factored: Weights = {**dressed, "fc.weight": Factored(params["fc.weight"], a, b, 1.0)}
    of = [Scores.of_model(MODEL, theta, states).tapped for theta in (params, dressed, tapped, factored)]
    assert of == [False, False, True, True]
