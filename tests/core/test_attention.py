"""Packed attention against torch's own, one sequence at a time: values and gradients of both orders, both kernels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import attention as module
from metarec.core.attention import Attention, Layout, Prefix, differentiated_twice, length_classes
from metarec.core.batch import Sequences
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows
from metarec.core.weights import Factored, FastWeight, Tap

D, HEADS = 6, 2
SHAPES = {"in_weight": (3 * D, D), "in_bias": (3 * D,), "out_weight": (D, D), "out_bias": (D,)}


def made(starts: list[list[int]], lengths: list[list[int]]) -> Sequences:
    ends = [s + n for own in zip(starts, lengths, strict=True) for s, n in zip(*own, strict=True)]
    return Sequences(
        torch.ones(len(starts), max(*ends, 1), dtype=torch.int64), torch.tensor(starts), torch.tensor(lengths)
    )


LAYOUTS = {
    "ragged": made([[0, 5, 8], [0, 0, 0], [0, 0, 0], [7, 0, 9]], [[5, 3, 3], [1, 0, 0], [0, 0, 0], [2, 7, 1]]),
    "overlapping": made([[0, 2, 4, 1], [0, 5, 7, 0], [0, 0, 0, 0]], [[5, 5, 5, 2], [4, 2, 2, 0], [1, 0, 0, 0]]),
    "one task": made([[0, 4, 7, 8]], [[4, 3, 1, 12]]),
}


@pytest.fixture(params=["one class", "many classes and chunks"], autouse=True)
def classes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with all sequences padded to the longest, tasks to the largest; and with as little padding as can be."""
    cost = 1e9 if request.param == "one class" else 0
    monkeypatch.setattr(module, "CLASS_COST", cost)
    monkeypatch.setattr(module, "CHUNK_COST", cost)
    for sequences in LAYOUTS.values():
        vars(sequences).pop("_found", None)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def weights(n_tasks: int) -> dict[str, Tensor]:
    """Weights of each task, [T, ...]."""
    return {name: normal(n_tasks, *shape, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}


def states_of(y: Tensor, layout: Layout) -> Tensor:
    return y.flatten(0, 1)[layout.state]


def reference(x: Tensor, sequences: Sequences, own: dict[str, Tensor]) -> Tensor:
    """x [T, M, D] of events -> [S, D], one sequence at a time through torch."""
    out = [x.new_zeros(0, D)]
    for task in range(sequences.n_tasks):
        w_in, b_in, w_out, b_out = (value[task] for value in own.values())
        for start, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True):
            if length:
                part = x[task, start : start + length, None]
                later = torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1)
                y, _ = F.multi_head_attention_forward(
                    part, part, part, D, HEADS, w_in, b_in, None, None, False, 0.0, w_out, b_out, attn_mask=later,
                )  # fmt: skip
                out.append(y[:, 0])
    return torch.cat(out)


def packed(
    x: Tensor, sequences: Sequences, own: dict[str, Tensor], prefix: Prefix | None = None, twice: bool = True
) -> Tensor:
    """The same through `Attention`; the weights of task 0 are the shared ones."""
    given = [FastWeight(value[0], Dense(value - value[0])) for value in own.values()]
    layout = Layout.of(sequences)
    return states_of(Attention(*given, HEADS)(layout.gather(x), layout, twice=twice, prefix=prefix), layout)  # type: ignore[arg-type]


def mixing(shape: torch.Size) -> Tensor:
    return normal(*shape, seed=9).detach()


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == wanted.shape
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    assert (got - wanted).abs().max().item() <= tolerance * scale if got.numel() else True


def check(sequences: Sequences, twice: bool) -> None:
    x, own = normal(*sequences.items.shape, D, seed=7), weights(sequences.n_tasks)
    wanted, got = reference(x, sequences, own), packed(x, sequences, own, twice=twice)
    close(got, wanted)
    given = [x, *own.values()]
    for mine, theirs in zip(
        *(torch.autograd.grad((y * mixing(y.shape)).sum(), given) for y in (got, wanted)), strict=True
    ):
        close(mine, theirs)


