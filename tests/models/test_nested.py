"""Nested against torch.nn.GRU, nn.LSTM and functional blocks, one prefix at a time; the LSTM in the exactness matrix too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import matrix_cells as matrix
from reference import model_reference
from reference.small_episodes import small_log
from torch import Tensor

from metarec import build
from metarec.algorithms.inner import InnerLoop, adapt
from metarec.config.check import check
from metarec.config.schema import TrainConfig
from metarec.core import attention
from metarec.core.batch import PairBatch, Sequences
from metarec.core.weights import FastWeight, Params, Weights
from metarec.models import nested
from metarec.models.nested import Nested
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

V, D = 11, 4
MODEL = Nested(V, D, "gru", 3, 5, dropout=0.3)
MODELS = {
    "gru": MODEL, "lstm": replace(MODEL, cell="lstm"), "tied": replace(MODEL, tie=True),
}  # fmt: skip
PLAIN = replace(MODEL, dropout=0.0)
LEVELS = ("fast", "medium", "slow")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(model: Nested = MODEL, context: float | None = None, seed: int = 1) -> Params:
    """`context` is the size of the context's numbers."""
    params = {name: 0.6 * normal(*shape, seed=seed + n) for n, (name, shape) in enumerate(model.shapes().items())}
    if context is not None:
        for n, (name, shape) in enumerate(model.context_shapes().items()):
            params[name] = context * normal(*shape, seed=seed + 100 + n)
    return params


def logits(params: Weights, pairs: PairBatch, model: Nested = MODEL, draw: torch.Generator | None = None) -> Tensor:
    return model.score(params, pairs.gather(model.encode(params, pairs.sequences, draw)), draw)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def ragged(max_len: int = 50) -> tuple[PairBatch, list[list[int]]]:
    """(pairs [5, 14], the prefix of each pair)."""
    log = small_log(3, n_users=5, longest=12, n_pairs=14, unknown=0.3, max_len=max_len)
    pairs = np.arange(5 * 14).reshape(5, 14)
    return log.batcher.pairs(pairs), [prefix for prefix, _ in log.expand(pairs.ravel())]


def check_logits(model: Nested, max_len: int, context: float | None = None) -> None:
    (pairs, prefixes), params = ragged(max_len), weights(model, context)
    assert any(not prefix for prefix in prefixes)  # a prefix without a known item
    wanted = torch.stack([model_reference.nested(params, prefix) for prefix in prefixes])
    close(logits(params, pairs, model), wanted.view(5, 14, -1))


@pytest.mark.parametrize("context", [None, 0.7])
@pytest.mark.parametrize("max_len", [50, 6, 1])
@pytest.mark.parametrize("name", MODELS)
def test_equals_torchs_own_layers(name: str, max_len: int, context: float | None) -> None:
    check_logits(MODELS[name], max_len, context)


