"""GRU4Rec against `Embedding, GRU, Linear` of torch, one prefix at a time; its weights; dropout; layers; tied scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.gru4rec_reference import reference_of
from reference.small_episodes import small_log
from torch import Tensor, nn

from metarec.algorithms.inner import InnerLoop, adapt
from metarec.core.batch import PairBatch, Sequences
from metarec.core.weights import FastWeight, Params
from metarec.models import gru4rec
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

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


DEEP = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.1, n_layers=2)
TIED = GRU4Rec(n_items=11, embedding_dim=4, hidden_dim=4, dropout=0.1, n_layers=2, tie=True)


def weights_of(model: GRU4Rec, seed: int = 1) -> Params:
    return model.init(torch.Generator().manual_seed(seed), torch.float64)


def deep_logits(model: GRU4Rec, params: Params, prefixes: list[list[int]], context: Params | None = None) -> Tensor:
    """One prefix at a time through nn.GRU(num_layers=2) and a product with the output matrix."""
    layers = nn.GRU(model.embedding_dim, model.hidden_dim, num_layers=2, batch_first=True).double()
    begin = torch.zeros(2, 1, model.hidden_dim, dtype=torch.float64)
    shift = torch.zeros(model.hidden_dim, dtype=torch.float64)
    if context is not None:
        begin = torch.stack([context["context.state"], context["context.state_l1"]])[:, None]
        shift = context["context.shift"]
    given = {name.removeprefix("gru."): value for name, value in params.items() if name.startswith("gru.")}
    states = []
    for prefix in prefixes:
        if not prefix:
            states.append(begin[1, 0])
            continue
        x = params["embedding.weight"][torch.tensor([prefix])]
        output, _ = torch.func.functional_call(layers, given, (x, begin))
        states.append(output[0, -1])
    table = params["embedding.weight"][1:] if model.tie else params["fc.weight"]
    return (torch.stack(states) + shift) @ table.T + params["fc.bias"]


def check_layers(max_len: int) -> None:
    log = small_log(3, n_users=5, longest=12, n_pairs=14, unknown=0.3, max_len=max_len)
    pairs = np.arange(5 * 14).reshape(5, 14)
    batch, plain = log.batcher.pairs(pairs), [prefix for prefix, _ in log.expand(pairs.ravel())]
    generator = torch.Generator().manual_seed(3)
    for model in (DEEP, TIED):
        params = weights_of(model)
        context = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in model.context_shapes().items()
        }
        for given in (None, context):
            theta = params | (given or {})
            got = model.score(theta, batch.gather(model.encode(theta, batch.sequences)))
            wanted = deep_logits(model, params, plain, given).view(5, 14, -1)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_len", [50, 6, 1])
def test_two_layers_equal_those_of_torch(max_len: int) -> None:
    check_layers(max_len)


def test_states_in_the_place_of_others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: states reach the layer above in another order."""
    true = gru4rec._as_events

    def other(sequences: Sequences) -> Sequences:
        above = true(sequences)
        vars(above)["event"] = above.event.flip(0)
        return above

    monkeypatch.setattr(gru4rec, "_as_events", other)
    with pytest.raises(AssertionError):
        check_layers(6)


def test_options_by_default_change_neither_names_nor_head() -> None:
    assert GRU4Rec(11, 3, 4, 0.1, n_layers=1, tie=False, embedding_dropout=0.0) == MODEL
    assert list(MODEL.context_shapes()) == ["context.state", "context.shift"]
    assert list(DEEP.context_shapes()) == ["context.state", "context.state_l1", "context.shift"]
    assert MODEL.head == DEEP.head == ("fc.weight", "fc.bias", "context.shift", "scale.state")
    assert TIED.head == ("embedding.weight", "fc.bias", "context.shift", "scale.state")
    assert set(TIED.shapes()) == set(DEEP.shapes()) - {"fc.weight"}
    for model in (DEEP, TIED):
        assert {name: tuple(value.shape) for name, value in weights_of(model).items()} == model.shapes()
    assert 0.49 < weights_of(TIED)["embedding.weight"].abs().max().item() <= 0.5  # 1 / sqrt(4), as an output layer


