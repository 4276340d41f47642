"""The LSTM over packed sequences against torch.nn.LSTM: states, gradients, own weights of tasks, second derivatives."""

from __future__ import annotations

import pytest
import torch
from reference.small_sequences import LAYOUTS, LENGTHS, D, H, close, mixing, packed
from torch import Tensor, nn

from metarec.core.batch import Sequences
from metarec.core.lstm import lstm
from metarec.core.offsets import Dense
from metarec.core.weights import FastWeight, Tap


def modules(n_tasks: int) -> list[nn.LSTM]:
    torch.manual_seed(0)
    return [nn.LSTM(D, H, batch_first=True, dtype=torch.float64) for _ in range(n_tasks)]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(cells: list[nn.LSTM], x: Tensor, sequences: Sequences, start: Tensor | None = None) -> Tensor:
    """One sequence at a time, states one behind the other."""
    out = [x.new_zeros(0, H)]
    for task, cell in enumerate(cells):
        for begin, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True):
            if length:
                h = x.new_zeros(1, 1, H) if start is None else start[task][None, None]
                out.append(cell(x[task : task + 1, begin : begin + length], (h, torch.zeros_like(h)))[0][0])
    return torch.cat(out)


def project(cell: nn.LSTM, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, cell.weight_ih_l0, cell.bias_ih_l0)


def check_shared(layout: str, with_start: bool) -> None:
    sequences, cell = LAYOUTS[layout], modules(1)[0]
    x = normal(*sequences.items.shape, D).requires_grad_()
    start = normal(sequences.n_tasks, H, seed=2).requires_grad_() if with_start else None
    wanted = reference([cell] * sequences.n_tasks, x, sequences, start)
    got = lstm(project(cell, x), sequences, cell.weight_hh_l0, cell.bias_hh_l0, start)
    close(got, wanted)
    leaves = [x, *cell.parameters(), *([] if start is None else [start])]
    mixed = mixing(wanted.shape)
    found = [torch.autograd.grad((states * mixed).sum(), leaves) for states in (got, wanted)]
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs, 1e-12 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_nn_lstm_with_shared_weights(layout: str, with_start: bool) -> None:
    check_shared(layout, with_start)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_nn_lstm_a_task(layout: str) -> None:
    """Offsets of each task, and each task's own gradient at the tap."""
    sequences = LAYOUTS[layout]
    cells, x = modules(sequences.n_tasks), normal(*sequences.items.shape, D)
    wanted = reference(cells, x, sequences)
    projected = torch.stack([project(cell, own) for cell, own in zip(cells, x, strict=True)]).detach()
    weights = []
    for name in ("weight_hh_l0", "bias_hh_l0"):
        each = torch.stack([getattr(cell, name).detach() for cell in cells])
        weights.append(FastWeight(each[0], Dense(each - each[0]), Tap()))
    got = lstm(projected, sequences, *weights)
    close(got, wanted)
    mixed = mixing(wanted.shape)
    (wanted * mixed).sum().backward()
    notes = [tap.notes[0] for tap in (w.tap for w in weights) if tap is not None]
    grads = torch.autograd.grad((got * mixed).sum(), [leaf for leaf, _ in notes])
    for name, (_, finish), grad in zip(("weight_hh_l0", "bias_hh_l0"), notes, grads, strict=True):
        zero = torch.zeros_like(getattr(cells[0], name))
        slow = torch.stack([zero if getattr(c, name).grad is None else getattr(c, name).grad for c in cells])
        close(finish(grad).dense(), slow)


def test_nothing_to_run() -> None:
    sequences = packed([[0, 0], [0, 0]], extra_columns=2)
    leaves = [torch.ones(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 4 * H), (4 * H, H), (4 * H,))]
    states = lstm(leaves[0], sequences, leaves[1], leaves[2])
    assert torch.equal(states, torch.zeros(0, H, dtype=torch.float64))
    assert not any(grad.any() for grad in torch.autograd.grad(states.sum(), leaves))


def test_second_derivatives_are_those_of_finite_differences() -> None:
    sequences = packed(LENGTHS)
    shapes = ((*sequences.items.shape, 4 * H), (4 * H, H), (4 * H,), (sequences.n_tasks, H))
    leaves = [0.5 * normal(*s, seed=3 + i) for i, s in enumerate(shapes)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def states(x: Tensor, weight: Tensor, bias: Tensor, start: Tensor) -> Tensor:
        return lstm(x, sequences, weight, bias, start)

    assert torch.autograd.gradgradcheck(states, leaves, fast_mode=True)


def test_a_cell_that_forgets_by_another_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: input and forget gate change places."""
    true = Tensor.chunk

    def swapped(self: Tensor, n: int, dim: int) -> tuple[Tensor, ...]:
        i, f, g, o = true(self, n, dim)
        return f, i, g, o

    monkeypatch.setattr(Tensor, "chunk", swapped)
    with pytest.raises(AssertionError):
        check_shared("ragged", False)
