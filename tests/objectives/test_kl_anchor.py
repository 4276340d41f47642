"""The KL anchor: hand numbers, torch's own divergence, padding, and its meta-gradient against slow copies and differences.

The cells are those of the exactness matrix (`reference.matrix_cells`), with an anchor in the support loss, the query loss or
both; the reference takes one task at a time, weights composed by hand, and F.kl_div with a sum and a count written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.matrix_cells import Cell, cell, check_gradients, check_losses, episodes
from reference.matrix_cells import Found as Both
from reference.matrix_models import MODELS
from reference.meta_reference import Loss, Params
from reference.slopes import jointly, slope_error
from torch import Tensor

from metarec.algorithms import inner
from metarec.core.batch import PairBatch
from metarec.core.weights import Weights
from metarec.objectives import kl_anchor
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.kl_anchor import DIRECTIONS, Anchor
from metarec.objectives.scores import Scores
from metarec.options import KLAnchor
from metarec.tasks import Tasks

# softmax of their logarithms: p = 1/8, 2/8, 5/8; q = 1/4, 1/4, 1/2
P = torch.tensor([[[1.0, 2.0, 5.0]]], dtype=torch.float64).log()
Q = torch.tensor([[[1.0, 1.0, 2.0]]], dtype=torch.float64).log()
ONE = torch.tensor([[2]])


def anchored(reference: Tensor, scores: Tensor, target: Tensor, **options: Any) -> Tensor:
    return Anchor.at(reference, **{"weight": 1.0, **options})(Scores.of_logits(scores), target)


def log(n: int, d: int) -> float:
    return math.log(n) - math.log(d)


def check_hand_numbers() -> None:
    base_adapted = 1 / 8 * log(1, 2) + 2 / 8 * log(1, 1) + 5 / 8 * log(5, 4)
    adapted_base = 1 / 4 * log(2, 1) + 1 / 4 * log(1, 1) + 1 / 2 * log(4, 5)
    assert anchored(P, Q, ONE).item() == pytest.approx(base_adapted, abs=1e-14)
    assert anchored(P, Q, ONE, direction="adapted_base").item() == pytest.approx(adapted_base, abs=1e-14)
    assert anchored(P, Q, ONE, weight=0.3).item() == pytest.approx(0.3 * base_adapted, abs=1e-14)
    # at temperature 1/2 the softmaxes are those of squares: 1/30, 4/30, 25/30 and 1/6, 1/6, 4/6; times 1/4
    sharp = 1 / 30 * log(1, 5) + 4 / 30 * log(4, 5) + 25 / 30 * log(5, 4)
    assert anchored(P, Q, ONE, temperature=0.5).item() == pytest.approx(sharp / 4, abs=1e-14)
    blunt = 1 / 6 * log(5, 1) + 1 / 6 * log(5, 4) + 4 / 6 * log(4, 5)
    got = anchored(P, Q, ONE, temperature=0.5, direction="adapted_base")
    assert got.item() == pytest.approx(blunt / 4, abs=1e-14)


def test_hand_numbers() -> None:
    check_hand_numbers()


def test_the_choices_are_those_of_the_options() -> None:
    allowed = {field.name: field.metadata.get("choices") for field in fields(KLAnchor)}
    assert allowed["direction"] == DIRECTIONS


@pytest.mark.parametrize("fault", ["other direction", "no square of the temperature"])
def test_a_fault_in_the_formula_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = kl_anchor.Anchor.at

    def faulty(reference: Tensor, weight: float, direction: str = "base_adapted", temperature: float = 1.0) -> Anchor:
        if fault == "other direction":
            direction = next(other for other in DIRECTIONS if other != direction)
        else:
            weight = weight / temperature**2
        return true(reference, weight, direction, temperature)

    monkeypatch.setattr(kl_anchor.Anchor, "at", staticmethod(faulty))
    with pytest.raises(AssertionError):
        check_hand_numbers()


# -- against torch's own --------------------------------------------------------------------------------------------


def torchs(reference: Tensor, scores: Tensor, direction: str, temperature: float) -> Tensor:
    """[V] each -> a number."""
    log_p, log_q = (F.log_softmax(x / temperature, -1) for x in (reference, scores))
    if direction == "adapted_base":
        log_p, log_q = log_q, log_p
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_value_and_two_derivatives_are_those_of_torch(direction: str, temperature: float) -> None:
    reference, x = drawn(2, 3, 7), drawn(2, 3, 7, seed=2).requires_grad_()
    target = torch.tensor([[1, 2, 3], [7, -1, 0]])
    got = anchored(reference, x, target, weight=0.4, direction=direction, temperature=temperature)
    pairs = [(t, n) for t in range(2) for n in range(3) if target[t, n] > 0]
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for t, n in pairs:
        wanted[t, n] = 0.4 * torchs(reference[t, n], x[t, n], direction, temperature)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    found = []
    for each in (got, wanted):
        (slope,) = torch.autograd.grad((each * drawn(2, 3, seed=3)).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad((slope * drawn(2, 3, 7, seed=4)).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad((bend * drawn(2, 3, 7, seed=5)).sum(), x)
        found.append((slope, bend, third))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert float(other.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_gradient_reaches_the_reference(direction: str) -> None:
    reference, x = drawn(1, 2, 5).requires_grad_(), drawn(1, 2, 5, seed=2).requires_grad_()
    each = anchored(reference, x, torch.tensor([[1, 2]]), direction=direction)
    assert torch.autograd.grad(each.sum(), [reference, x], allow_unused=True)[0] is None
    assert not Anchor.at(reference, 1.0, direction).log_p.requires_grad


# -- as part of a task's loss ---------------------------------------------------------------------------------------


def nothing(scores: Scores, target: Tensor, generator: torch.Generator | None) -> Tensor:
    """An objective that costs nothing, so that the anchor stands alone."""
    return scores.at(target.clamp(min=1)) * 0


def base_of(it: Cell) -> Params:
    return it.tasks.compose.__self__.base  # type: ignore[attr-defined, no-any-return]


def pretrained(it: Cell, pairs: Any) -> Tensor:
    return replace(it.tasks, compose=lambda weights: weights).logits(base_of(it), pairs)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("model", "residual"), [("gru4rec", "on"), ("sasrec", "on"), ("narm", "lora"), ("sasrec", "lora")]
)
def test_at_the_pretrained_start_there_is_nothing_to_pull(model: str, residual: str, direction: str) -> None:
    it = cell(model, "fomaml", residual, "clip")
    over: Any = it.tasks.compose.__self__  # type: ignore[attr-defined]
    phi = over.init(torch.Generator().manual_seed(1))
    anchor = Anchor.at(pretrained(it, it.batch.support), 1.0, direction)
    alone = replace(it.tasks, objective=nothing).loss(it.batch.support, anchor=anchor)
    losses, grads = inner.gradients(alone, phi, {}, phi, second_order=False)
    assert float(losses.detach().abs().max()) < 1e-12
    assert grads
    assert all(float(grad.dense().abs().max()) < 1e-12 for grad in grads.values())


@pytest.mark.parametrize(
    "weights", [None, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)], ids=["alike", "weighed"]
)
def test_the_loss_of_a_task_takes_the_mean_over_pairs_that_count(weights: Tensor | None) -> None:
    """Of four tasks of three pairs, with unknown targets among them: sum and count written out."""
    it = cell("gru4rec", "fomaml", "off", "clip")
    pairs, tasks = it.batch.support, replace(it.tasks, objective=nothing)
    reference = drawn(*pairs.target.shape, 11)
    got = tasks.loss(pairs, None, weights, anchor=Anchor.at(reference, 0.4))(it.phi)
    logits = tasks.logits(it.phi, pairs)
    for t, row in enumerate(pairs.target.tolist()):
        known = [n for n, target in enumerate(row) if target > 0]
        ways = [1.0 if weights is None else float(weights[n]) for n in known]
        each = [
            w * float(torchs(reference[t, n], logits[t, n], "base_adapted", 1.0))
            for n, w in zip(known, ways, strict=True)
        ]
        assert got[t].item() == pytest.approx(0.4 * sum(each) / sum(ways), abs=1e-12)
    assert (pairs.target < 0).any()


@pytest.mark.parametrize("filling", [0, -1])
def test_padding_changes_nothing(filling: int) -> None:
    it = cell("gru4rec", "fomaml", "off", "clip")
    pairs, reference = it.batch.query, pretrained(it, it.batch.query) + 0.1
    assert isinstance(pairs, PairBatch)
    more = torch.full_like(pairs.target[:, :2], filling)
    padded = replace(pairs, at=torch.cat([pairs.at, more.clamp(min=0)], 1), target=torch.cat([pairs.target, more], 1))
    longer = torch.cat([reference, drawn(*more.shape, 11)], 1)
    wanted = it.tasks.loss(pairs, anchor=Anchor.at(reference, 0.4))(it.phi)
    got = it.tasks.loss(padded, anchor=Anchor.at(longer, 0.4))(it.phi)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-14)


def test_weight_0_is_none_bit_for_bit() -> None:
    it = cell("sasrec", "fomaml", "on", "clip")
    plain, reference = it.tasks.loss(it.batch.query), pretrained(it, it.batch.query)
    assert torch.equal(it.tasks.loss(it.batch.query, anchor=Anchor.at(reference, 0.0))(it.phi), plain(it.phi))


def test_scores_of_all_items_are_made_once_for_objective_and_anchor() -> None:
    asked = list[Tensor | None]()

    def columns(items: Tensor | None) -> Tensor:
        asked.append(items)
        return P if items is None else P[..., items - 1]

    scores = Scores(P, 3, columns).kept()
    CrossEntropy()(scores, ONE)
    Anchor.at(Q, 1.0)(scores, ONE)
    assert asked == [None]
    ChunkedCrossEntropy(2)(scores, ONE)  # in pieces still
    assert [len(items) for items in asked[1:3] if items is not None] == [2, 1]


# -- through the loops ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnchoredCell(Cell):
    """A cell with anchors; `reference`: scores of support and query pairs."""

    where: str = "both"
    options: tuple[float, str, float] = (0.5, "base_adapted", 1.0)
    reference_scores: tuple[Tensor, Tensor] = (P, P)

    def losses(self, phi: Params, asked: Any = None) -> Tensor:
        inside, outside = (Anchor.at(scores, *self.options) for scores in self.reference_scores)
        support = self.tasks.loss(
            self.batch.support, None, self.weights, anchor=inside if self.where != "outer" else None
        )
        query = self.tasks.loss(self.batch.query, anchor=outside if self.where != "inner" else None)
        return (asked or self.algorithm).meta_losses(phi, support, query, 3, self.asked.step)


def composed(it: Cell) -> Callable[[Params], Params]:
    over: Any = it.tasks.compose.__self__  # type: ignore[attr-defined]
    if type(over).__name__ == "FullResidual":
        return lambda own: {name: over.base[name] + over.alpha * own[name] for name in over.base}
    return lambda own: over.base | own


def anchored_cell(model: str, algorithm: str, residual: str, setting: str, where: str, **given: Any) -> AnchoredCell:
    it = cell(model, algorithm, residual, setting)
    options = (0.5, given.get("direction", "base_adapted"), given.get("temperature", 1.0))
    entry, compose = MODELS[model], composed(it)
    _, plain = episodes(model, 1)
    scores = tuple(pretrained(it, part) for part in (it.batch.support, it.batch.query))

    def with_anchor(loss: Loss, part: Any, ways: list[float], on: bool) -> Loss:
        known = [(prefix, w) for (prefix, target), w in zip(part, ways, strict=True) if target > 0]
        if not on or not known:
            return loss
        base = entry.logits(base_of(it), [prefix for prefix, _ in known]).detach()

        def whole(own: Params) -> Tensor:
            found = entry.logits(compose(own), [prefix for prefix, _ in known])
            each = [w * torchs(p, q, *options[1:]) for p, q, (_, w) in zip(base, found, known, strict=True)]
            return loss(own) + options[0] * sum(each, torch.zeros(())) / sum(w for _, w in known)

        return whole

    inside = [1.0] * 3 if it.weights is None else it.weights.tolist()
    each = [
        (
            with_anchor(of[0], parts[0], inside, where != "outer"),
            with_anchor(of[1], parts[1], [1.0] * 4, where != "inner"),
        )
        for of, parts in zip(it.each, plain, strict=True)
    ]
    values = {field.name: getattr(it, field.name) for field in fields(it)} | {"each": each}
    return AnchoredCell(**values, where=where, options=options, reference_scores=scores)  # type: ignore[arg-type]


RUNS = [
    *(("gru4rec", "maml", of, "clip", where) for of in ("off", "on", "context") for where in ("inner", "outer", "both")),
    ("sasrec", "maml", "on", "prox", "both"), ("narm", "maml", "on", "clip", "both"),
    ("narm", "fomaml", "off", "prox", "inner"),
    ("sasrec", "meta_sgd", "on", "clip", "both"), ("gru4rec", "maml_pp", "off", "clip", "both"),
    ("sasrec", "anil", "off", "clip", "inner"), ("gru4rec", "imaml", "off", "clip", "both"),
    ("gru4rec", "reptile", "off", "clip", "both"),
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(run))
def test_meta_losses_and_gradients_are_those_of_one_task_at_a_time(run: tuple[str, ...]) -> None:
    it = anchored_cell(*run, direction="adapted_base" if run[2] == "on" else "base_adapted", temperature=1.5)
    both = Both(*it.engine(), *it.reference())
    check_losses(both)
    check_gradients(both)
    without = replace(it, options=(0.0, *it.options[1:])).engine()[0]
    assert float((both.losses - without).abs().max()) > 1e-4


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("where", ["inner", "outer", "both"])
@pytest.mark.parametrize("model", ["gru4rec", "sasrec"])
def test_the_second_order_gradient_is_the_slope_of_the_meta_loss(model: str, where: str, direction: str) -> None:
    it = anchored_cell(model, "maml", "on", "clip", where, direction=direction, temperature=0.8)
    _, grads = it.engine()
    for along in jointly(it, 3):
        assert slope_error(it, grads, along) < 1e-6


@pytest.mark.parametrize("fault", ["constant softmax", "unknown targets count", "sum over pairs"])
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Anchor.__call__

    def faulty(self: Anchor, scores: Scores, target: Tensor) -> Tensor:
        if fault == "constant softmax":
            logits = scores.all()
            return true(self, Scores.of_logits(logits.detach()), target) + 0 * logits.sum(-1)
        if fault == "unknown targets count":
            return true(self, scores, target.abs())
        return true(self, scores, target) * target.shape[1]

    monkeypatch.setattr(Anchor, "__call__", faulty)
    it = anchored_cell("gru4rec", "maml", "on", "clip", "both")
    both = Both(*it.engine(), *it.reference())

    def check() -> None:
        check_losses(both)
        check_gradients(both)

    with pytest.raises(AssertionError):
        check()


def test_of_one_batch_the_reference_stands_for_all_inner_steps() -> None:
    """Weights move, the anchor does not: the loss is a function of the weights alone."""
    it = anchored_cell("gru4rec", "maml", "on", "clip", "inner")
    anchor = Anchor.at(it.reference_scores[0], 0.5)
    support = it.tasks.loss(it.batch.support, anchor=anchor)
    weights: Weights = inner.adapt(support, it.phi, 3, inner.InnerLoop(0.2, 3))
    before = anchor.log_p.clone()
    assert torch.equal(support(weights), support(weights))
    assert torch.equal(anchor.log_p, before)


def test_products_in_bfloat16() -> None:
    it = cell("gru4rec", "fomaml", "off", "clip")
    model, phi = (
        it.tasks.model,
        {name: value.float() for name, value in it.phi.items() if not name.startswith("rates/")},
    )
    exact, mixed = Tasks(model, CrossEntropy(), lambda w: w), Tasks(model, CrossEntropy(), lambda w: w, mixed=True)
    anchor = Anchor.at(exact.logits(phi, it.batch.support) * 0.5, 0.5)
    got, wanted = (tasks.loss(it.batch.support, anchor=anchor)(phi) for tasks in (mixed, exact))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)
