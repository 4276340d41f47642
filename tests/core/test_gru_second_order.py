"""The written-out GRU differentiated twice, against autograd through plain steps: every gradient, also of an inner step."""

from __future__ import annotations

import pytest
import torch
from reference.small_sequences import LAYOUTS, H, close, mixing, packed
from torch import Tensor

from metarec.core import gru as gru_module
from metarec.core import own_gradients
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.offsets import Dense
from metarec.core.weights import FastWeight, Tap


def plain_gru(x: Tensor, sequences: Sequences, weight: Tensor, bias: Tensor, start: Tensor) -> Tensor:
    """One event at a time with torch operators, weights [T, ...] of each task: what autograd differentiates twice."""
    out = [x.new_zeros(0, H)]
    for task in range(sequences.n_tasks):
        for begin, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True):
            h = start[task]
            for event in range(begin, begin + length):
                xr, xz, xn = x[task, event].chunk(3)
                pr, pz, pn = (weight[task] @ h + bias[task]).chunk(3)
                z, n = torch.sigmoid(xz + pz), torch.tanh(xn + torch.sigmoid(xr + pr) * pn)
                h = (1 - z) * n + z * h
                out.append(h[None])
    return torch.cat(out)


def random_inputs(sequences: Sequences, seed: int) -> dict[str, Tensor]:
    generator, n = torch.Generator().manual_seed(seed), sequences.n_tasks
    shapes = {
        "x": (*sequences.items.shape, 3 * H), "weight": (3 * H, H), "own": (n, 3 * H, H), "bias": (3 * H,),
        "own_bias": (n, 3 * H), "start": (n, H),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.7).requires_grad_()
        for name, shape in shapes.items()
    }


def twice(states: Tensor, given: list[Tensor], seed: int) -> list[Tensor]:
    """The gradient, with respect to everything, of a random mix of a nonlinear loss's gradients."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.autograd.grad((states * mixing(states.shape)).tanh().sum(), given, create_graph=True)
    mixed = sum((g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in first)
    return [*first, *torch.autograd.grad(mixed, given)]


def check_second_order(sequences: Sequences) -> None:
    given = random_inputs(sequences, 3)
    w = FastWeight(given["weight"], Dense(given["own"]))
    b = FastWeight(given["bias"], Dense(given["own_bias"]))
    got = twice(gru(given["x"], sequences, w, b, given["start"]), list(given.values()), 5)
    slow = plain_gru(
        given["x"], sequences, given["weight"] + given["own"], given["bias"] + given["own_bias"], given["start"]
    )
    for mine, theirs in zip(got, twice(slow, list(given.values()), 5), strict=True):
        close(mine, theirs, 1e-11 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_order_equals_autograd_through_plain_steps(layout: str) -> None:
    check_second_order(LAYOUTS[layout])


def test_second_order_of_each_cotangent_alone() -> None:
    """Shared weights only, zero start: every gradient differentiated by itself."""
    sequences, given = LAYOUTS["ragged"], random_inputs(LAYOUTS["ragged"], 4)
    names = ["x", "weight", "bias"]
    zero = torch.zeros_like(given["start"])
    n = sequences.n_tasks
    for name in names:
        found = []
        for states in (
            gru(given["x"], sequences, given["weight"], given["bias"]),
            plain_gru(
                given["x"], sequences, given["weight"].expand(n, -1, -1), given["bias"].expand(n, -1), zero.detach()
            ),
        ):
            (first,) = torch.autograd.grad((states * mixing(states.shape)).sum(), given[name], create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), [given[n] for n in names]))
        for mine, theirs in zip(*found, strict=True):
            close(mine, theirs, 1e-11 * max(1.0, theirs.abs().max().item()))


def test_gradgradcheck() -> None:
    sequences = packed([[3, 1], [2, 0]])
    given = random_inputs(sequences, 6)

    def run(x: Tensor, w: Tensor, own: Tensor, b: Tensor, own_b: Tensor, start: Tensor) -> Tensor:
        return gru(x, sequences, FastWeight(w, Dense(own)), FastWeight(b, Dense(own_b)), start)

    assert torch.autograd.gradcheck(run, list(given.values()))
    assert torch.autograd.gradgradcheck(run, list(given.values()))


def check_tapped_second_order(sequences: Sequences) -> None:
    """The per-task gradients that an inner step takes, differentiated once more."""
    given = random_inputs(sequences, 8)
    tap_w, tap_b = Tap(second_order=True), Tap(second_order=True)
    states = gru(
        given["x"], sequences, FastWeight(given["weight"], Dense(given["own"]), tap_w),
        FastWeight(given["bias"], Dense(given["own_bias"]), tap_b), given["start"],
    )  # fmt: skip
    ((leaf, finish_w),), ((_, finish_b),) = tap_w.notes, tap_b.notes
    (g,) = torch.autograd.grad((states * mixing(states.shape)).tanh().sum(), leaf, create_graph=True)
    mine = [finish_w(g).dense(), finish_b(g).dense()]
    own_w, own_b = given["weight"] + given["own"], given["bias"] + given["own_bias"]
    slow = plain_gru(given["x"], sequences, own_w, own_b, given["start"])
    theirs = torch.autograd.grad((slow * mixing(slow.shape)).tanh().sum(), [own_w, own_b], create_graph=True)
    found = [
        torch.autograd.grad(
            sum((part.square() * mixing(part.shape)).sum() for part in parts), list(given.values()), allow_unused=True
        )
        for parts in (mine, list(theirs))
    ]
    for one, other in zip([*mine, *found[0]], [*theirs, *found[1]], strict=True):
        close(one, other, 1e-11 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_an_inner_step_is_differentiated(layout: str) -> None:
    check_tapped_second_order(LAYOUTS[layout])


# -- the checks above are seen to fail ------------------------------------------------------------------------------


def test_a_forgotten_way_through_the_state_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "through_own", lambda *parts: None)
    monkeypatch.setattr(own_gradients, "through_own", lambda *parts: None)
    with pytest.raises(AssertionError):
        check_second_order(LAYOUTS["ragged"])
    with pytest.raises(AssertionError):
        check_tapped_second_order(LAYOUTS["ragged"])
