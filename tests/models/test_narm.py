"""NARM against nn.GRU and its attention written out, one prefix at a time; untied and in chunks in the exactness matrix."""

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
from metarec.models import narm
from metarec.models.narm import NARM
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

V, D, H = 11, 3, 4
MODEL = NARM(V, D, H, dropout=0.3, embedding_dropout=0.2)
MODELS = {"tied": MODEL, "untied": replace(MODEL, tie=False)}
PLAIN = replace(MODEL, dropout=0.0, embedding_dropout=0.0)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(model: NARM = MODEL, context: float | None = None, seed: int = 1) -> Params:
    """`context` is the size of the context's numbers."""
    params = {name: 0.6 * normal(*shape, seed=seed + n) for n, (name, shape) in enumerate(model.shapes().items())}
    if context is not None:
        for n, (name, shape) in enumerate(model.context_shapes().items()):
            params[name] = context * normal(*shape, seed=seed + 100 + n)
    return params


def logits(params: Weights, pairs: PairBatch, model: NARM = MODEL, draw: torch.Generator | None = None) -> Tensor:
    return model.score(params, pairs.gather(model.encode(params, pairs.sequences, draw)), draw)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def ragged(max_len: int = 50) -> tuple[PairBatch, list[list[int]]]:
    """(pairs [5, 14], the prefix of each pair)."""
    log = small_log(3, n_users=5, longest=12, n_pairs=14, unknown=0.3, max_len=max_len)
    pairs = np.arange(5 * 14).reshape(5, 14)
    return log.batcher.pairs(pairs), [prefix for prefix, _ in log.expand(pairs.ravel())]


# -- one prefix at a time -------------------------------------------------------------------------------------------


def check_logits(model: NARM, max_len: int, context: float | None = None) -> None:
    (pairs, prefixes), params = ragged(max_len), weights(model, context)
    assert any(not prefix for prefix in prefixes)  # a prefix without a known item
    wanted = torch.stack([model_reference.narm(params, prefix) for prefix in prefixes])
    close(logits(params, pairs, model), wanted.view(5, 14, -1))


@pytest.mark.parametrize("context", [None, 0.7])
@pytest.mark.parametrize("max_len", [50, 6, 1])
@pytest.mark.parametrize("name", MODELS)
def test_equals_it_written_out(name: str, max_len: int, context: float | None) -> None:
    check_logits(MODELS[name], max_len, context)


