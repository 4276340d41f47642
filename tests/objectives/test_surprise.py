"""Surprise against a plain second version, one pair at a time in float64, and against central differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.surprise_reference import (
    BOTH,
    LOG,
    MODELS,
    QUERY,
    SUPPORT,
    N,
    T,
    V,
    aims,
    check_slope,
    engine,
    gradients,
    lambdas,
    leaves,
    slow,
    weights,
)  # fmt: skip
from torch import Tensor

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.algorithms.reptile import Reptile
from metarec.core.batch import ImageBatch
from metarec.core.weights import Params
from metarec.models.conv4 import Conv4
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import cross_entropy
from metarec.objectives.surprise import Surprise
from metarec.options import SurpriseTerm
from metarec.tasks import Tasks

TERMS = [
    {}, {"target": "grad"}, {"target": "zero"}, {"scale": "raw"}, {"scale": "normalised"}, {"clip": 0.3}, {"clip": 0.0},
    {"second_order": True}, {"second_order": True, "clip": 0.3}, {"second_order": True, "scale": "normalised"},
    {"second_order": True, "scale": "raw", "target": "grad"},
]  # fmt: skip


@pytest.mark.parametrize("options", TERMS, ids=str)
@pytest.mark.parametrize("name", ["gru4rec", "nested", "lstm"])
def test_losses_and_gradients_are_those_of_one_pair_at_a_time(name: str, options: dict[str, Any]) -> None:
    """Of single pairs, so the tasks of a batch and the pairs of a session do not see one another."""
    term, params = Surprise(lambdas(name), **options), leaves(weights(name))
    got, wanted = engine(name, term)(params), torch.stack([slow(name, params, term, t) for t in range(T)])
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    mixed = torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)
    found = [torch.autograd.grad((losses * mixed).sum(), list(params.values())) for losses in (got, wanted)]
    for n, mine, theirs in zip(params, *found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11, msg=lambda text, n=n: f"{n}: {text}")


@pytest.mark.parametrize("name", ["gru4rec", "nested"])
def test_first_order_is_the_slope_with_the_aim_held_still(name: str) -> None:
    term, params = Surprise(lambdas(name)), weights(name)
    held = [aims(name, params, term, t) for t in range(T)]

    def still(at: Params) -> Tensor:
        return torch.stack([slow(name, at, term, t, held[t]) for t in range(T)])

    grads = gradients(engine(name, term), params)
    check_slope(still, grads, params)
    with pytest.raises(AssertionError):  # and not of the loss whose aim moves
        check_slope(engine(name, term), grads, params)


@pytest.mark.parametrize("options", [{}, {"clip": 0.2}, {"scale": "normalised"}, {"scale": "raw"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_second_order_is_the_slope_of_the_loss(name: str, options: dict[str, Any]) -> None:
    value, params = engine(name, Surprise(lambdas(name), second_order=True, **options)), weights(name)
    check_slope(value, gradients(value, params), params)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_target_of_zero_is_a_decay_of_states(name: str, second_order: bool) -> None:
    """lambda mean |y|^2 by hand on what `encode` gives, of the last level."""
    level = "slow" if name in ("nested", "lstm") else "fast"
    term, params = Surprise({level: 0.3}, target="zero", second_order=second_order), weights(name)

    def by_hand(at: Params) -> Tensor:
        y = QUERY.gather(MODELS[name].encode(at, QUERY.sequences))
        known = QUERY.target > 0
        decay = torch.stack([0.3 * y[t][known[t]].square().sum() / known[t].sum() for t in range(T)])
        return engine(name, None)(at) + decay

    torch.testing.assert_close(engine(name, term)(params), by_hand(params), rtol=1e-13, atol=1e-13)
    mine, theirs = gradients(engine(name, term), params), gradients(by_hand, params)
    for n in params:
        torch.testing.assert_close(mine[n], theirs[n], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", ["per_token", "raw", "normalised"])
def test_the_scale_of_a_token_does_not_depend_on_the_batch(scale: str) -> None:
    """The pairs of all tasks as those of one: the same pairs cost the same on average, but for the raw scale."""
    pairs = np.arange(T * 2 * N).reshape(T, 2 * N)[:, N:]
    apart, together = LOG.batcher.pairs(pairs), LOG.batcher.pairs(pairs.reshape(1, -1))
    term, params = Surprise({"fast": 0.3}, scale=scale), weights("gru4rec")
    each, whole = (engine("gru4rec", term, batch)(params).detach() for batch in (apart, together))
    counts = (apart.target > 0).sum(1)
    assert bool(torch.isclose(whole[0], (each * counts).sum() / counts.sum(), rtol=1e-12)) == (scale != "raw")


def test_a_raw_target_of_many_pairs_is_a_decay() -> None:
    """Why there is a scale: the direction of the term's gradient by y, against that of |y|^2, nears one as N grows."""

    def cosine(n: int, scale: str) -> float:
        y = torch.randn(1, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        w = torch.randn(V, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        target = torch.ones(1, n, dtype=torch.int64)
        loss = cross_entropy(y @ w.T, target)
        each = Surprise({"fast": 1.0}, scale=scale)(loss, {"fast": y}, lambda states: states, target)
        (g,) = torch.autograd.grad(each.sum(), y)
        return float(F.cosine_similarity(g.flatten(), y.detach().flatten(), dim=0))

    assert cosine(4000, "raw") > 0.999999 > 0.99 > cosine(4000, "per_token")
    assert cosine(4000, "per_token") == pytest.approx(cosine(8000, "per_token"), abs=0.02)


# -- by hand --------------------------------------------------------------------------------------------------------


def of_one(options: dict[str, Any], g: list[float], y: list[float], n: int = 2) -> float:
    """The term of a pair of n whose mean loss has the gradient g by y."""
    states = torch.tensor([[y] * n], dtype=torch.float64).requires_grad_()
    loss = (states * torch.tensor(g, dtype=torch.float64)).sum((1, 2))
    term = Surprise({"fast": 0.5}, **options)
    return float(term(loss, {"fast": states}, lambda s: s, torch.ones(1, n, dtype=torch.int64))[0, 0].detach())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 0.5 * (7**2 + 10**2)),  # u = -2 (3, 4): y - u = (1 + 6, 2 + 8)
        ({"target": "grad"}, 0.5 * (5**2 + 6**2)),
        ({"target": "zero"}, 0.5 * 5),
        ({"scale": "raw"}, 0.5 * (4**2 + 6**2)),
        ({"scale": "normalised"}, 0.5 * (1.6**2 + 2.8**2)),
        ({"clip": 5.0}, 0.5 * (4**2 + 6**2)),  # of length 10, cut to 5
        ({"clip": 0.0}, 0.5 * (7**2 + 10**2)),
    ],
    ids=str,
)
def test_a_pair_by_hand(options: dict[str, Any], wanted: float) -> None:
    assert of_one(options, [3.0, 4.0], [1.0, 2.0]) == pytest.approx(wanted, rel=1e-14)


