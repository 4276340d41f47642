"""The written-out GRU against torch.nn.GRU: forward and every gradient, shared and per-task weights, ragged lengths."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from reference.small_sequences import LAYOUTS, LENGTHS, D, H, close, mixing, packed
from torch import Tensor, nn

from metarec.core import fused
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.offsets import Dense, LowRank, Offset
from metarec.core.weights import FastWeight, Tap


def modules(n_tasks: int, seed: int = 0) -> list[nn.GRU]:
    torch.manual_seed(seed)
    return [nn.GRU(D, H, batch_first=True, dtype=torch.float64) for _ in range(n_tasks)]


def inputs(sequences: Sequences, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sequences.items.shape, D, generator=generator, dtype=torch.float64)


def reference(cells: list[nn.GRU], x: Tensor, sequences: Sequences) -> Tensor:
    """One sequence at a time through nn.GRU, states one behind the other."""
    out = [x.new_zeros(0, H)]
    for task, cell in enumerate(cells):
        for start, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True):
            if length:
                out.append(cell(x[task : task + 1, start : start + length])[0][0])
    return torch.cat(out)


def project(cell: nn.GRU, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, cell.weight_ih_l0, cell.bias_ih_l0)


def check_shared(sequences: Sequences) -> None:
    cell = modules(1)[0]
    x, x_again = inputs(sequences).requires_grad_(), inputs(sequences).requires_grad_()
    wanted = reference([cell] * sequences.n_tasks, x, sequences)
    got = gru(project(cell, x_again), sequences, cell.weight_hh_l0, cell.bias_hh_l0)
    close(got, wanted)
    weights = list(cell.parameters())
    loss = mixing(wanted.shape)
    slow = torch.autograd.grad((wanted * loss).sum(), [x, *weights])
    fast = torch.autograd.grad((got * loss).sum(), [x_again, *weights])
    for mine, theirs in zip(fast, slow, strict=True):
        close(mine, theirs, 1e-12 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_nn_gru_with_shared_weights(layout: str) -> None:
    check_shared(LAYOUTS[layout])


def test_a_heavy_task_runs_apart() -> None:
    """So that the rows of one task do not make rows for all."""
    assert sum(block.first for block in LAYOUTS["one heavy task"].plan.blocks) == 2
    assert len(LAYOUTS["one heavy task"].plan.read) == 9 * 6 + 9 * 2
    assert sum(block.first for block in LAYOUTS["ragged"].plan.blocks) == 1


@pytest.mark.parametrize("seed", range(5))
def test_rows_in_any_order(seed: int) -> None:
    check_shared(packed([random.Random(seed).sample(own, len(own)) for own in LENGTHS], shuffle=seed))


def test_nothing_to_run() -> None:
    sequences = packed([[0, 0], [0, 0]], extra_columns=2)
    assert sequences.plan.blocks == []
    x = torch.ones(2, 2, 3 * H, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(3 * H, H, dtype=torch.float64, requires_grad=True)
    bias = torch.ones(3 * H, dtype=torch.float64, requires_grad=True)
    states = gru(x, sequences, weight, bias)
    assert torch.equal(states, torch.zeros(0, H, dtype=torch.float64))
    assert not any(grad.any() for grad in torch.autograd.grad(states.sum(), [x, weight, bias]))


def per_task(cells: list[nn.GRU], name: str) -> tuple[FastWeight, Tap]:
    """The first cell's weight as the shared one, every task's difference from it as the offset."""
    shared = getattr(cells[0], name).detach()
    offset: Offset = Dense(torch.stack([getattr(cell, name).detach() - shared for cell in cells]))
    tap = Tap()
    return FastWeight(shared, offset, tap), tap


def check_per_task(sequences: Sequences) -> None:
    cells = modules(sequences.n_tasks)
    x = inputs(sequences)
    projected = torch.stack([project(cell, own) for cell, own in zip(cells, x, strict=True)]).detach().requires_grad_()
    wanted = reference(cells, x, sequences)
    weight, weight_tap = per_task(cells, "weight_hh_l0")
    bias, bias_tap = per_task(cells, "bias_hh_l0")
    got = gru(projected, sequences, weight, bias)
    close(got, wanted)
    loss = mixing(wanted.shape)
    ((weight_leaf, weight_finish),) = weight_tap.notes
    ((bias_leaf, bias_finish),) = bias_tap.notes
    fast = torch.autograd.grad((got * loss).sum(), [weight_leaf, bias_leaf, projected])
    (wanted * loss).sum().backward()
    zero = torch.zeros((), dtype=torch.float64)
    slow_w = torch.stack([zero.expand(3 * H, H) if c.weight_hh_l0.grad is None else c.weight_hh_l0.grad for c in cells])
    slow_b = torch.stack([zero.expand(3 * H) if c.bias_hh_l0.grad is None else c.bias_hh_l0.grad for c in cells])
    slow_ih = torch.stack([zero.expand(3 * H) if c.bias_ih_l0.grad is None else c.bias_ih_l0.grad for c in cells])
    close(weight_finish(fast[0]).dense(), slow_w)
    close(bias_finish(fast[1]).dense(), slow_b)
    close(fast[2].sum(1), slow_ih)  # the gradient of the input projection: its sum is the input bias's


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_nn_gru_a_task(layout: str) -> None:
    check_per_task(LAYOUTS[layout])


def test_shared_part_of_per_task_weights_has_the_summed_gradient() -> None:
    sequences = packed(LENGTHS)
    cells, x = modules(sequences.n_tasks), inputs(sequences)
    weight, _ = per_task(cells, "weight_hh_l0")
    bias, _ = per_task(cells, "bias_hh_l0")
    shared_w, shared_b = weight.shared.clone().requires_grad_(), bias.shared.clone().requires_grad_()
    projected = torch.stack([project(cell, own) for cell, own in zip(cells, x, strict=True)]).detach()
    got = gru(projected, sequences, FastWeight(shared_w, weight.offset), FastWeight(shared_b, bias.offset))
    wanted = reference(cells, x, sequences)
    loss = mixing(wanted.shape)
    fast = torch.autograd.grad((got * loss).sum(), [shared_w, shared_b])
    (wanted * loss).sum().backward()
    ran = [cell for cell in cells if cell.weight_hh_l0.grad is not None]
    close(fast[0], torch.stack([cell.weight_hh_l0.grad for cell in ran]).sum(0))
    close(fast[1], torch.stack([cell.bias_hh_l0.grad for cell in ran]).sum(0))


@pytest.mark.parametrize("offsets", [("weight",), ("bias",)])
def test_an_offset_on_one_weight_only(offsets: tuple[str, ...]) -> None:
    sequences = packed(LENGTHS)
    cells = modules(sequences.n_tasks)
    for cell in cells[1:]:  # the other weight is the first cell's for all
        with torch.no_grad():
            if "weight" not in offsets:
                cell.weight_hh_l0.copy_(cells[0].weight_hh_l0)
            if "bias" not in offsets:
                cell.bias_hh_l0.copy_(cells[0].bias_hh_l0)
    x = inputs(sequences)
    projected = torch.stack([project(cell, own) for cell, own in zip(cells, x, strict=True)])
    weight = per_task(cells, "weight_hh_l0")[0] if "weight" in offsets else cells[0].weight_hh_l0
    bias = per_task(cells, "bias_hh_l0")[0] if "bias" in offsets else cells[0].bias_hh_l0
    close(gru(projected, sequences, weight, bias), reference(cells, x, sequences))


def test_extra_padding_changes_nothing() -> None:
    plain, padded = packed(LENGTHS), packed(LENGTHS, extra_columns=3, extra_rows=2)
    cell = modules(1)[0]
    x = inputs(plain)
    wide = torch.full((x.shape[0], x.shape[1] + 3, D), 7.0, dtype=torch.float64)
    wide[:, : x.shape[1]] = x
    found = []
    for sequences, given in ((plain, x), (padded, wide)):
        states = gru(project(cell, given), sequences, cell.weight_hh_l0, cell.bias_hh_l0)
        grads = torch.autograd.grad((states * mixing(states.shape)).sum(), list(cell.parameters()))
        found.append((states, *grads))
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)


def test_order_of_tasks_is_irrelevant() -> None:
    order = [3, 0, 4, 2, 1]
    plain = packed(LENGTHS)
    mixed = Sequences(plain.items[order], plain.starts[order], plain.lengths[order])
    cell, x = modules(1)[0], inputs(plain)
    weights = (cell.weight_hh_l0, cell.bias_hh_l0)
    counts = [sum(own) for own in LENGTHS]
    by_task = gru(project(cell, x), plain, *weights).split(counts)
    wanted = torch.cat([by_task[task] for task in order])
    close(gru(project(cell, x[order]), mixed, *weights), wanted)


def test_two_backward_passes_over_one_graph_agree() -> None:
    """Nothing that the backward pass reads may be overwritten by it."""
    sequences, cell = packed(LENGTHS), modules(1)[0]
    states = gru(project(cell, inputs(sequences)), sequences, cell.weight_hh_l0, cell.bias_hh_l0)
    loss = (states * mixing(states.shape)).sum()
    first = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(cell.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradcheck() -> None:
    sequences = packed([[3, 1], [2, 0]])
    generator = torch.Generator().manual_seed(3)
    given = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 3 * H), (3 * H, H), (3 * H,))
    ]
    assert torch.autograd.gradcheck(lambda x, w, b: gru(x, sequences, w, b), given)


# -- the checks above are seen to fail ------------------------------------------------------------------------------


def test_states_of_the_wrong_sequence_are_seen() -> None:
    sequences = packed(LENGTHS)
    object.__setattr__(sequences, "plan", replace(sequences.plan, origin=sequences.plan.origin.roll(1)))
    with pytest.raises(AssertionError):
        check_shared(sequences)


def test_tasks_mixed_up_are_seen() -> None:
    sequences = packed(LENGTHS)
    object.__setattr__(sequences, "plan", replace(sequences.plan, order=torch.arange(sequences.n_tasks)))
    with pytest.raises(AssertionError):
        check_per_task(sequences)


def test_a_wrong_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lerp:
        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

        def lerp(self, n: Tensor, h: Tensor, z: Tensor, out: Tensor) -> Tensor:
            return torch.lerp(h, n, z, out=out)  # h' = z n + (1 - z) h, as some papers have it

    monkeypatch.setattr(fused, "torch", Lerp())
    with pytest.raises(AssertionError):
        check_shared(packed(LENGTHS))


def test_an_offset_of_another_form_is_refused() -> None:
    sequences, cell = packed(LENGTHS), modules(1)[0]
    offset = LowRank.of(torch.ones(5, 1, 3 * H), torch.ones(5, 1, H))
    with pytest.raises(TypeError, match="gru has no rule for an offset of LowRank"):
        gru(project(cell, inputs(sequences)), sequences, FastWeight(cell.weight_hh_l0, offset), cell.bias_hh_l0)
