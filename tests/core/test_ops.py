"""Operators against autograd on explicit per-task copies, for every form of offset, with taps and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import ops
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows, tensors
from metarec.core.ops import embed, layer_norm, linear, linear_rows
from metarec.core.states import score_items
from metarec.core.weights import Factored, FastWeight, Tap, Weight, fast, own

T, N, OUT, IN, N_ROWS = 3, 5, 6, 4, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT_OFFSETS: dict[str, Offset | None] = {
    "none": None,
    "dense": Dense(normal(T, OUT, IN, seed=1)),
    "low rank": LowRank.of(normal(T, 2, OUT, seed=2), normal(T, 2, IN, seed=3)),
    "blocks": LowRank(tuple((normal(T, r, OUT, seed=30 + r), normal(T, r, IN, seed=40 + r)) for r in (1, 2, 3))),
}
BIAS_OFFSETS: dict[str, Offset | None] = {"none": None, "dense": Dense(normal(T, OUT, seed=4))}


def copies(shared: Tensor, offset: Offset | None) -> Tensor:
    """Each task's own weight, a leaf."""
    own = shared.detach().expand(T, *shared.shape) if offset is None else shared.detach() + offset.dense()
    return own.clone().requires_grad_()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def of_taps(loss: Tensor, *taps: Tap) -> list[Tensor]:
    """Each tap's gradient, dense: differentiated at the noted nodes as the inner loop does."""
    found = []
    for tap in taps:
        total = None
        for at, finish in tap.notes:
            (grad,) = torch.autograd.grad(loss, at, retain_graph=True)
            part = finish(grad).dense()
            total = part if total is None else total + part
        assert total is not None
        found.append(total)
    return found


