"""The exactness matrix: every model with every algorithm and every residual, as `build` makes them from a configuration.

In float64, for each of the 105 cells: the engine's meta-loss of every task and its meta-gradient by all that is trained
(weights, contexts, log step sizes, norms of single steps) equal those of `reference.meta_reference` over
`reference.model_reference`, one task at a time, to 1e-10 of the largest entry. Where the algorithm is of second order, the
gradient equals central differences of the meta-loss to 1e-6, along random directions over all that is trained and along one
through each tensor alone; of first order it fails that same test. iMAML, whose gradient holds at the solution of its inner
problem, is given one that has converged.

The scope "module" has a cell's tests stand side by side, so that of two processes one computes its slow reference, once.
"""

from __future__ import annotations

import pytest
import torch
from reference.matrix_cells import (
    ALGORITHMS,
    ASKED,
    CELLS,
    cell,
    check_gradients,
    check_losses,
    found,
)
from reference.slopes import DIFFERENCES, first_order, jointly, one_by_one, slope_error

from metarec.algorithms import inner as inner_loop
from metarec.core import offsets

# -- one task at a time ---------------------------------------------------------------------------------------------


CALM = {"clip": 3, "prox": 6, "cut": 4}  # seeds


def some(setting: str, algorithms: tuple[str, ...] = ALGORITHMS) -> list[tuple[str, str, str, str, int]]:
    """The cells of this setting, each with one seed or two."""
    chosen = []
    for model, algorithm, residual in CELLS:
        seeds = {"clip": [1, 2], "prox": [5], "cut": [4]}[setting]
        if algorithm == "imaml":
            # the proximal problem of Conv4 likes to have its solution on a kink, where no formula holds; not with this seed
            seeds = [12] if setting == "prox" and model == "conv4" else seeds[:1]
            # norms of four numbers can bend the loss of `nested` by more than lambda (up to 200): not with these
            seeds = [CALM[setting]] if model == "nested" else seeds
        if (algorithm, setting) in ASKED and algorithm in algorithms:
            chosen += [(model, algorithm, residual, setting, seed) for seed in seeds]
    return chosen


MATRIX = [*some("clip"), *some("prox"), *some("cut")]
NAMES = ("model", "algorithm", "residual", "setting", "seed")


@pytest.mark.parametrize(NAMES, MATRIX, scope="module")
def test_meta_losses_are_those_of_one_task_at_a_time(
    model: str, algorithm: str, residual: str, setting: str, seed: int
) -> None:
    check_losses(found(model, algorithm, residual, setting, seed))


@pytest.mark.parametrize(NAMES, MATRIX, scope="module")
def test_the_meta_gradient_is_that_of_one_task_at_a_time(
    model: str, algorithm: str, residual: str, setting: str, seed: int
) -> None:
    check_gradients(found(model, algorithm, residual, setting, seed))


@pytest.mark.parametrize("residual", ["off", "on"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "narm", "nested"])
def test_a_wide_matrix_is_kept_in_blocks_and_changes_no_number(
    model: str, algorithm: str, residual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything counts as wide here, and every gradient is kept as a product."""
    monkeypatch.setattr(offsets, "WIDE", 0)

    def moved(
        offset: offsets.Offset | None, step: offsets.Offset, rank: int, scale: offsets.Scale, join: bool
    ) -> offsets.Offset:
        return step.scaled(scale) if offset is None else offset.plus(step.scaled(scale))

    monkeypatch.setattr(inner_loop, "moved", moved)
    seed = CALM["clip"] if model == "nested" else 1
    it, usual = cell(model, algorithm, residual, "clip", seed), found(model, algorithm, residual, "clip", seed)
    losses, grads = it.engine()
    torch.testing.assert_close(losses, usual.slow_losses, rtol=1e-10, atol=1e-10)
    for name, slow in usual.slow_grads.items():
        torch.testing.assert_close(grads[name], slow, rtol=1e-10, atol=1e-11)


# -- central differences --------------------------------------------------------------------------------------------


SECOND = ("maml", "maml_pp", "anil", "meta_sgd")


@pytest.mark.parametrize(NAMES, [*some("clip", SECOND), *some("prox", (*SECOND, "imaml"))], scope="module")
def test_the_meta_gradient_is_the_slope_of_the_meta_loss(
    model: str, algorithm: str, residual: str, setting: str, seed: int
) -> None:
    """Also iMAML's: its inner loop has converged."""
    it, result = cell(model, algorithm, residual, setting, seed), found(model, algorithm, residual, setting, seed)
    with torch.no_grad():
        torch.testing.assert_close(it.losses(it.phi, first_order(it.algorithm)), result.losses, rtol=1e-13, atol=1e-13)
    for along in (*jointly(it, 3), *(one_by_one(it) if seed != 2 else ())):
        assert slope_error(it, result.grads, along) < 1e-6, f"along {', '.join(along)}"


FIRST = ("fomaml", "reptile")


@pytest.mark.parametrize(NAMES, [*some("cut"), *some("clip", FIRST), *some("prox", FIRST)], scope="module")
def test_the_first_order_gradient_is_not(model: str, algorithm: str, residual: str, setting: str, seed: int) -> None:
    it, result = cell(model, algorithm, residual, setting, seed), found(model, algorithm, residual, setting, seed)
    assert any(slope_error(it, result.grads, along, DIFFERENCES[-1:]) > 1e-3 for along in jointly(it, 3))
