"""The written-out GRU against torch.nn.GRU: forward and every gradient, shared and per-task weights, ragged lengths."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metarec.core import fused, own_gradients
from metarec.core import gru as gru_module
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.offsets import Dense, LowRank, Offset
from metarec.core.weights import FastWeight, Tap

D, H = 4, 5
LENGTHS = [[5, 3, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0], [7, 7, 2, 1], [4, 0, 0, 0]]  # one task has no event at all


def packed(
    lengths: list[list[int]], extra_columns: int = 0, extra_rows: int = 0, shuffle: int | None = None
) -> Sequences:
    """Sequences of these lengths, one behind the other; `shuffle` seeds another order of rows in memory and in time."""
    width = max(map(sum, lengths)) + extra_columns
    items = torch.zeros(len(lengths), width, dtype=torch.int64)
    starts = torch.zeros(len(lengths), len(lengths[0]) + extra_rows, dtype=torch.int64)
    sizes = torch.zeros_like(starts)
    for task, own in enumerate(lengths):
        places = list(range(len(own)))
        if shuffle is not None:
            random.Random(shuffle + task).shuffle(places)
        at = 0
        for row in places:
            starts[task, row], sizes[task, row] = at, own[row]
            items[task, at : at + own[row]] = 1 + torch.arange(own[row])
            at += own[row]
    return Sequences(items, starts, sizes)


def modules(n_tasks: int, seed: int = 0) -> list[nn.GRU]:
    torch.manual_seed(seed)
    return [nn.GRU(D, H, batch_first=True, dtype=torch.float64) for _ in range(n_tasks)]


OVERLAPPING = Sequences(  # windows of one session: sequences of their own over the same events
    torch.ones(3, 9, dtype=torch.int64),
    torch.tensor([[0, 2, 4, 1], [0, 5, 7, 0], [0, 0, 0, 0]]),
    torch.tensor([[5, 5, 5, 2], [4, 2, 2, 0], [1, 0, 0, 0]]),
)
LAYOUTS = {
    "ragged": packed(LENGTHS),
    "overlapping": OVERLAPPING,
    "one heavy task": packed([[9] * 6, *[[2] + [0] * 5] * 9]),
}


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


def mixing(shape: torch.Size) -> Tensor:
    """Fixed numbers that a result is multiplied by, so that every entry of it has another gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() <= tolerance if got.numel() else True


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


# -- second order -------------------------------------------------------------------------------------------------


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


def test_a_forgotten_way_through_the_state_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "through_own", lambda *parts: None)
    monkeypatch.setattr(own_gradients, "through_own", lambda *parts: None)
    with pytest.raises(AssertionError):
        check_second_order(LAYOUTS["ragged"])
    with pytest.raises(AssertionError):
        check_tapped_second_order(LAYOUTS["ragged"])


def test_an_offset_of_another_form_is_refused() -> None:
    sequences, cell = packed(LENGTHS), modules(1)[0]
    offset = LowRank.of(torch.ones(5, 1, 3 * H), torch.ones(5, 1, H))
    with pytest.raises(TypeError, match="gru has no rule for an offset of LowRank"):
        gru(project(cell, inputs(sequences)), sequences, FastWeight(cell.weight_hh_l0, offset), cell.bias_hh_l0)
