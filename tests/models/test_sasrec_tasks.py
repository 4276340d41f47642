"""SASRec with weights of each task: values and gradients against copies, one task at a time; both orders of MAML."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from reference.sasrec_reference import slow_logits
from reference.small_episodes import small_log
from reference.small_sasrec import MODEL, MODELS, D, V, close, logits, weights
from reference.small_tensors import normal
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core import attention, states
from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows
from metarec.core.weights import FastWeight, Params, Weights
from metarec.models import sasrec
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks


@pytest.fixture(params=["tasks", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tasks padded to the largest; and cut into chunks with as little padding as can be."""
    monkeypatch.setattr(attention, "CHUNK_COST", 1e9 if request.param == "tasks" else 0)


# -- weights of each task -------------------------------------------------------------------------------------------

N_TASKS = 4
FORMS = ("dense", "low rank", "rows", "both")


def offset_of(form: str, shape: tuple[int, ...], seed: int) -> Offset:
    """The form where the weight can have it (rows: tables of items and positions), else what is nearest."""
    if len(shape) == 2 and form != "dense":
        low = LowRank.of(
            0.4 * normal(N_TASKS, 2, shape[0], seed=seed), 0.4 * normal(N_TASKS, 2, shape[1], seed=seed + 1)
        )
        if form == "low rank" or shape not in (MODEL.shapes()["embedding.weight"], MODEL.shapes()["position.weight"]):
            return low
        ids = torch.tensor([[0, 1, 2, 2, 5], [0, 9, 9, 3, 3], [4, 1, 1, 10, 0], [7, 8, 2, 3, 1]])
        rows = Rows.of(ids, 0.4 * normal(N_TASKS, 5, shape[1], seed=seed + 2), shape[0])
        return rows if form == "rows" else Both(low, rows)
    return Dense(0.3 * normal(N_TASKS, *shape, seed=seed))


def own_weights(form: str, model: SASRec) -> tuple[Params, dict[str, Offset]]:
    params = weights(model, context=0.5)
    return params, {
        name: offset_of(form, tuple(value.shape), 50 + 3 * number)
        for number, (name, value) in enumerate(params.items())
    }


def small_pairs() -> tuple[PairBatch, list[list[list[int]]], Tensor]:
    """(pairs [4, 5], the prefixes of each task, targets)."""
    log = small_log(8, n_users=N_TASKS, n_pairs=5, longest=7, max_len=4, unknown=0.2)
    numbers = np.arange(N_TASKS * 5).reshape(N_TASKS, 5)
    pairs = log.batcher.pairs(numbers)
    return pairs, [[prefix for prefix, _ in log.expand(own)] for own in numbers], pairs.target


def copies(params: Params, offsets: dict[str, Offset]) -> list[Params]:
    """Each task's own weights, leaves."""
    dense = {name: value + offsets[name].dense() for name, value in params.items()}
    return [{n: v[task].detach().clone().requires_grad_() for n, v in dense.items()} for task in range(N_TASKS)]


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_each_task_equal_copies_one_task_at_a_time(name: str, form: str) -> None:
    model, (pairs, prefixes, _) = MODELS[name], small_pairs()
    params, offsets = own_weights(form, model)
    got = logits({n: FastWeight(v, offsets[n]) for n, v in params.items()}, pairs, model)
    for task, own in enumerate(copies(params, offsets)):
        close(got[task], slow_logits(model, own, prefixes[task]))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_each_task_equal_autograd_on_copies(name: str, form: str, second_order: bool) -> None:
    check_task_gradients(MODELS[name], form, second_order)


def check_task_gradients(model: SASRec, form: str, second_order: bool = False) -> None:
    pairs, prefixes, target = small_pairs()
    params, offsets = own_weights(form, model)
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(pairs)
    losses, grads = inner.gradients(loss, params, offsets, list(params), second_order)
    assert set(grads) == set(params)
    for task, own in enumerate(copies(params, offsets)):
        slow = cross_entropy(slow_logits(model, own, prefixes[task])[None], target[task : task + 1])[0]
        close(losses[task], slow)
        for name, theirs in zip(own, torch.autograd.grad(slow, list(own.values())), strict=True):
            mine = grads[name].dense()[task]
            if name == "embedding.weight":  # padding: row 0 has no gradient
                assert not mine[0].any()
            close(mine, theirs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_scores_of_some_items_are_those_columns_and_their_gradients(name: str, form: str) -> None:
    model, (pairs, _, target) = MODELS[name], small_pairs()
    params, offsets = own_weights(form, model)
    some, each = torch.tensor([1, 4, 5, 11]), target.clamp(min=1)

    def scores(weights: Weights, items: Tensor | None) -> Tensor:
        return model.score(weights, pairs.gather(model.encode(weights, pairs.sequences)), items=items)

    for items in (some, each):
        found = []
        for given in (items, None):

            def loss(weights: Weights, given: Tensor | None = given, items: Tensor = items) -> Tensor:
                got = scores(weights, given)
                if given is None:
                    got = got[..., items - 1] if items is some else got.gather(2, items[..., None] - 1)[..., 0]
                return got.tanh().flatten(1).sum(1)

            losses, grads = inner.gradients(loss, params, offsets, list(params), False)
            found.append([losses, *(grads[weight].dense() for weight in sorted(grads))])
        for mine, theirs in zip(*found, strict=True):
            close(mine, theirs)


def check_twice_without_taps() -> None:
    """As iMAML does: offsets that are leaves, the gradient with respect to them differentiated along a direction."""
    pairs, prefixes, target = small_pairs()
    params, _ = own_weights("dense", MODEL)
    leaves = {n: (0.1 * normal(N_TASKS, *v.shape, seed=5)).requires_grad_() for n, v in params.items()}
    loss = Tasks(MODEL, cross_entropy, lambda phi: phi).loss(pairs)
    fast = loss({n: FastWeight(v, Dense(leaves[n])) for n, v in params.items()})
    slow = [
        cross_entropy(
            slow_logits(MODEL, {n: v + leaves[n][task] for n, v in params.items()}, prefixes[task])[None],
            target[task : task + 1],
        )
        for task in range(N_TASKS)
    ]
    found = []
    for losses in (fast, torch.cat(slow)):
        first = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=True)
        found.append(
            torch.autograd.grad(sum((g * normal(*g.shape, seed=6)).sum() for g in first), list(leaves.values()))
        )
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)


