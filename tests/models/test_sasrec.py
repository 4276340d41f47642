"""SASRec against torch's own layers, one prefix at a time; weights and gradients of each task; both orders of MAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.small_episodes import SmallLog, small_log
from torch import Tensor, nn

from metarec.algorithms import inner
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core import attention, states
from metarec.core.batch import EpisodeBatch, PairBatch, Sequences
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows
from metarec.core.weights import FastWeight, Params, Weights
from metarec.data.batches import cut_long
from metarec.models import sasrec
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

V, D = 11, 6
MODEL = SASRec(V, D, n_layers=2, n_heads=2, dropout=0.3, max_len=12, ffn_dim=5)
UNTIED = replace(MODEL, tie=False, n_heads=3)
MODELS = {"tied": MODEL, "untied": UNTIED}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(model: SASRec = MODEL, context: float | None = None, seed: int = 1) -> Params:
    """Large enough that attention is far from uniform; `context` is the size of the context's numbers."""
    params = {
        name: 0.6 * normal(*shape, seed=seed + number) + (name in model.norms and name.endswith("weight"))
        for number, (name, shape) in enumerate(model.shapes().items())
    }
    if context is not None:
        for number, (name, shape) in enumerate(model.context_shapes().items()):
            params[name] = context * normal(*shape, seed=seed + 100 + number)
    return params


def logits(
    params: Weights, pairs: PairBatch, model: SASRec = MODEL, generator: torch.Generator | None = None
) -> Tensor:
    return model.score(params, pairs.gather(model.encode(params, pairs.sequences, generator)), generator)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# -- one prefix at a time -------------------------------------------------------------------------------------------


def layers_of(model: SASRec, params: Params) -> nn.ModuleList:
    """The stack as torch has it, with a copy of the weights."""
    sizes = (model.dim, model.n_heads, model.ffn_dim or model.dim, 0.0, "relu")
    options = {"batch_first": True, "norm_first": True, "dtype": torch.float64}
    layers = nn.ModuleList(nn.TransformerEncoderLayer(*sizes, **options) for _ in range(model.n_layers))
    theirs = {
        "attention.in.weight": "self_attn.in_proj_weight", "attention.in.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj", "ffn1": "linear1", "ffn2": "linear2",
    }  # fmt: skip
    state = {}
    for name, value in params.items():
        if name.startswith("layers."):
            name = name.removeprefix("layers.")
            for mine, other in theirs.items():
                name = name.replace(mine, other)
            state[name] = value
    layers.load_state_dict(state)
    return layers


def torchs_logits(model: SASRec, params: Params, prefixes: Sequence[Sequence[int]]) -> Tensor:
    layers, found = layers_of(model, params), []
    for prefix in prefixes:
        state = torch.zeros(model.dim, dtype=torch.float64)
        if prefix:
            n = len(prefix)
            h = (params["embedding.weight"][list(prefix)] + params["position.weight"][:n])[None]
            for layer in layers:
                h = layer(h, src_mask=torch.full((n, n), -torch.inf, dtype=h.dtype).triu(1))
            state = F.layer_norm(h[0, -1], (model.dim,), params["norm.weight"], params["norm.bias"])
        if model.tie:
            found.append(params["embedding.weight"][1:] @ state)
        else:
            found.append(params["fc.weight"] @ state + params["fc.bias"])
    return torch.stack(found)