def test_a_level_without_its_residual_connection_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the recurrence stands alone."""
    monkeypatch.setattr(
        attention.Layout, "gather", lambda self, x: torch.zeros(len(self.event) // self.width, self.width, D)
    )
    with pytest.raises(AssertionError):
        check_logits(MODEL, 50)


def test_shapes_init_head_and_levels() -> None:
    for model in MODELS.values():
        params = model.init(torch.Generator().manual_seed(1))
        again = model.init(torch.Generator().manual_seed(1))
        assert {name: tuple(value.shape) for name, value in params.items()} == model.shapes()
        assert all(torch.equal(params[name], again[name]) for name in params)
        assert not params["embedding.weight"][0].any()
        assert {name.split(".")[0] for name in params} - {"embedding", "fc"} == set(LEVELS)
        assert set(model.norms) == {f"{level}.norm.{part}" for level in LEVELS for part in ("weight", "bias")}
        assert all(bool((params[name] == float(name.endswith("weight"))).all()) for name in model.norms)
    assert MODEL.head == ("fc.weight", "fc.bias", "context.shift", "scale.state")
    assert MODELS["tied"].head[0] == "embedding.weight" and "fc.weight" not in MODELS["tied"].shapes()


def test_a_configuration_makes_it() -> None:
    config, errors = check("train", {"model": {"name": "nested", "dim": 8, "cell": "lstm", "slow_dim": 5}}, rules=False)
    assert errors == []
    assert isinstance(config, TrainConfig)
    assert build.model(config.model, V) == Nested(V, 8, "lstm", 16, 5, 0.2, False)
    _, errors = check("train", {"model": {"name": "nested", "dim": 1}})
    assert "model.dim: 1: a norm over one number" in str(errors[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_later_item_changes_no_earlier_state(name: str) -> None:
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    sequences = Sequences(items, torch.tensor([[0, 2]]), torch.tensor([[5, 6]]))
    changed = Sequences(items.clone(), sequences.starts, sequences.lengths)
    changed.items[0, 4] = 7
    model, params = MODELS[name], weights(MODELS[name], context=0.5)
    same = (model.encode(params, sequences) == model.encode(params, changed)).all(1)
    assert same.tolist() == [True, *[True] * 4, False, *[True] * 2, *[False] * 4]


@pytest.mark.parametrize("name", MODELS)
def test_padding_is_never_read(name: str) -> None:
    pairs, _ = ragged(6)
    params = weights(MODELS[name])
    changed = params | {"embedding.weight": params["embedding.weight"].clone()}
    changed["embedding.weight"][0] = 1e9
    assert torch.equal(logits(params, pairs, MODELS[name]), logits(changed, pairs, MODELS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_no_event_at_all(name: str) -> None:
    model, sequences = MODELS[name], Sequences(*(torch.zeros(2, 1).long() for _ in range(3)))
    assert torch.equal(model.encode(weights(model), sequences), torch.zeros(2, D, dtype=torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_zero_contexts_and_scales_and_another_dress_give_the_same_bits(name: str) -> None:
    model, (pairs, _) = MODELS[name], ragged()
    plain, params = logits(weights(model), pairs, model), weights(model)
    scales = {n: torch.zeros(s, dtype=torch.float64) for n, s in model.scale_shapes().items()}
    assert torch.equal(plain, logits(weights(model, context=0.0), pairs, model))
    assert torch.equal(plain, logits(params | scales, pairs, model))
    assert torch.equal(plain, logits({n: FastWeight(v) for n, v in params.items()}, pairs, model))
    for name, value in scales.items():
        assert not torch.equal(plain, logits(params | {name: value + 0.5}, pairs, model)), name


@pytest.mark.parametrize("name", MODELS)
def test_some_items_are_columns_of_all(name: str) -> None:
    """Shared weights and weights of each task, behind an inner step."""
    model, batch = replace(MODELS[name], dropout=0.0), small_log(5).batcher.pairs(np.arange(32).reshape(4, 8))
    params = weights(model, context=0.5)
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(batch)
    for theta in (params, adapt(loss, params, 4, InnerLoop(0.5, 2))):
        states = batch.gather(model.encode(theta, batch.sequences))
        full = model.score(theta, states)
        some, each = torch.tensor([1, 4, 11]), torch.arange(32).view(4, 8) % 11 + 1
        close(model.score(theta, states, None, some), full[..., some - 1])
        close(model.score(theta, states, None, each), full.gather(2, each[..., None] - 1)[..., 0])


def test_dropout_only_with_a_generator() -> None:
    pairs, _ = ragged()
    plain, draw = logits(weights(), pairs, PLAIN), torch.Generator().manual_seed(1)
    assert torch.equal(plain, logits(weights(), pairs))
    assert torch.equal(plain, logits(weights(), pairs, PLAIN, draw))  # nothing to drop
    assert not torch.equal(plain, logits(weights(), pairs, MODEL, draw))


# -- every algorithm and residual: what algorithms/test_matrix.py leaves out -----------------------------------------


@pytest.fixture
def lstm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix has the GRU."""
    usual = matrix.MODELS["nested"]
    monkeypatch.setitem(matrix.MODELS, "lstm", replace(usual, model=replace(usual.model, cell="lstm")))


def check_cell(it: matrix.Cell) -> None:
    found = matrix.Found(*it.engine(), *it.reference())
    matrix.check_losses(found)
    matrix.check_gradients(found)


@pytest.mark.usefixtures("lstm")
@pytest.mark.parametrize("residual", matrix.RESIDUALS)
@pytest.mark.parametrize("algorithm", matrix.ALGORITHMS)
def test_with_an_lstm_it_is_one_task_at_a_time_as_well(algorithm: str, residual: str) -> None:
    check_cell(matrix.cell("lstm", algorithm, residual, "clip"))


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_chunks_change_no_number(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is a chunk of its own."""
    monkeypatch.setattr(attention, "chunk_width", lambda counts: 1)
    matrix.episodes.cache_clear()
    it = matrix.cell("nested", algorithm, "off", "clip")
    check_cell(it)
    assert attention.Layout.of(it.batch.support.sequences).owner is not None  # there were chunks
    matrix.episodes.cache_clear()


def test_the_levels_are_where_their_names_say() -> None:
    """So that a pattern finds a level."""
    names = MODEL.shapes()
    for level in nested.BLOCKS:
        assert {name for name in names if name.startswith(f"{level}.")} == {
            f"{level}.{part}.{kind}" for part in ("up", "down", "norm") for kind in ("weight", "bias")
        }