def test_twice_without_taps() -> None:
    check_twice_without_taps()


# -- the meta-gradient ----------------------------------------------------------------------------------------------


def episodes() -> EpisodeBatch:
    return small_log(9, n_users=3, n_pairs=8, longest=6, max_len=5).episodes(4, 4)


def meta_gradient_error(algorithm: MAML, params: Params) -> float:
    """The relative error of the meta-gradient along a random direction, against a central difference."""
    batch, tasks = episodes(), Tasks(MODEL, cross_entropy, lambda phi: phi)

    def meta_loss(phi: Params) -> Tensor:
        return algorithm.meta_losses(phi, tasks.loss(batch.support), tasks.loss(batch.query), batch.n_tasks).mean()

    start = {name: value.clone().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(meta_loss(start), list(start.values()))
    direction = {name: normal(*value.shape, seed=70 + n) for n, (name, value) in enumerate(params.items())}
    norm = sum(float(value.square().sum()) for value in direction.values()) ** 0.5
    slope = sum(float((g * d).sum()) for g, d in zip(found, direction.values(), strict=True)) / norm
    step = 1e-5
    high, low = (
        float(meta_loss({n: v + by * direction[n] for n, v in params.items()}).detach())
        for by in (step / norm, -step / norm)
    )
    wanted = (high - low) / (2 * step)
    assert abs(wanted) > 1e-3
    return abs(slope - wanted) / abs(wanted)


CONTEXT = frozenset(MODEL.context_shapes())
START = {"all weights": (None, None), "context": (CONTEXT, 0.3), "context from zero": (CONTEXT, 0.0)}


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("name", START)
def test_the_second_order_meta_gradient_is_the_slope_and_the_first_order_one_is_not(name: str) -> None:
    adapted, context = START[name]
    loop, params = InnerLoop(0.3, 3, adapted=adapted), weights(context=context)
    assert meta_gradient_error(MAML(loop), params) < 1e-6
    assert meta_gradient_error(fomaml(loop), params) > 1e-2


def test_recomputed_steps_give_the_same() -> None:
    assert meta_gradient_error(MAML(InnerLoop(0.3, 2, recompute=True)), weights()) < 1e-6


def test_second_order_takes_the_plain_kernel_and_first_order_either(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, tasks, found = episodes(), Tasks(MODEL, cross_entropy, lambda phi: phi), []
    for choice in (sasrec.differentiated_twice, lambda given: True):
        monkeypatch.setattr(sasrec, "differentiated_twice", choice)
        start = {name: value.requires_grad_() for name, value in weights(context=0.3).items()}
        losses = fomaml(InnerLoop(0.3, 3)).meta_losses(start, tasks.loss(batch.support), tasks.loss(batch.query), 3)
        found.append([losses, *torch.autograd.grad(losses.sum(), list(start.values()))])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)
    monkeypatch.setattr(sasrec, "differentiated_twice", lambda given: False)
    with pytest.raises(RuntimeError, match="not implemented"):
        meta_gradient_error(MAML(InnerLoop(0.3, 2)), weights())
    with pytest.raises(RuntimeError, match="not implemented"):
        check_twice_without_taps()


# -- the checks above are seen to fail ------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "operator"), [(sasrec, "embed"), (states, "linear")], ids=["embed", "linear"])
def test_half_of_a_tied_gradient_is_seen(where: ModuleType, operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is looked up and multiplied by; its tap must see both."""
    true = getattr(where, operator)

    def untapped(first: Tensor, *given: FastWeight) -> Tensor:
        return true(first, *(replace(w, tap=None) if w.shared.shape == (V + 1, D) else w for w in given))

    monkeypatch.setattr(where, operator, untapped)
    with pytest.raises(AssertionError):
        check_task_gradients(MODEL, "low rank")


def test_a_chunk_left_out_of_a_tasks_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_COST", 0)
    true = attention._ChunkTap.__init__

    def last(self: attention._ChunkTap, inner_tap: object, owner: Tensor, n_tasks: int) -> None:
        true(self, inner_tap, owner.where(owner.diff(append=owner[-1:] + 1) != 0, 0), n_tasks)  # type: ignore[arg-type]

    monkeypatch.setattr(attention._ChunkTap, "__init__", last)
    with pytest.raises(AssertionError):
        check_task_gradients(MODEL, "dense")


def test_a_meta_gradient_without_the_attention_graph_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = attention._plain

    def cut(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k * 1
        if k.requires_grad:
            k.register_hook(lambda grad: grad.detach())
        return true(q, k, v)

    monkeypatch.setattr(attention, "_plain", cut)
    check_task_gradients(MODEL, "both", True)  # the gradient of a step is as it was
    assert meta_gradient_error(MAML(InnerLoop(0.3, 3)), weights()) > 1e-5