def check_linear(weight_offset: Offset | None, bias_offset: Offset | None) -> None:
    x, mix = normal(T, N, IN, seed=5).requires_grad_(), normal(T, N, OUT, seed=6)
    weight, bias = normal(OUT, IN, seed=7).requires_grad_(), normal(OUT, seed=8).requires_grad_()
    own_w, own_b = copies(weight, weight_offset), copies(bias, bias_offset)
    wanted = torch.stack([F.linear(x[t], own_w[t], own_b[t]) for t in range(T)])
    slow_x, slow_w, slow_b = torch.autograd.grad((wanted.tanh() * mix).sum(), [x, own_w, own_b])

    # shared parts: the gradient is the sum over tasks (this is the first-order meta-gradient)
    got = linear(x, FastWeight(weight, weight_offset), FastWeight(bias, bias_offset))
    close(got, wanted)
    fast = torch.autograd.grad((got.tanh() * mix).sum(), [x, weight, bias])
    for mine, theirs in zip(fast, (slow_x, slow_w.sum(0), slow_b.sum(0)), strict=True):
        close(mine, theirs)

    # taps: each task's own gradient, with nothing shared differentiated
    w_tap, b_tap = Tap(), Tap()
    got = linear(
        x.detach(),
        FastWeight(weight.detach(), weight_offset, w_tap),
        FastWeight(bias.detach(), bias_offset, b_tap),
    )
    for mine, theirs in zip(of_taps((got.tanh() * mix).sum(), w_tap, b_tap), (slow_w, slow_b), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("bias_offset", BIAS_OFFSETS)
@pytest.mark.parametrize("weight_offset", WEIGHT_OFFSETS)
def test_linear(weight_offset: str, bias_offset: str) -> None:
    check_linear(WEIGHT_OFFSETS[weight_offset], BIAS_OFFSETS[bias_offset])


def test_linear_without_bias_and_with_plain_tensors() -> None:
    x, weight, bias = normal(T, N, IN), normal(OUT, IN), normal(OUT)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_a_weight_used_twice_has_both_gradients() -> None:
    weight, tap = normal(IN, IN, seed=1), Tap()
    x, own = normal(T, N, IN, seed=2), copies(weight, None)
    slow = torch.stack([F.linear(F.linear(x[t], own[t]).tanh(), own[t]) for t in range(T)])
    (wanted,) = torch.autograd.grad(slow.square().sum(), own)
    fast = FastWeight(weight, None, tap)
    (got,) = of_taps(linear(linear(x, fast).tanh(), fast).square().sum(), tap)
    close(got, wanted)


IDS = torch.tensor([[1, 3, 3, 7], [0, 2, 1, 1], [5, 5, 5, 5]])


@pytest.mark.parametrize("seen", [None, [[3, 1], [6, 6], [5, 7]]], ids=["none", "rows"])
def test_embed(seen: list[list[int]] | None) -> None:
    check_embed(seen)


def check_embed(seen: list[list[int]] | None) -> None:
    table, mix = normal(N_ROWS, IN, seed=1).requires_grad_(), normal(T, 4, IN, seed=2)
    offset = None if seen is None else Rows.of(torch.tensor(seen), normal(T, 2, IN, seed=3), N_ROWS)
    own = copies(table, offset)
    wanted = torch.stack([own[t][IDS[t]] for t in range(T)])
    (slow,) = torch.autograd.grad((wanted.tanh() * mix).sum(), own)

    got = embed(IDS, FastWeight(table, offset))
    close(got, wanted)
    (fast,) = torch.autograd.grad((got.tanh() * mix).sum(), table)
    close(fast, slow.sum(0))

    tap = Tap()
    got = embed(IDS, FastWeight(table.detach(), offset, tap))
    (own_grad,) = of_taps((got.tanh() * mix).sum(), tap)
    close(own_grad, slow)


def test_embed_with_a_plain_table() -> None:
    table = normal(N_ROWS, IN)
    assert torch.equal(embed(IDS, table), table[IDS])


def test_a_wrong_gradient_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the bias gradient as a mean over rows."""

    class Mean(Dense):
        def __init__(self, value: Tensor) -> None:
            super().__init__(value / N)

    monkeypatch.setattr(ops, "Dense", Mean)
    with pytest.raises(AssertionError):
        check_linear(None, None)


def test_a_forgotten_offset_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "look_up", lambda self, ids: torch.zeros(*ids.shape, IN, dtype=torch.float64))
    with pytest.raises(AssertionError):
        check_embed([[3, 1], [6, 6], [5, 7]])


LOW = LowRank.of(normal(T, 2, N_ROWS, seed=4), normal(T, 2, IN, seed=5))
SEEN = Rows.of(torch.tensor([[3, 1], [6, 6], [5, 7]]), normal(T, 2, IN, seed=3), N_ROWS)
TABLE_OFFSETS: dict[str, Offset] = {
    "dense": Dense(normal(T, N_ROWS, IN, seed=6)), "low rank": LOW, "rows": SEEN, "both": Both(LOW, SEEN)
}  # fmt: skip


@pytest.mark.parametrize("offset", TABLE_OFFSETS)
def test_a_table_that_is_looked_up_and_multiplied_by(offset: str) -> None:
    """Tied weights: every form of offset under both operators, and the gradients of both uses together."""
    table, x = normal(N_ROWS, IN, seed=1), normal(T, N, IN, seed=2)
    own, tap = copies(table, TABLE_OFFSETS[offset]), Tap()
    fast = FastWeight(table, TABLE_OFFSETS[offset], tap)
    y, e = linear(x, fast), embed(IDS, fast)
    wanted_y, wanted_e = torch.einsum("tni,toi->tno", x, own), torch.stack([own[t][IDS[t]] for t in range(T)])
    close(y, wanted_y)
    close(e, wanted_e)
    (slow,) = torch.autograd.grad(wanted_y.tanh().sum() + wanted_e.sin().sum(), own)
    close(of_taps(y.tanh().sum() + e.sin().sum(), tap)[0], slow)


@pytest.mark.parametrize("moved", [False, True])
def test_layer_norm(moved: bool) -> None:
    x, mix = normal(T, N, IN, seed=1).requires_grad_(), normal(T, N, IN, seed=2)
    w, b = normal(IN, seed=3), normal(IN, seed=4)
    offsets = (Dense(normal(T, IN, seed=5)), Dense(normal(T, IN, seed=6))) if moved else (None, None)
    own_w, own_b = copies(w, offsets[0]), copies(b, offsets[1])
    wanted = torch.stack([F.layer_norm(x[t], (IN,), own_w[t], own_b[t]) for t in range(T)])
    slow = torch.autograd.grad((wanted.tanh() * mix).sum(), [own_w, own_b, x])
    taps = Tap(), Tap()
    got = layer_norm(x, FastWeight(w, offsets[0], taps[0]), FastWeight(b, offsets[1], taps[1]))
    close(got, wanted)
    loss = (got.tanh() * mix).sum()
    for mine, theirs in zip([*of_taps(loss, *taps), *torch.autograd.grad(loss, x)], slow, strict=True):
        close(mine, theirs)
    close(layer_norm(x, w, b), F.layer_norm(x, (IN,), w, b))


COLUMNS = torch.tensor([0, 3, 6, 7])
EACH = torch.tensor([[0, 3, 3, 7, 1], [2, 2, 2, 2, 2], [5, 0, 6, 7, 5]])  # one row of the table for each row of x
ALL_OFFSETS: dict[str, Offset | None] = {"none": None, **TABLE_OFFSETS}
ROWS_BIAS: dict[str, Offset | None] = {"none": None, "dense": Dense(normal(T, N_ROWS, seed=9))}


def chosen(whole: Tensor, rows: Tensor) -> Tensor:
    """Of whole [T, N, out]: columns [C], or one for each row [T, N]."""
    return whole[..., rows] if rows.dim() == 1 else whole.gather(2, rows[..., None])[..., 0]


def check_linear_rows(w_offset: Offset | None, b_offset: Offset | None, rows: Tensor) -> None:
    x = normal(T, N, IN, seed=5).requires_grad_()
    weight, bias = normal(N_ROWS, IN, seed=7).requires_grad_(), normal(N_ROWS, seed=8).requires_grad_()
    own_w, own_b = copies(weight, w_offset), copies(bias, b_offset)
    wanted = chosen(torch.einsum("tni,toi->tno", x, own_w) + own_b[:, None, :], rows)
    mix = normal(*wanted.shape, seed=6)
    slow_x, slow_w, slow_b = torch.autograd.grad((wanted.tanh() * mix).sum(), [x, own_w, own_b])

    got = linear_rows(x, FastWeight(weight, w_offset), FastWeight(bias, b_offset), rows)
    close(got, wanted)
    fast = torch.autograd.grad((got.tanh() * mix).sum(), [x, weight, bias])
    for mine, theirs in zip(fast, (slow_x, slow_w.sum(0), slow_b.sum(0)), strict=True):
        close(mine, theirs)

    w_tap, b_tap = Tap(), Tap()
    got = linear_rows(
        x.detach(), FastWeight(weight.detach(), w_offset, w_tap), FastWeight(bias.detach(), b_offset, b_tap), rows
    )
    for mine, theirs in zip(of_taps((got.tanh() * mix).sum(), w_tap, b_tap), (slow_w, slow_b), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("rows", [COLUMNS, EACH], ids=["candidates", "one a row"])
@pytest.mark.parametrize("b_offset", ROWS_BIAS)
@pytest.mark.parametrize("w_offset", ALL_OFFSETS)
def test_linear_rows(w_offset: str, b_offset: str, rows: Tensor) -> None:
    check_linear_rows(ALL_OFFSETS[w_offset], ROWS_BIAS[b_offset], rows)


@pytest.mark.parametrize("rows", [COLUMNS, EACH], ids=["candidates", "one a row"])
@pytest.mark.parametrize("offset", ["dense", "low rank", "both"])
def test_linear_rows_twice(offset: str, rows: Tensor) -> None:
    """A function of each task's own gradient, differentiated by what the gradient was made from."""
    x, weight = normal(T, N, IN, seed=5).requires_grad_(), normal(N_ROWS, IN, seed=7).requires_grad_()
    bias = normal(N_ROWS, seed=8).requires_grad_()
    own_offset = TABLE_OFFSETS[offset]
    leaf = (own_offset.value if isinstance(own_offset, Dense) else LOW.blocks[0][0]).requires_grad_()
    own_w, own_b = weight + own_offset.dense(), bias.expand(T, -1)
    slow = chosen(torch.einsum("tni,toi->tno", x, own_w) + own_b[:, None, :], rows)
    slow_grads = torch.autograd.grad(slow.tanh().sum(), [own_w, own_b], create_graph=True)
    wanted = torch.autograd.grad(sum(grad.sin().sum() for grad in slow_grads), [x, weight, bias, leaf])

    taps = Tap(second_order=True), Tap(second_order=True)
    fast = linear_rows(x, FastWeight(weight, own_offset, taps[0]), FastWeight(bias, None, taps[1]), rows)
    notes = [note for tap in taps for note in tap.notes]
    found = torch.autograd.grad(fast.tanh().sum(), [at for at, _ in notes], create_graph=True)
    grads = [finish(grad).dense() for (_, finish), grad in zip(notes, found, strict=True)]
    for mine, theirs in zip(
        torch.autograd.grad(sum(grad.sin().sum() for grad in grads), [x, weight, bias, leaf]), wanted, strict=True
    ):
        close(mine, theirs)
    leaf.requires_grad_(False)


def test_linear_rows_keeps_only_its_rows_and_may_have_no_bias_or_one_in_another_order() -> None:
    x, weight, tap = normal(T, N, IN), normal(N_ROWS, IN, seed=1), Tap()
    got = linear_rows(x, FastWeight(weight, None, tap), None, COLUMNS)
    close(got, F.linear(x, weight)[..., COLUMNS])
    ((at, finish),) = tap.notes
    gradient = finish(torch.autograd.grad(got.sum(), at)[0])
    assert isinstance(gradient, Rows)
    assert gradient.values.shape == (T, len(COLUMNS), IN)
    bias = normal(N_ROWS - 1, seed=2)  # of a table with one row more in front
    rows = torch.tensor([1, 4])
    close(linear_rows(x, weight, bias, rows, rows - 1), F.linear(x, weight[1:], bias)[..., rows - 1])


@pytest.mark.parametrize("rows", [[3, 0], [2, 2]])
def test_linear_rows_refuses_rows_that_do_not_rise(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="rows must rise without a repeat"):
        linear_rows(normal(T, N, IN), normal(N_ROWS, IN), None, torch.tensor(rows))


def test_a_forgotten_offset_of_rows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_picked", lambda offset, rows: None)
    with pytest.raises(AssertionError):
        check_linear_rows(TABLE_OFFSETS["low rank"], None, COLUMNS)


@pytest.mark.parametrize("own", ["dense", "low rank", "blocks"])
@pytest.mark.parametrize("begin", [None, (OUT,), (T, 1, OUT)])
def test_the_product_of_own_weights_has_both_orders_of_gradient(own: str, begin: tuple[int, ...] | None) -> None:
    parts = tensors(WEIGHT_OFFSETS[own])  # type: ignore[arg-type]
    given = [normal(T, N, IN, seed=5), normal(OUT, IN, seed=7)]
    given += [] if begin is None else [normal(*begin, seed=9)]
    leaves = [value.clone().requires_grad_() for value in (*given, *parts)]

    def product(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return ops._Product.apply(x, weight, *(rest if begin is not None else (None, *rest)))

    assert torch.autograd.gradcheck(product, leaves)
    assert torch.autograd.gradgradcheck(product, leaves)


# -- factored weights -----------------------------------------------------------------------------------------------

RANK, S = 2, 0.7
FACTORS = {
    "none": (None, None),
    "dense": (Dense(normal(T, RANK, IN, seed=51)), Dense(normal(T, N_ROWS, RANK, seed=52))),
}
READERS: dict[str, Callable[[Tensor, Weight], Tensor]] = {
    "linear": lambda x, weight: linear(x, weight, normal(N_ROWS, seed=53)),
    "candidates": lambda x, weight: linear_rows(x, weight, normal(N_ROWS, seed=53), COLUMNS),
    "one a row": lambda x, weight: linear_rows(x, weight, None, EACH),
    "embed": lambda x, weight: embed(IDS, weight) * x[:, :4],
    "tied": lambda x, weight: score_items(x, weight, normal(N_ROWS - 1, seed=54), None, padded=True),
    "own": lambda x, weight: own(weight, T) * x.sum(),
}


def check_factored(reader: str, offsets: tuple[Offset | None, Offset | None]) -> None:
    """Values, gradients by what is shared, and each task's own by the taps: those of base + s B A written out."""
    read, x = READERS[reader], normal(T, N, IN, seed=5)
    base, a, b = normal(N_ROWS, IN, seed=7), normal(RANK, IN, seed=8), normal(N_ROWS, RANK, seed=9)
    own_a, own_b = copies(a, offsets[0]), copies(b, offsets[1])
    wanted = read(x, FastWeight(base, Dense(S * torch.bmm(own_b, own_a))))
    mix = normal(*wanted.shape, seed=6)
    slow = torch.autograd.grad((wanted.tanh() * mix).sum(), [own_a, own_b])
    leaf_a, leaf_b = a.clone().requires_grad_(), b.clone().requires_grad_()
    got = read(x, Factored(base, FastWeight(leaf_a, offsets[0]), FastWeight(leaf_b, offsets[1]), S))
    close(got, wanted)
    for mine, theirs in zip(torch.autograd.grad((got.tanh() * mix).sum(), [leaf_a, leaf_b]), slow, strict=True):
        close(mine, theirs.sum(0))
    taps = Tap(), Tap()
    got = read(x, Factored(base, FastWeight(a, offsets[0], taps[0]), FastWeight(b, offsets[1], taps[1]), S))
    for mine, theirs in zip(of_taps((got.tanh() * mix).sum(), *taps), slow, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("offsets", FACTORS)
@pytest.mark.parametrize("reader", READERS)
def test_factored(reader: str, offsets: str) -> None:
    check_factored(reader, FACTORS[offsets])


def test_a_lost_scale_is_seen_in_every_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Factored.__init__
    monkeypatch.setattr(Factored, "__init__", lambda self, base, a, b, scale: made(self, base, a, b, 1.0))
    for reader in READERS:
        with pytest.raises(AssertionError):
            check_factored(reader, FACTORS["dense"])


def test_an_operator_without_factors_says_so() -> None:
    one = FastWeight(normal(IN, IN))
    with pytest.raises(TypeError, match="no rule for a factored weight"):
        fast(Factored(normal(IN, IN), one, one, S))