def slow_logits(model: SASRec, params: Params, prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Written out with the context, one prefix, query and head at a time; differentiable as often as one likes."""
    d, size, found = model.dim, model.dim // model.n_heads, []
    p = params.get("position.weight")
    tokens = params.get("context.prefix")

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, (d,)) * params[f"{name}.weight"] + params[f"{name}.bias"]

    for prefix in prefixes:
        state = torch.zeros(d, dtype=torch.float64)
        if prefix:
            h = params["embedding.weight"][list(prefix)] + p[: len(prefix)]
            for i in range(model.n_layers):
                at = f"layers.{i}"
                w_in, b_in = params[f"{at}.attention.in.weight"], params[f"{at}.attention.in.bias"]
                q, k, v = (norm(h, f"{at}.norm1") @ w_in.T + b_in).split(d, 1)
                rows = []
                for j in range(len(prefix)):
                    parts = []
                    for head in range(model.n_heads):
                        own = slice(head * size, head * size + size)
                        mass = (k[: j + 1, own] @ q[j, own] / size**0.5).softmax(0)
                        part = mass @ v[: j + 1, own]
                        if tokens is not None:
                            keys = norm(p[: len(tokens)] + tokens, f"{at}.norm1") @ w_in[d : 2 * d].T
                            values = tokens @ w_in[2 * d :].T
                            part = part + (keys[:, own] @ q[j, own] / size**0.5).softmax(0) @ values[:, own]
                        parts.append(part)
                    rows.append(torch.cat(parts))
                out = torch.stack(rows) @ params[f"{at}.attention.out.weight"].T + params[f"{at}.attention.out.bias"]
                h = h + out
                inside = (norm(h, f"{at}.norm2") @ params[f"{at}.ffn1.weight"].T + params[f"{at}.ffn1.bias"]).relu()
                h = h + inside @ params[f"{at}.ffn2.weight"].T + params[f"{at}.ffn2.bias"]
            state = norm(h[-1], "norm")
        if "context.shift" in params:
            state = state + params["context.shift"]
        if model.tie:
            found.append(params["embedding.weight"][1:] @ state)
        else:
            found.append(params["fc.weight"] @ state + params["fc.bias"])
    return torch.stack(found)


def ragged(max_len: int = 12) -> tuple[SmallLog, PairBatch, list[list[int]]]:
    """(log, pairs [5, 14], the prefix of each pair)."""
    log = small_log(3, n_users=5, longest=12, n_pairs=14, unknown=0.3, max_len=max_len)
    pairs = np.arange(5 * 14).reshape(5, 14)
    return log, log.batcher.pairs(pairs), [prefix for prefix, _ in log.expand(pairs.ravel())]


def check_logits(params: Params, max_len: int, model: SASRec = MODEL) -> None:
    _, pairs, prefixes = ragged(max_len)
    assert any(not prefix for prefix in prefixes)  # a prefix without a known item
    close(logits(params, pairs, model), torchs_logits(model, params, prefixes).view(5, 14, -1))


@pytest.mark.parametrize("max_len", [12, 6, 1])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_layers_of_torch(name: str, max_len: int) -> None:
    check_logits(weights(MODELS[name]), max_len, MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_the_context_equals_it_written_out(name: str) -> None:
    model, (_, pairs, prefixes) = MODELS[name], ragged(6)
    for params in (weights(model), weights(model, context=0.8)):
        close(logits(params, pairs, model), slow_logits(model, params, prefixes).view(5, 14, -1))


def test_whole_sessions_as_one_task() -> None:
    """As in pretraining: the loss of every position and its gradient, in pieces where a session is too long."""
    log = small_log(5, n_users=3, longest=12, n_pairs=20, max_len=5)
    begin, end = (np.array(part) for part in zip(*log.sessions, strict=True))
    pairs = log.batcher.sessions(begin, end)
    params = {name: value.requires_grad_() for name, value in weights().items()}
    prefixes = []
    for first, last, start in zip(*cut_long(begin, end, 5), strict=True):
        prefixes += [[int(i) for i in log.batcher.item[start:event] if i > 0] for event in range(first, last)]
    found = []
    for got in (logits(params, pairs), slow_logits(MODEL, params, prefixes)[None]):
        loss = cross_entropy(got, pairs.target)
        found.append([loss, *torch.autograd.grad(loss.sum(), list(params.values()))])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)


# -- laws ----------------------------------------------------------------------------------------------------------


def test_a_later_item_changes_no_earlier_state() -> None:
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    sequences = Sequences(items, torch.tensor([[0, 2]]), torch.tensor([[5, 6]]))
    changed = Sequences(items.clone(), sequences.starts, sequences.lengths)
    changed.items[0, 4] = 7
    params = weights(context=0.5)
    same = (MODEL.encode(params, sequences) == MODEL.encode(params, changed)).all(1)
    assert same.tolist() == [True, *[True] * 4, False, *[True] * 2, *[False] * 4]


def test_extra_padding_changes_nothing() -> None:
    _, pairs, _ = ragged(6)
    s, params = pairs.sequences, weights(context=0.5)
    padded = Sequences(F.pad(s.items, (0, 3)), F.pad(s.starts, (0, 2)), F.pad(s.lengths, (0, 2)))
    close(MODEL.encode(params, padded), MODEL.encode(params, s), 1e-13)


def test_order_of_tasks_is_irrelevant() -> None:
    log, pairs, _ = ragged(6)
    order = [3, 0, 4, 2, 1]
    mixed = log.batcher.pairs(np.arange(5 * 14).reshape(5, 14)[order])
    params = weights(context=0.5)
    close(logits(params, mixed), logits(params, pairs)[order], 1e-13)


def test_padding_is_never_read() -> None:
    _, pairs, _ = ragged()
    params = weights()
    changed = params | {"embedding.weight": params["embedding.weight"].clone()}
    changed["embedding.weight"][0] = 1e9
    assert torch.equal(logits(params, pairs), logits(changed, pairs))


def test_shared_weights_in_either_dress_give_the_same_bits() -> None:
    _, pairs, _ = ragged()
    params = weights()
    assert torch.equal(logits(params, pairs), logits({n: FastWeight(v) for n, v in params.items()}, pairs))


@pytest.mark.parametrize("name", MODELS)
def test_a_zero_context_is_none_and_can_be_learned(name: str) -> None:
    model, (_, pairs, _) = MODELS[name], ragged()
    plain, zero = weights(model), weights(model, context=0.0)
    assert torch.equal(logits(plain, pairs, model), logits(zero, pairs, model))
    context = [zero[name].requires_grad_() for name in model.context_shapes()]
    loss = cross_entropy(logits(zero, pairs, model), pairs.target).sum()
    prefix, shift = torch.autograd.grad(loss, context)
    assert prefix.abs().max(1).values.min() > 1e-3
    assert shift.abs().max() > 1e-3
    assert (prefix[0] - prefix[1]).abs().max() > 1e-3  # so the tokens become different


def test_no_event_at_all() -> None:
    sequences = Sequences(torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    assert torch.equal(MODEL.encode(weights(), sequences), torch.zeros(2, D, dtype=torch.float64))


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


# -- weights, dropout, errors ---------------------------------------------------------------------------------------


def test_init() -> None:
    model = SASRec(400)
    params = model.init(torch.Generator().manual_seed(1))
    again, other = (model.init(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert {name: tuple(value.shape) for name, value in params.items()} == model.shapes()
    assert all(torch.equal(params[name], again[name]) for name in params)
    drawn = [name for name in params if name not in model.norms and not name.endswith("bias")]
    assert not any(torch.equal(params[name], other[name]) for name in drawn)
    for name in drawn:
        assert abs(params[name].std().item() / 0.0176 - 1) < 0.06  # 0.02 without what lies beyond two sd
        assert params[name].abs().max().item() <= 0.04
    assert not params["embedding.weight"][0].any()
    assert all((params[name] == float(name.endswith("weight"))).all() for name in params if name not in drawn)


def test_names_are_those_of_weights() -> None:
    for model in MODELS.values():
        names = {**model.shapes(), **model.context_shapes(), **model.scale_shapes()}
        assert set(model.norms) | set(model.head) <= set(names)
        assert len(model.norms) == 2 * (2 * model.n_layers + 1)
    assert "fc.bias" in UNTIED.head and "embedding.weight" not in UNTIED.head
    # two layers of d^2 (3 + 1 + 2) and 13 d, the tables, the last norm
    assert sum(v.numel() for v in SASRec(100).init(torch.Generator()).values()) == 2 * (6 * 64**2 + 10 * 64) + 153 * 64


def test_dropout_only_with_a_generator_and_unbiased() -> None:
    _, pairs, _ = ragged()
    params = weights()
    plain = logits(params, pairs)
    first, again = (logits(params, pairs, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(plain, first)
    assert torch.equal(logits(params, pairs, replace(MODEL, dropout=0.0), torch.Generator()), plain)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="dim=10 cannot be cut into n_heads=4 equal heads"):
        SASRec(5, dim=10, n_heads=4)
    with pytest.raises(ValueError, match="a sequence of 4 events, but max_len=3 positions"):
        replace(MODEL, max_len=3).encode(
            weights(), Sequences(torch.ones(1, 4).long(), torch.zeros(1, 1).long(), torch.tensor([[4]]))
        )


# -- the checks above are seen to fail ------------------------------------------------------------------------------


def test_positions_from_the_end_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = attention.Layout.gather_positions
    monkeypatch.setattr(attention.Layout, "gather_positions", lambda self, at: true(self, at.flip(1)))
    with pytest.raises(AssertionError):
        check_logits(weights(), 12)


def test_heads_mixed_up_are_seen() -> None:
    params, (_, pairs, prefixes) = weights(), ragged()
    wanted = torchs_logits(MODEL, params, prefixes).view(5, 14, -1)
    with pytest.raises(AssertionError):
        close(logits(params, pairs, replace(MODEL, n_heads=1)), wanted)


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


def test_a_prefix_in_the_common_softmax_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its zero value still takes mass from the events: a zero context would not be none."""
    true = attention.Attention.__call__

    def common(self: attention.Attention, *given: Tensor, prefix: object = None, **named: bool) -> Tensor:
        return true(self, *given, **named) * (1 if prefix is None else 0.9)  # type: ignore[arg-type]

    monkeypatch.setattr(attention.Attention, "__call__", common)
    with pytest.raises(AssertionError):
        test_a_zero_context_is_none_and_can_be_learned("tied")
    with pytest.raises(AssertionError):
        test_the_context_equals_it_written_out("tied")


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