KERNELS = {"plain": True, "fused": False}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_torch_one_sequence_at_a_time(name: str, kernel: str) -> None:
    check(LAYOUTS[name], KERNELS[kernel])


def test_the_kernels_are_two_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("_fused", "_plain"):
        true: Callable[..., Tensor] = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *qkv, name=name, true=true: (ran.append(name), true(*qkv))[1])
    sequences = LAYOUTS["ragged"]
    x, own = normal(*sequences.items.shape, D, seed=7), weights(sequences.n_tasks)
    found = {}
    for twice in (False, True):
        ran.clear()
        found[twice] = packed(x, sequences, own, twice=twice)
        assert set(ran) == {"_plain" if twice else "_fused"}
    close(found[False], found[True])


def check_second_order(sequences: Sequences, twice: bool = True) -> None:
    x, own = normal(*sequences.items.shape, D, seed=7), weights(sequences.n_tasks)
    given = [x, *own.values()]
    found = []
    for y in (packed(x, sequences, own, twice=twice), reference(x, sequences, own)):
        first = torch.autograd.grad((y * mixing(y.shape)).tanh().sum(), given, create_graph=True)
        mixed = sum((g * mixing(g.shape)).sum() for g in first)
        found.append([*first, *torch.autograd.grad(mixed, given)])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs, 1e-11)


@pytest.mark.parametrize("name", LAYOUTS)
def test_second_order_equals_autograd_through_torchs_own(name: str) -> None:
    check_second_order(LAYOUTS[name])


def test_the_fused_kernel_refuses_to_be_differentiated_twice() -> None:
    """So that a wrong choice is an error, not a wrong number."""
    with pytest.raises(RuntimeError, match=r"derivative .* is not implemented"):
        check_second_order(LAYOUTS["ragged"], twice=False)


def prefix_reference(x: Tensor, sequences: Sequences, own: dict[str, Tensor], prefix: Prefix) -> Tensor:
    """[S, D]: what the prefix tokens add, for one query, head and token at a time."""
    out = [x.new_zeros(0, D)]
    size = D // HEADS
    for task in range(sequences.n_tasks):
        w_in, b_in, w_out, _ = (value[task] for value in own.values())
        events = [
            event
            for start, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True)
            for event in range(start, start + length)
        ]
        keys = [w_in[D : 2 * D] @ key for key in prefix.keys[task]]
        values = [w_in[2 * D :] @ value for value in prefix.values[task]]
        for event in events:
            q, parts = w_in[:D] @ x[task, event] + b_in[:D], []
            for head in range(HEADS):
                at = slice(head * size, head * size + size)
                mass = torch.stack([q[at] @ key[at] / size**0.5 for key in keys]).exp()
                parts.append(sum(m * value[at] for m, value in zip(mass / mass.sum(), values, strict=True)))
            out.append((w_out @ torch.cat(parts))[None])
    return torch.cat(out)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_prefix_term_and_its_gradients_of_both_orders(name: str) -> None:
    sequences = LAYOUTS[name]
    x, own = normal(*sequences.items.shape, D, seed=7), weights(sequences.n_tasks)
    prefix = Prefix(normal(sequences.n_tasks, 3, D, seed=11), normal(sequences.n_tasks, 3, D, seed=12))
    given = [x, *own.values(), prefix.keys, prefix.values]
    found = []
    for y in (
        packed(x, sequences, own, prefix),
        reference(x, sequences, own) + prefix_reference(x, sequences, own, prefix),
    ):
        first = torch.autograd.grad((y * mixing(y.shape)).tanh().sum(), given, create_graph=True)
        found.append([y, *first, *torch.autograd.grad(sum((g * mixing(g.shape)).sum() for g in first), given)])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs, 1e-11)