@pytest.mark.parametrize("items", [None, [1, 2, 7, 11]])
@pytest.mark.parametrize("dressed", [False, True])
def test_tied_equals_untied_with_the_same_matrix(dressed: bool, items: list[int] | None) -> None:
    """Scores, and the gradient of the one matrix as the sum of those of the two."""
    untied = GRU4Rec(11, 4, 4, n_layers=2)
    batch = small_log(5).batcher.pairs(np.arange(32).reshape(4, 8))
    tied_params = {name: value.requires_grad_() for name, value in weights_of(TIED).items()}
    copy = tied_params["embedding.weight"][1:].detach().clone().requires_grad_()
    embedding = tied_params["embedding.weight"].detach().clone().requires_grad_()
    both = {**tied_params, "embedding.weight": embedding, "fc.weight": copy}
    only = None if items is None else torch.tensor(items)
    scores = []
    for model, params in ((TIED, tied_params), (untied, both)):
        offsets = {name: FastWeight(value) for name, value in params.items()} if dressed else params
        states = batch.gather(model.encode(offsets, batch.sequences))
        scores.append(model.score(offsets, states, None, only))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-12)
    (mine,) = torch.autograd.grad(scores[0].tanh().sum(), tied_params["embedding.weight"])
    looked_up, scored = torch.autograd.grad(scores[1].tanh().sum(), [embedding, copy])
    wanted = looked_up + torch.cat([torch.zeros_like(scored[:1]), scored])
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [MODEL, DEEP, TIED], ids=["one layer", "two layers", "tied"])
def test_some_items_are_columns_of_all(model: GRU4Rec) -> None:
    """Shared weights and weights of each task, behind an inner step."""
    batch, params = small_log(5).batcher.pairs(np.arange(32).reshape(4, 8)), weights_of(model)
    params |= {name: torch.full(shape, 0.1).double() for name, shape in model.context_shapes().items()}
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(batch)
    for theta in (params, adapt(loss, params, 4, InnerLoop(0.5, 2))):
        states = batch.gather(model.encode(theta, batch.sequences))
        for draw in (None, torch.Generator().manual_seed(1)):
            again = [None if draw is None else draw.clone_state() for _ in range(3)]
            logits = model.score(theta, states, again[0])
            some, each = torch.tensor([1, 4, 11]), torch.arange(32).view(4, 8) % 11 + 1
            torch.testing.assert_close(model.score(theta, states, again[1], some), logits[..., some - 1])
            one = model.score(theta, states, again[2], each)
            torch.testing.assert_close(one, logits.gather(2, each[..., None] - 1)[..., 0])


@pytest.mark.parametrize("model", [DEEP, TIED], ids=["two layers", "tied"])
def test_a_step_of_each_task_equals_autograd_on_its_own_copy(model: GRU4Rec) -> None:
    log = small_log(7, longest=12, max_len=3)
    batch, params = log.episodes(6, 1).support, weights_of(model)
    params |= {name: torch.full(shape, 0.1).double() for name, shape in model.context_shapes().items()}
    loss = Tasks(model, cross_entropy, lambda phi: phi).loss(batch)
    adapted = adapt(loss, params, 4, InnerLoop(0.5, 2))
    for task in range(4):
        alone = log.episodes(6, 1, [task]).support
        own = {name: value.clone() for name, value in params.items()}
        for _ in range(2):
            own = {name: value.detach().requires_grad_() for name, value in own.items()}
            slow = Tasks(model, cross_entropy, lambda phi: phi).loss(alone)(own)[0]
            grads = torch.autograd.grad(slow, list(own.values()))
            own = {name: value - 0.5 * grad for (name, value), grad in zip(own.items(), grads, strict=True)}
        for name, value in own.items():
            torch.testing.assert_close(adapted[name].dense()[task], value, rtol=0, atol=1e-12)


def test_dropout_of_the_embedding_and_between_layers() -> None:
    batch = small_log(5).batcher.pairs(np.arange(32).reshape(4, 8))
    plain = GRU4Rec(11, 3, 4, dropout=0.0, n_layers=2)
    params = weights_of(plain)
    without = plain.encode(params, batch.sequences)
    draw = torch.Generator().manual_seed(1)
    assert torch.equal(without, plain.encode(params, batch.sequences, draw))  # nothing to drop
    for model in (
        GRU4Rec(11, 3, 4, dropout=0.0, n_layers=2, embedding_dropout=0.5),
        GRU4Rec(11, 3, 4, dropout=0.5, n_layers=2),
    ):
        assert torch.equal(without, model.encode(params, batch.sequences))
        dropped = model.encode(params, batch.sequences, draw)
        assert not torch.equal(without, dropped)
    one = GRU4Rec(11, 3, 4, dropout=0.5)
    shallow = weights_of(one)
    assert torch.equal(one.encode(shallow, batch.sequences), one.encode(shallow, batch.sequences, draw))  # score drops


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="embedding_dim=3 and hidden_dim=4 must be equal"):
        GRU4Rec(11, 3, 4, tie=True)
    with pytest.raises(ValueError, match="n_layers=0, at least 1 is needed"):
        GRU4Rec(11, n_layers=0)
