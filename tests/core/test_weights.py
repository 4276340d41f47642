"""Offsets against their dense form: sums, scaling, look-up, norms; the two forms of a step; a residual's chain rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarec.core import weights
from metarec.core.offsets import Dense, LowRank, Offset, Rows, moved
from metarec.core.weights import FastWeight, Tap, squared_norm

T, OUT, IN, RANK = 3, 7, 4, 2
GENERATOR = torch.Generator()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed + sum(shape)), dtype=torch.float64)


def low_rank(seed: int, rank: int = RANK) -> LowRank:
    return LowRank.of(normal(T, rank, OUT, seed=seed), normal(T, rank, IN, seed=seed + 50))


def rows(seed: int, ids: list[list[int]]) -> Rows:
    return Rows.of(torch.tensor(ids), normal(T, len(ids[0]), IN, seed=seed), OUT)


IDS = [[5, 1, 5, 2], [0, 0, 0, 0], [6, 3, 1, 6]]
OTHER_IDS = [[2, 6, 6], [1, 0, 3], [3, 3, 3]]


def every_offset() -> list[Offset]:
    return [Dense(normal(T, OUT, IN)), low_rank(0), rows(0, IDS)]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def check_rows_of() -> None:
    grads = normal(T, 4, IN)
    wanted = torch.zeros(T, OUT, IN, dtype=torch.float64)
    for task in range(T):
        for place, row in enumerate(IDS[task]):
            wanted[task, row] += grads[task, place]
    made = Rows.of(torch.tensor(IDS), grads, OUT)
    close(made.dense(), wanted)
    assert (made.ids.diff(dim=1) >= 0).all()
    assert made.ids.shape[1] == 3  # the most different rows that one task has looked up
    close(made.look_up(torch.tensor([list(range(OUT))] * T)), wanted)
    close(made.look_up(torch.tensor(OTHER_IDS)), torch.stack([wanted[t, OTHER_IDS[t]] for t in range(T)]))


def test_rows_sum_over_duplicates() -> None:
    check_rows_of()


def test_a_row_outside_all_that_were_seen_has_no_offset() -> None:
    made = Rows.of(torch.tensor([[2, 3]]), normal(1, 2, IN), OUT)
    assert not made.look_up(torch.tensor([[0, 1, 4, 6]])).any()


def check_plus(first: Offset, second: Offset) -> None:
    close(first.plus(second, -0.3).dense(), first.dense() - 0.3 * second.dense())  # type: ignore[arg-type]
    close(first.scaled(2.5).dense(), 2.5 * first.dense())


@pytest.mark.parametrize("other", [IDS, OTHER_IDS], ids=["same rows", "other rows"])
def test_rows_add(other: list[list[int]]) -> None:
    check_plus(rows(1, IDS), rows(2, other))


def test_rows_add_after_adding_other_rows() -> None:
    both = rows(1, IDS).plus(rows(2, OTHER_IDS), 1.0)
    check_plus(both, rows(3, IDS))
    check_plus(both, both)


def test_dense_and_low_rank_add() -> None:
    check_plus(Dense(normal(T, OUT, IN)), low_rank(1))
    check_plus(Dense(normal(T, OUT, IN)), Dense(normal(T, OUT, IN, seed=4)))
    check_plus(low_rank(1), low_rank(2, rank=1))


@pytest.mark.parametrize("offset", every_offset(), ids=lambda offset: type(offset).__name__)
def test_squared_norm_and_its_first_order_gradient(offset: Offset) -> None:
    shared = normal(OUT, IN, seed=8).requires_grad_()
    full = shared.detach() + offset.dense()
    norm = squared_norm(FastWeight(shared, offset))
    close(norm, full.square().flatten(1).sum(1))
    (grad,) = torch.autograd.grad(norm.sum(), shared)
    close(grad, 2 * full.sum(0))


def test_squared_norm_without_offset() -> None:
    assert squared_norm(FastWeight(torch.tensor([3.0, 4.0]))).item() == 25.0


@pytest.mark.parametrize(("rank_ahead", "form"), [(1, LowRank), (3, Dense)])
def test_both_forms_of_a_step_are_equal(rank_ahead: int, form: type) -> None:
    """rank 1 on 7 x 4: one step costs 11 numbers a task, three cost 33, the matrix 28."""
    first, second = low_rank(1, rank=1), low_rank(2, rank=1)
    once = moved(None, first.scaled(-0.1), rank_ahead)
    assert isinstance(once, form)
    twice = moved(once, second.scaled(-0.1), rank_ahead - 1)
    assert isinstance(twice, form)
    close(twice.dense(), -0.1 * (first.dense() + second.dense()))


def test_rows_move_as_rows() -> None:
    first, second = rows(1, IDS), rows(2, OTHER_IDS)
    twice = moved(moved(None, first.scaled(-0.1), 2), second.scaled(-0.1), 1)
    assert isinstance(twice, Rows)
    close(twice.dense(), -0.1 * (first.dense() + second.dense()))


def check_onto(offset: Offset, alpha: float) -> None:
    shared, base = normal(OUT, IN, seed=1), normal(OUT, IN, seed=2)
    composed = FastWeight(shared, offset).onto(base, alpha)
    close(composed.dense(), base + alpha * (shared + offset.dense()))
    tap = Tap()
    through = FastWeight(shared, offset, tap).onto(base, alpha)
    assert through.tap is not None
    node, grad = normal(T, OUT, IN), low_rank(5)
    through.tap.add(node, lambda _: grad)
    ((_, finish),) = tap.notes  # noted where the algorithm looks, with alpha times the gradient
    close(finish(node).dense(), alpha * grad.dense())


@pytest.mark.parametrize("alpha", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("offset", every_offset(), ids=lambda offset: type(offset).__name__)
def test_onto_a_base(offset: Offset, alpha: float) -> None:
    check_onto(offset, alpha)


def test_onto_before_any_step() -> None:
    shared, base = normal(OUT, IN), normal(OUT, IN, seed=2)
    assert torch.equal(FastWeight(torch.zeros_like(shared)).onto(base, 0.7).dense(), base)
    assert FastWeight(shared).onto(base, 0.7).offset is None


# -- the checks above are seen to fail ------------------------------------------------------------------------------


def test_lost_duplicates_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true_of = Rows.of

    def last_wins(ids: Tensor, grads: Tensor, n_rows: int) -> Rows:
        made = true_of(ids, grads, n_rows)
        return Rows(made.ids, true_of(ids, torch.zeros_like(grads), n_rows).values + made.values / 2, n_rows)

    monkeypatch.setattr(Rows, "of", staticmethod(last_wins))
    with pytest.raises(AssertionError):
        check_rows_of()


def test_a_forgotten_alpha_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_ScaledTap", lambda tap, alpha: tap)
    with pytest.raises(AssertionError):
        check_onto(low_rank(0), 0.5)