def test_a_zero_value_adds_nothing_but_has_a_gradient() -> None:
    sequences = LAYOUTS["ragged"]
    x, own = normal(*sequences.items.shape, D, seed=7), weights(sequences.n_tasks)
    prefix = Prefix(normal(sequences.n_tasks, 2, D, seed=11), torch.zeros(sequences.n_tasks, 2, D).double())
    got = packed(x, sequences, own, Prefix(prefix.keys, prefix.values.requires_grad_()))
    assert torch.equal(got, packed(x, sequences, own))
    (grad,) = torch.autograd.grad((got * mixing(got.shape)).sum(), prefix.values)
    seen = sequences.lengths.sum(1) > 0
    assert grad[seen].abs().flatten(1).max(1).values.min() > 0.01
    assert (grad[:, 0] - grad[:, 1])[seen].abs().max() > 0.01  # the tokens do not stay alike


def test_a_later_event_changes_nothing_earlier() -> None:
    sequences = made([[0, 4]], [[4, 5]])
    x, own = normal(1, 9, D, seed=7).detach(), weights(1)
    before = packed(x, sequences, own)
    x[0, 2], x[0, 8] = 9.0, -9.0
    same = (packed(x, sequences, own) - before).abs().max(1).values == 0
    assert same.tolist() == [True, True, False, False, True, True, True, True, False]


def test_nothing_to_attend_to() -> None:
    sequences = made([[0, 0], [0, 0]], [[0, 0], [0, 0]])
    x, own = normal(2, 1, D, seed=7), weights(2)
    y = packed(x, sequences, own)
    assert y.shape == (0, D)
    assert not any(grad.any() for grad in torch.autograd.grad(y.sum(), [x, own["out_weight"]], materialize_grads=True))


def test_rows_in_any_order_and_extra_padding() -> None:
    starts, lengths = [0, 2, 4, 1, 0], [5, 5, 5, 2, 0]
    x, own = normal(1, 9, D, seed=7), weights(1)
    for seed in range(4):
        rows = random.Random(seed).sample(range(5), 5)
        sequences = made([[starts[r] for r in rows] + [0]], [[lengths[r] for r in rows] + [0]])
        close(packed(x, sequences, own), reference(x, sequences, own))


# -- the layout ---------------------------------------------------------------------------------------------------


def cheapest(numbers: list[int]) -> float:
    """Over every way to cut the lengths into neighbouring classes."""
    sizes = [size for size, number in enumerate(numbers) if size and number]
    if not sizes:
        return 0
    found = []
    for cut in range(2 ** (len(sizes) - 1)):
        edges = [0, *(i + 1 for i in range(len(sizes) - 1) if cut >> i & 1), len(sizes)]
        classes = [(sum(numbers[size] for size in sizes[a:b]), sizes[b - 1]) for a, b in pairwise(edges)]
        found.append(cost(classes))
    return min(found)


