"""SASRec against torch's own layers, one prefix at a time; its laws, weights, dropout and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.sasrec_reference import slow_logits
from reference.small_episodes import SmallLog, small_log
from reference.small_sasrec import MODEL, MODELS, UNTIED, D, close, logits, weights
from torch import Tensor, nn

from metarec.core import attention
from metarec.core.batch import PairBatch, Sequences
from metarec.core.weights import FastWeight, Params
from metarec.data.batches import cut_long
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy

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
