"""Mixed precision: every cell of the exactness matrix with products in bfloat16, against the same cell in float32.

bfloat16 has eight bits, so a product is off by up to 1/256 of itself. What is checked: the meta-loss is within 2 % and the
meta-gradient points the same way; whatever is kept (offsets, gradients, losses) is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from reference.matrix_cells import CELLS, Cell, cell
from reference.matrix_models import MODELS
from torch import Tensor

from metarec.algorithms import inner as inner_loop
from metarec.core import gru as gru_module
from metarec.core.offsets import Offset, Scale, rebuilt, tensors
from metarec.core.weights import Params
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.scores import Scores
from metarec.tasks import Tasks

# of the draws that put no cell near a kink of ReLU, max-pooling or the clip, where any rounding turns the gradient (weights
# moved by 1/512 of themselves turn it as far), and give iMAML no indefinite system, whose conjugate gradients magnify it
SEED = 3
SEEDS = {("conv4", "meta_sgd", "off"): 1}


def in_float32(it: Cell, *, mixed: bool) -> Cell:
    over: Any = it.tasks.compose.__self__  # type: ignore[attr-defined]
    over = replace(over, base={name: value.float() for name, value in over.base.items()})
    return replace(
        it,
        tasks=replace(it.tasks, compose=over.compose, mixed=mixed),
        batch=it.batch.cast(torch.float32),
        phi={name: value.float() for name, value in it.phi.items()},
    )


@cache
def plain(model: str, algorithm: str, residual: str) -> tuple[Tensor, Params]:
    seed = SEEDS.get((model, algorithm, residual), SEED)
    return in_float32(cell(model, algorithm, residual, "clip", seed), mixed=False).engine()


def assert_close_to_float32(model: str, algorithm: str, residual: str) -> None:
    seed = SEEDS.get((model, algorithm, residual), SEED)
    losses, grads = in_float32(cell(model, algorithm, residual, "clip", seed), mixed=True).engine()
    wanted, wanted_grads = plain(model, algorithm, residual)
    assert losses.dtype == torch.float32
    assert {value.dtype for value in grads.values()} == {torch.float32}
    assert not torch.equal(losses, wanted)  # something was rounded
    assert abs(float(losses.mean() / wanted.mean()) - 1) < 0.02
    got, expected = (torch.cat([value.flatten() for value in g.values()]) for g in (grads, wanted_grads))
    assert float(torch.cosine_similarity(got, expected, dim=0)) > 0.98
    assert abs(float(got.norm() / expected.norm()) - 1) < 0.05


@pytest.mark.parametrize(("model", "algorithm", "residual"), CELLS)
def test_a_meta_step_is_that_of_float32_but_for_rounding(model: str, algorithm: str, residual: str) -> None:
    assert_close_to_float32(model, algorithm, residual)


def assert_kept_in_float32(model: str, second_order: bool) -> None:
    """All weights adapt, so an offset of every form comes up."""
    it = in_float32(cell(model, "maml", "off", "clip", SEED), mixed=True)
    adapted = inner_loop.adapt(
        it.tasks.loss(it.batch.support), it.phi, it.batch.n_tasks, it.algorithm.inner, second_order=second_order
    )
    found = [part.dtype for weight in adapted.values() if weight.offset for part in tensors(weight.offset)]
    assert len(found) >= len(adapted) - 1
    assert set(found) == {torch.float32}


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("model", list(MODELS))
def test_offsets_are_float32(model: str, second_order: bool) -> None:
    assert_kept_in_float32(model, second_order)


@pytest.mark.parametrize("model", list(MODELS))
def test_offsets_kept_in_bfloat16_would_be_seen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = inner_loop.moved

    def rounded(offset: Offset | None, step: Offset, rank_ahead: int, scale: Scale, join: bool) -> Offset:
        found = moved(offset, step, rank_ahead, scale, join)
        return rebuilt(found, [part.bfloat16() for part in tensors(found)])

    monkeypatch.setattr(inner_loop, "moved", rounded)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_kept_in_float32(model, False)


def seen_dtypes(of: Callable[..., Any], found: list[torch.dtype]) -> Callable[..., Any]:
    def noted(*given: Any, **more: Any) -> Any:
        values = [part for part in (*given, *more.values()) if isinstance(part, Tensor)]
        found.extend(part.dtype for part in values if part.is_floating_point())
        return of(*given, **more)

    return noted


def test_the_recurrence_and_the_objective_see_float32_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is under autocast there: what they multiply themselves is float32 as well."""
    recurrent: list[torch.dtype] = []
    monkeypatch.setattr(gru_module, "_forward", seen_dtypes(gru_module._forward, recurrent))
    judged: list[torch.dtype] = []

    def objective(scores: Scores, target: Tensor, generator: torch.Generator | None) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        judged.extend([scores.states.dtype, scores.all().dtype, scores.at(target.clamp(min=1)).dtype])
        return CrossEntropy()(scores, target, generator)

    it = in_float32(cell("gru4rec", "maml", "off", "clip", SEED), mixed=True)
    replace(it, tasks=replace(it.tasks, objective=objective)).engine()
    assert recurrent
    assert set(recurrent) == {torch.float32}
    assert judged
    assert set(judged) == {torch.float32}


@pytest.mark.parametrize("model", list(MODELS))
def test_without_it_autocast_is_never_entered(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = in_float32(cell(model, "maml", "off", "clip", SEED), mixed=False)
    assert isinstance(it.tasks, Tasks)

    def entered(*given: Any, **more: Any) -> None:
        raise AssertionError("autocast")

    monkeypatch.setattr(torch, "autocast", entered)
    it.engine()
    with pytest.raises(AssertionError, match="autocast"):
        in_float32(it, mixed=True).engine()