def cost(classes: list[tuple[int, int]]) -> float:
    return sum(number * size * (module.PLACE_COST + size) + module.CLASS_COST for number, size in classes)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_the_cheapest(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    generator = random.Random(seed)
    numbers = [generator.choice([0, 1, 3, 40]) for _ in range(11)]
    classes = length_classes(numbers)
    assert sum(number for number, _ in classes) == sum(numbers[1:])
    assert cost(classes) == cheapest(numbers)


def test_a_task_of_many_tokens_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    many = made([[0] * 10, *[[0] * 10] * 30], [[9] * 10, *[[3, 2] + [0] * 8] * 30])
    layout = Layout.of(many)
    assert layout.owner is not None
    assert layout.owner[-30:].tolist() == list(range(1, 31))
    assert len(layout.event) <= 300 < 31 * 90  # 240 states
    alike = Layout.of(made([[0, 0]] * 4, [[3, 2], [4, 1], [4, 2], [3, 3]]))
    assert alike.owner is None
    assert alike.width == 6
    assert Layout.of(LAYOUTS["one task"]).owner is None  # as in pretraining


def test_weights_of_tasks_as_those_of_chunks() -> None:
    sequences = LAYOUTS["ragged"]
    layout, n = Layout.of(sequences), sequences.n_tasks
    ids = torch.tensor([[0, 2], [1, 4], [3, 3], [2, 5]])
    low, rows = LowRank.of(normal(n, 2, 7, seed=1), normal(n, 2, D, seed=2)), Rows.of(ids, normal(n, 2, D, seed=3), 7)
    shared, owner = normal(7, D, seed=4), torch.arange(n) if layout.owner is None else layout.owner
    forms: list[Offset] = [low, rows, Both(low, rows), Dense(normal(n, 7, D, seed=5))]
    for form in forms:
        spread = layout.spread(FastWeight(shared, form))
        assert isinstance(spread, FastWeight)
        assert torch.equal(spread.dense(), FastWeight(shared, form).dense()[owner])
    factors = Dense(normal(n, 2, D, seed=8)), Dense(normal(n, 7, 2, seed=9))
    factored = Factored(shared, *(FastWeight(0 * form.value[0], form) for form in factors), 0.7)
    spread = layout.spread(factored)
    assert isinstance(spread, Factored)
    assert torch.equal(spread.dense(), factored.dense()[owner])
    tap = Tap()
    spread = layout.spread(FastWeight(shared, None, tap))
    x = normal(len(owner), layout.width, D, seed=6)
    loss = (module.linear(x, spread) * normal(len(owner), layout.width, 7, seed=7)).sum()  # type: ignore[attr-defined]
    ((at, finish),) = tap.notes
    wanted = torch.zeros(n, 7, D, dtype=torch.float64)
    for chunk, task in enumerate(owner.tolist()):
        wanted[task] += normal(len(owner), layout.width, 7, seed=7)[chunk].T @ x[chunk]
    close(finish(torch.autograd.grad(loss, at)[0]).dense(), wanted)


def test_the_layout_is_made_once_for_a_batch() -> None:
    sequences = LAYOUTS["overlapping"]
    assert Layout.of(sequences) is Layout.of(sequences)


# -- which kernel --------------------------------------------------------------------------------------------------


def test_second_order_is_known_from_the_weights() -> None:
    plain = torch.zeros(2, 2, requires_grad=True)
    assert not differentiated_twice([plain, FastWeight(plain), FastWeight(plain, None, Tap())])
    assert differentiated_twice([plain, FastWeight(plain, None, Tap(second_order=True))])
    ids, one = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 2)
    low, rows = LowRank.of(one, one), Rows(ids, one, 2)
    forms: list[Offset] = [Dense(torch.zeros(1, 2, 2)), low, rows, Both(low, rows)]
    assert not differentiated_twice([FastWeight(plain, form) for form in forms])
    one.requires_grad_()
    for form in forms[1:]:
        assert differentiated_twice([FastWeight(plain, form)])


# -- the checks above are seen to fail ------------------------------------------------------------------------------


def broken(sequences: Sequences, **changes: Tensor) -> Sequences:
    found = made(sequences.starts.tolist(), sequences.lengths.tolist())
    vars(found)["_found"] = {module._layout: replace(Layout.of(sequences), **changes)}
    return found


@pytest.mark.parametrize("part", ["event", "token", "place"])
def test_a_misplaced_token_is_seen(part: str) -> None:
    sequences = LAYOUTS["ragged"]
    with pytest.raises(AssertionError):
        check(broken(sequences, **{part: getattr(Layout.of(sequences), part).roll(1)}), True)


def test_chunks_of_the_wrong_task_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_COST", 0)
    sequences = LAYOUTS["ragged"]
    vars(sequences).pop("_found", None)
    owner = Layout.of(sequences).owner
    assert owner is not None
    with pytest.raises(AssertionError):
        check(broken(sequences, owner=owner.roll(1)), True)


def test_a_kernel_that_looks_ahead_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_plain", lambda q, k, v: F.scaled_dot_product_attention(q, k, v))
    with pytest.raises(AssertionError):
        check(LAYOUTS["ragged"], True)
    with pytest.raises(AssertionError):
        test_a_later_event_changes_nothing_earlier()


def test_a_missing_scale_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "_plain", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1)
    )
    with pytest.raises(AssertionError):
        check(LAYOUTS["one task"], True)


def test_a_graph_cut_in_second_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = module._plain

    def cut(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k * 1
        k.register_hook(lambda grad: grad.detach())
        return true(q, k, v)

    monkeypatch.setattr(module, "_plain", cut)
    check(LAYOUTS["ragged"], True)
    with pytest.raises(AssertionError):
        check_second_order(LAYOUTS["ragged"])