def test_looking_past_the_session_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: every state sees the one after those that it should."""
    true = narm._looks

    def past(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        looking, seen, task = true(sequences)
        return looking, (seen + 1).clamp(max=int(seen.max())), task

    monkeypatch.setattr(narm, "_looks", past)
    with pytest.raises(AssertionError):
        check_logits(MODEL, 50)


# -- laws -----------------------------------------------------------------------------------------------------------


def test_shapes_init_and_head() -> None:
    for model in MODELS.values():
        params = model.init(torch.Generator().manual_seed(1))
        again = model.init(torch.Generator().manual_seed(1))
        assert {name: tuple(value.shape) for name, value in params.items()} == model.shapes()
        assert all(torch.equal(params[name], again[name]) for name in params)
        assert not params["embedding.weight"][0].any()
    assert MODEL.head == ("embedding.weight", "decoder.weight", "context.shift", "scale.state")
    assert MODELS["untied"].head == ("fc.weight", "fc.bias", "context.shift", "scale.state")


def test_a_configuration_makes_it() -> None:
    config, errors = check("train", {"model": {"name": "narm", "hidden_dim": 8, "tie": False}}, rules=False)
    assert errors == []
    assert isinstance(config, TrainConfig)
    assert build.model(config.model, V) == NARM(V, 64, 8, 0.5, 0.25, False)


def test_a_later_item_changes_no_earlier_state() -> None:
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    sequences = Sequences(items, torch.tensor([[0, 2]]), torch.tensor([[5, 6]]))
    changed = Sequences(items.clone(), sequences.starts, sequences.lengths)
    changed.items[0, 4] = 7
    params = weights(context=0.5)
    same = (MODEL.encode(params, sequences) == MODEL.encode(params, changed)).all(1)
    assert same.tolist() == [True, *[True] * 4, False, *[True] * 2, *[False] * 4]


def test_padding_is_never_read() -> None:
    pairs, _ = ragged(6)
    params = weights()
    changed = params | {"embedding.weight": params["embedding.weight"].clone()}
    changed["embedding.weight"][0] = 1e9
    assert torch.equal(logits(params, pairs), logits(changed, pairs))


def test_no_event_at_all() -> None:
    sequences = Sequences(torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    assert torch.equal(MODEL.encode(weights(), sequences), torch.zeros(2, 2 * H, dtype=torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_a_zero_context_and_another_dress_give_the_same_bits(name: str) -> None:
    model, (pairs, _) = MODELS[name], ragged()
    plain = logits(weights(model), pairs, model)
    assert torch.equal(plain, logits(weights(model, context=0.0), pairs, model))
    assert torch.equal(plain, logits({n: FastWeight(v) for n, v in weights(model).items()}, pairs, model))


@pytest.mark.parametrize("name", MODELS)
def test_some_items_are_columns_of_all(name: str) -> None:
    """Shared weights and weights of each task, behind an inner step."""
    model, batch = MODELS[name], small_log(5).batcher.pairs(np.arange(32).reshape(4, 8))
    params = weights(model, context=0.5)
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(batch)
    for theta in (params, adapt(loss, params, 4, InnerLoop(0.5, 2))):
        states = batch.gather(model.encode(theta, batch.sequences))
        for draw in (None, torch.Generator().manual_seed(1)):
            again = [None if draw is None else draw.clone_state() for _ in range(3)]
            full = model.score(theta, states, again[0])
            some, each = torch.tensor([1, 4, 11]), torch.arange(32).view(4, 8) % 11 + 1
            close(model.score(theta, states, again[1], some), full[..., some - 1])
            close(model.score(theta, states, again[2], each), full.gather(2, each[..., None] - 1)[..., 0])


def test_dropout_only_with_a_generator_of_events_and_of_what_the_decoder_reads() -> None:
    pairs, _ = ragged()
    plain, draw = logits(weights(), pairs, PLAIN), torch.Generator().manual_seed(1)
    assert torch.equal(plain, logits(weights(), pairs))
    assert torch.equal(plain, logits(weights(), pairs, PLAIN, draw))  # nothing to drop
    for model in (replace(PLAIN, dropout=0.5), replace(PLAIN, embedding_dropout=0.5)):
        assert not torch.equal(plain, logits(weights(), pairs, model, draw))


# -- every algorithm and residual: what algorithms/test_matrix.py leaves out -----------------------------------------


@pytest.fixture
def untied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix has the tied model."""
    tied = matrix.MODELS["narm"]
    other = replace(tied, model=replace(tied.model, tie=False), head=("fc.weight", "fc.bias"))
    monkeypatch.setitem(matrix.MODELS, "untied", other)


def check_cell(it: matrix.Cell) -> None:
    found = matrix.Found(*it.engine(), *it.reference())
    matrix.check_losses(found)
    matrix.check_gradients(found)


@pytest.mark.usefixtures("untied")
@pytest.mark.parametrize("residual", matrix.RESIDUALS)
@pytest.mark.parametrize("algorithm", matrix.ALGORITHMS)
def test_untied_it_is_one_task_at_a_time_as_well(algorithm: str, residual: str) -> None:
    check_cell(matrix.cell("untied", algorithm, residual, "clip"))


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_chunks_change_no_number(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is a chunk of its own."""
    monkeypatch.setattr(attention, "chunk_width", lambda counts: 1)
    matrix.episodes.cache_clear()
    it = matrix.cell("narm", algorithm, "off", "clip")
    check_cell(it)
    assert attention.Layout.of(it.batch.support.sequences).owner is not None  # there were chunks
    matrix.episodes.cache_clear()
