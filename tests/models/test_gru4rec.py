"""GRU4Rec against `Embedding, GRU, Linear` of torch, one prefix at a time; its weights; dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.gru4rec_reference import reference_of
from reference.small_episodes import small_log

from metarec.core.batch import PairBatch
from metarec.core.weights import FastWeight, Params
from metarec.models.gru4rec import GRU4Rec

MODEL = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.1)


def weights(seed: int = 1) -> Params:
    return MODEL.init(torch.Generator().manual_seed(seed), torch.float64)


def logits(params: Params, pairs: PairBatch, generator: torch.Generator | None = None) -> torch.Tensor:
    return MODEL.score(params, pairs.gather(MODEL.encode(params, pairs.sequences)), generator)


def check_logits(params: Params, max_len: int) -> None:
    log = small_log(3, n_users=5, longest=12, n_pairs=14, unknown=0.3, max_len=max_len)
    pairs = np.arange(5 * 14).reshape(5, 14)
    batch = log.batcher.pairs(pairs)
    plain = log.expand(pairs.ravel())
    assert any(not prefix for prefix, _ in plain)  # a prefix without a known item
    wanted = reference_of(params)([prefix for prefix, _ in plain]).view(5, 14, -1)
    torch.testing.assert_close(logits(params, batch), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_len", [50, 6, 1])
def test_equals_the_layers_of_torch(max_len: int) -> None:
    check_logits(weights(), max_len)


def test_a_swapped_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true_encode = GRU4Rec.encode

    def swapped(self: GRU4Rec, params: Params, sequences: object) -> torch.Tensor:
        return true_encode(self, params | {"gru.bias_hh_l0": params["gru.bias_hh_l0"].roll(4)}, sequences)  # type: ignore[arg-type]

    monkeypatch.setattr(GRU4Rec, "encode", swapped)
    with pytest.raises(AssertionError):
        check_logits(weights(), 50)


def test_shapes_and_the_published_size() -> None:
    """1,518 items: 367,470 numbers without the padding row, which is the one difference."""
    model = GRU4Rec(n_items=1518)
    params = model.init(torch.Generator().manual_seed(1))
    assert {name: tuple(value.shape) for name, value in params.items()} == model.shapes()
    assert sum(value.numel() for value in params.values()) == 367_470 + 64
    assert list(params) == list(reference_of(params).state_dict())


def test_init_is_a_function_of_the_seed_and_of_torchs_ranges() -> None:
    params, again, other = weights(), weights(), weights(2)
    assert all(torch.equal(params[name], again[name]) for name in params)
    assert not any(torch.equal(params[name], other[name]) for name in params)
    assert not params["embedding.weight"][0].any()
    big = GRU4Rec(400, 50, 16).init(torch.Generator().manual_seed(1))
    assert abs(big["embedding.weight"][1:].std().item() - 1) < 0.02
    for name in set(big) - {"embedding.weight"}:
        assert 0.24 < big[name].abs().max().item() <= 0.25  # 1 / sqrt(16)


def test_padding_is_never_read() -> None:
    log = small_log(4)
    batch = log.batcher.pairs(np.arange(32).reshape(4, 8))
    params = weights()
    changed = params | {"embedding.weight": params["embedding.weight"].clone()}
    changed["embedding.weight"][0] = 1e9
    assert torch.equal(logits(params, batch), logits(changed, batch))


def test_shared_weights_in_either_dress_give_the_same_bits() -> None:
    log, params = small_log(5), weights()
    batch = log.batcher.pairs(np.arange(32).reshape(4, 8))
    dressed = {name: FastWeight(value) for name, value in params.items()}
    assert torch.equal(logits(params, batch), logits(dressed, batch))  # type: ignore[arg-type]


def test_dropout_only_with_a_generator_and_unbiased() -> None:
    model = GRU4Rec(5, 3, 4, dropout=0.5)
    params = model.init(torch.Generator().manual_seed(1), torch.float64)
    states = torch.ones(1, 20_000, 4, dtype=torch.float64)
    plain = model.score(params, states)
    dropped = model.score(params, states, torch.Generator().manual_seed(1))
    assert torch.equal(plain, model.score(params, states))
    assert not torch.equal(plain, dropped)
    torch.testing.assert_close(dropped.mean(1), plain.mean(1), rtol=0, atol=0.02)
    kept = (model.score({**params, "fc.weight": torch.eye(5, 4, dtype=torch.float64), "fc.bias": torch.zeros(5).double()},
                        states, torch.Generator().manual_seed(1))[..., :4])  # fmt: skip
    assert set(kept.unique().tolist()) == {0.0, 2.0}  # 1 / (1 - 0.5)