def test_without_a_gradient_there_is_no_direction() -> None:
    assert of_one({"scale": "normalised"}, [0.0, 0.0], [1.0, 2.0]) == pytest.approx(2.5)


def test_pairs_that_do_not_count_cost_nothing() -> None:
    target = torch.tensor([[1, -1, 0]])
    states = torch.ones(1, 3, 2, dtype=torch.float64, requires_grad=True)
    each = Surprise({"fast": 0.5})(states.sum((1, 2)) * 0, {"fast": states}, lambda s: s, target)
    assert each.tolist() == [[1.0, 0.0, 0.0]]


# -- where it acts --------------------------------------------------------------------------------------------------


def test_when_a_step_pays_it() -> None:
    asked = SurpriseTerm(fast=0.05, medium=0.01, every=3, where="outer", clip=2.0)
    assert Surprise.at(SurpriseTerm(), "outer", 0) is None
    assert Surprise.at(asked, "pretrain", 0) is None
    assert [Surprise.at(asked, "outer", step) is not None for step in range(5)] == [True, False, False, True, False]
    assert Surprise.at(asked, "outer", 3) == Surprise({"fast": 0.05, "medium": 0.01}, clip=2.0)


def test_without_it_the_loss_is_the_same_function() -> None:
    params = weights("nested")
    loss = engine("nested", Surprise.at(SurpriseTerm(), "outer", 0))
    assert torch.equal(loss(params), engine("nested", None)(params))


@pytest.mark.parametrize("name", MODELS)
def test_watching_changes_no_state(name: str) -> None:
    """A weight of almost nothing: losses differ by as much."""
    params = weights(name)
    level = lambdas(name)
    near = engine(name, Surprise(dict.fromkeys(level, 1e-300)))(params)
    torch.testing.assert_close(near, engine(name, None)(params), rtol=1e-15, atol=0)


def test_where_no_gradient_is_wanted_the_value_is_the_same() -> None:
    term, params = Surprise(BOTH), weights("nested")
    with torch.no_grad():
        quiet = engine("nested", term)(params)
    assert not quiet.requires_grad
    assert torch.equal(quiet, engine("nested", term)(params).detach())


def test_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no level medium, it has fast"):
        engine("gru4rec", Surprise({"medium": 0.1}))(weights("gru4rec"))


def test_with_chunks_of_the_catalogue_it_is_the_same() -> None:
    term, params = Surprise({"fast": 0.3}), leaves(weights("gru4rec"))
    chunked = Tasks(MODELS["gru4rec"], ChunkedCrossEntropy(4), lambda phi: phi).loss(QUERY, surprise=term)
    found = [(loss(params), torch.autograd.grad(loss(params).sum(), list(params.values())))
             for loss in (chunked, engine("gru4rec", term))]  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


def test_weights_of_pairs_weigh_the_term() -> None:
    """A pair that counts nothing is as good as absent, but for its share in N."""
    term, params = Surprise({"fast": 0.3}, target="zero"), weights("gru4rec")
    w = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
    cut = replace(QUERY, target=QUERY.target.clone())
    cut.target[:, -1] = 0
    torch.testing.assert_close(engine("gru4rec", term, weights=w)(params), engine("gru4rec", term, cut)(params))


# -- through algorithms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["maml", "anil"])
def test_the_meta_gradient_is_the_slope_of_the_meta_loss(kind: str, name: str) -> None:
    """Second order in both: the inner steps, and the term of the query loss."""
    model, params = MODELS[name], weights(name)
    loop = InnerLoop(0.1, 2, adapted=frozenset(model.head) & set(model.shapes()) if kind == "anil" else None)
    algorithm = MAML(loop, order="second")
    support, query = engine(name, None, SUPPORT), engine(name, Surprise(lambdas(name), second_order=True))

    def value(phi: Params) -> Tensor:
        return algorithm.meta_losses(phi, support, query, T, 0)

    check_slope(value, gradients(value, params), params, 1e-6)


def test_reptile_moves_towards_weights_trained_with_it() -> None:
    """One inner step: its direction is the step size times the gradient of the joint loss."""
    params, term = weights("gru4rec"), Surprise({"fast": 0.3})
    losses = [engine("gru4rec", term, batch) for batch in (SUPPORT, QUERY)]
    made = Reptile(InnerLoop(0.1, 1), support_share=0.5)
    got = gradients(lambda phi: made.meta_losses(phi, *losses, T, 0).sum() / T, params)
    joint = gradients(lambda phi: (0.5 * losses[0](phi) + 0.5 * losses[1](phi)).sum() / T, params)
    for n in params:
        torch.testing.assert_close(got[n], 0.1 * joint[n], rtol=1e-9, atol=1e-12)


def test_frozen_weights_below_a_level_are_no_error() -> None:
    """A head alone is trained: the term is a number, and its second order reaches the head."""
    params = weights("nested")
    head = leaves({n: params[n] for n in ("fc.weight", "fc.bias")})
    plain, first, second = (
        torch.autograd.grad(engine("nested", term)(params | head).sum(), list(head.values()))
        for term in (None, Surprise(BOTH), Surprise(BOTH, second_order=True))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, first, strict=True))
    assert not torch.equal(plain[0], second[0])


@pytest.mark.parametrize("second_order", [False, True])
def test_images_have_one_level(second_order: bool) -> None:
    """Their features, each image a pair; the second order is the slope."""
    draw = torch.Generator().manual_seed(1)
    model = Conv4(3, filters=3, image_size=16)
    params = {n: v + 0.3 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in
              model.init(draw, torch.float64).items()}  # fmt: skip
    images = torch.randn(2, 6, 1, 16, 16, generator=draw, dtype=torch.float64)
    batch = ImageBatch(images, torch.randint(1, 4, (2, 6), generator=draw))
    tasks = Tasks(model, cross_entropy, lambda phi: phi)
    value = tasks.loss(batch, surprise=Surprise({"fast": 0.1}, second_order=second_order))
    y = model.encode(params, images)
    logits = model.score(params, y).detach()
    off = (logits.softmax(-1) - F.one_hot(batch.target - 1, 3)) @ params["fc.weight"]  # dL/dy of an image's own loss
    wanted = tasks.loss(batch)(params) + 0.1 * (y + off).square().sum((1, 2)) / 6
    torch.testing.assert_close(value(params).detach(), wanted, rtol=1e-12, atol=1e-12)
    if second_order:
        check_slope(value, gradients(value, params), params, 1e-6)


# -- planted --------------------------------------------------------------------------------------------------------


def _moving(true: Any) -> Any:
    """The gradient inside the loss stays in the graph, though it is asked to be a constant."""
    return lambda *a, **k: true(*a, **(k | ({"create_graph": True} if "materialize_grads" in k else {})))


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the aim moves": lambda patch: patch.setattr(torch.autograd, "grad", _moving(torch.autograd.grad)),
    "the aim is uphill": lambda patch: _changed(patch, lambda true: lambda self, g, n: -true(self, g, n)),
    "the aim is of the mean": lambda patch: _changed(patch, lambda true: lambda self, g, n: true(self, g, n / n)),
    "pairs see their neighbours": lambda patch: _changed(
        patch, lambda true: lambda self, g, n: true(self, g.roll(1, 1), n)
    ),
    "tasks see one another": lambda patch: _changed(patch, lambda true: lambda self, g, n: true(self, g.roll(1, 0), n)),
}


def _changed(patch: pytest.MonkeyPatch, how: Callable[[Any], Any]) -> None:
    patch.setattr(Surprise, "_aim", how(Surprise._aim))


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "nested" if fault == "the aim moves" else "gru4rec"
    term, params = Surprise(lambdas(name)), weights(name)
    held = [aims(name, params, term, t) for t in range(T)]
    PLANTED[fault](monkeypatch)

    def still(at: Params) -> Tensor:
        return torch.stack([slow(name, at, term, t, held[t]) for t in range(T)])

    with pytest.raises(AssertionError):
        check_slope(still, gradients(engine(name, term), params), params)
