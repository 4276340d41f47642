"""The language model's forward pass: transformers' own logits, padding, per-task factors, merging, items, memory.

Llama's norms work in float32 in transformers whatever they are given, and in float64 here. So a comparison with transformers
beyond seven digits is made without that (`as_they_do`), and the rest against Llama written out slowly.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.small_lms import KINDS, POSITIONS, TOKENS, moved, ours, prefixes, ragged, saved, slow_llama, theirs
from torch import Tensor

from metarec import build
from metarec.core import ops
from metarec.core.batch import Sequences
from metarec.core.offsets import Dense
from metarec.core.weights import Factored, FastWeight, Params, Tap, Weights
from metarec.models import Catalogue, causal_lm, lm_tree
from metarec.models.causal_lm import ITEMS, CausalLM, Config
from metarec.residual import lora
from metarec.residual.lora import merged

QV = ["*q_proj*", "*v_proj*"]
TARGETS = {"llama": QV, "gpt2": ["*c_attn.weight", "*mlp.c_proj.weight"]}


@pytest.fixture
def as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round to float32 where transformers does."""
    monkeypatch.setattr(lm_tree, "_Whole", contextlib.nullcontext)


def scores_of(model: CausalLM, params: Weights, sequences: Sequences) -> list[Tensor]:
    """[states of a task, V] for every task."""
    states = model.encode(params, sequences)[sequences.n_tasks :]
    counts = sequences.lengths.sum(1).tolist()
    width = max(counts)
    padded = torch.stack([torch.nn.functional.pad(own, (0, 0, 0, width - len(own))) for own in states.split(counts)])
    return [own[:count] for own, count in zip(model.score(params, padded), counts, strict=True)]


def their_scores(model: Any, sequences: Sequences, task: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(own[None] - 1).logits[0] for own in prefixes(sequences)[task]])


def start(model: CausalLM, dtype: torch.dtype = torch.float64) -> Params:
    return model.init(torch.Generator().manual_seed(0), dtype)


# -- the same logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tied: bool, tmp_path: Path, as_they_do: None) -> None:
    reference = theirs(kind, tied)
    model, sequences = ours(saved(reference, tmp_path)), ragged()
    found = scores_of(model, start(model), sequences)
    for t, own in enumerate(found):
        torch.testing.assert_close(own, their_scores(reference, sequences, t), rtol=0, atol=1e-10)
    assert len(model.head) == 2 and (model.head[0] == model.tables[0]) == tied
    single, small = reference.float(), start(model, torch.float32)
    for t, own in enumerate(scores_of(model, small, sequences)):
        torch.testing.assert_close(own, their_scores(single, sequences, t), rtol=0, atol=1e-5)


def test_in_float64_nothing_is_rounded_on_the_way(tmp_path: Path) -> None:
    model, sequences = ours(saved(theirs("llama"), tmp_path)), ragged()
    params = start(model)
    states = model.encode(params, sequences)[3:]
    slow = torch.cat([slow_llama(params, own - 1) for task in prefixes(sequences) for own in task])
    torch.testing.assert_close(states, slow, rtol=0, atol=1e-12)


def check_padding(model: CausalLM, params: Weights) -> None:
    alone, padded = ragged(), ragged(extra=6)
    for got, wanted in zip(scores_of(model, params, padded), scores_of(model, params, alone), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    one = Sequences(alone.items[1:2], alone.starts[1:2], alone.lengths[1:2])  # without longer or shorter neighbours
    if all(isinstance(weight, Tensor) for weight in params.values()):
        (got,) = scores_of(model, params, one)
        torch.testing.assert_close(got, scores_of(model, params, alone)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, eager: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "differentiated_twice", lambda weights: eager)
    model = ours(saved(theirs(kind), tmp_path))
    check_padding(model, start(model))


def test_a_fault_in_the_places_of_tokens_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(sequences: Sequences) -> Any:
        made = causal_lm._rows(sequences)
        return replace(made, event=made.event.roll(1))

    model = ours(saved(theirs("llama"), tmp_path))
    monkeypatch.setattr(Sequences, "once", lambda self, make: faulty(self))
    with pytest.raises(AssertionError):
        check_padding(model, start(model))


@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_of_attention_agree(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences, found = ours(saved(theirs(kind), tmp_path)), ragged(), []
    params = start(model, torch.float32)
    for eager in (True, False):
        monkeypatch.setattr(causal_lm, "differentiated_twice", lambda weights, eager=eager: eager)
        found.append(torch.cat(scores_of(model, params, sequences)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_the_fused_kernel_runs_unless_a_pass_is_differentiated_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ours(saved(theirs("llama"), tmp_path))
    params, seen = start(model), list[str]()
    body = model.net.body.forward
    monkeypatch.setattr(
        model.net.body, "forward", lambda **given: seen.append(model.net.config._attn_implementation) or body(**given)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    for weight in (params[name], FastWeight(params[name], None, Tap(False)), FastWeight(params[name], None, Tap(True))):
        model.encode(params | {name: weight}, ragged())
    assert seen == ["sdpa", "sdpa", "eager"]


# -- factors of each task ------------------------------------------------------------------------------------------


def residual(model: CausalLM, kind: str, dtype: torch.dtype = torch.float64) -> lora.LowRankResidual:
    made = build.residual(lora.Config(rank=2, alpha=3.0, targets=TARGETS[kind]), model, start(model, dtype))
    assert isinstance(made, lora.LowRankResidual)
    return made


def of_three(over: lora.LowRankResidual) -> Weights:
    """phi of three tasks, with other factors each, B away from zero."""
    phi = moved(over.init(torch.Generator().manual_seed(3)))
    generator = torch.Generator().manual_seed(4)
    return {
        name: FastWeight(value, Dense(0.5 * torch.randn(3, *value.shape, generator=generator, dtype=value.dtype)))
        for name, value in phi.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_lora_at_its_start_is_the_model_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = ours(saved(theirs(kind), tmp_path))
    over = residual(model, kind)
    assert len(over.targets) == 4
    phi, plain = over.init(torch.Generator().manual_seed(3)), torch.cat(scores_of(model, over.base, ragged()))
    fast = {name: FastWeight(value) for name, value in phi.items()}
    for own in (phi, fast):
        assert torch.equal(torch.cat(scores_of(model, over.compose(own), ragged())), plain)


def check_three_tasks(kind: str, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """All tasks in one pass score as transformers' own model with the weights of one task, merged, in it."""
    reference = theirs(kind, dtype=dtype)
    model, sequences = ours(saved(reference, tmp_path)), ragged()
    over = residual(model, kind, dtype)
    theta = over.compose(of_three(over))
    assert sum(isinstance(weight, Factored) for weight in theta.values()) == 4
    found = scores_of(model, theta, sequences)
    base = their_scores(reference, sequences, 1)
    for t in range(3):
        reference.load_state_dict(model.as_transformers(merged(theta, t)), strict=False)
        torch.testing.assert_close(found[t], their_scores(reference, sequences, t), rtol=0, atol=tolerance)
    reference.load_state_dict(model.as_transformers(merged(theta, 1)), strict=False)
    assert float((their_scores(reference, sequences, 1) - base).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_three_tasks_are_transformers_with_the_merged_weights_of_each(
    kind: str, tmp_path: Path, as_they_do: None
) -> None:
    check_three_tasks(kind, tmp_path / "double", torch.float64, 1e-10)
    check_three_tasks(kind, tmp_path / "single", torch.float32, 1e-5)


def test_a_fault_in_the_task_axis_is_seen(tmp_path: Path, as_they_do: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(x: Tensor, weight: Factored) -> Tensor:  # tasks in the wrong order
        return weight.scale * ops.linear(ops.linear(x.flip(0), weight.a), weight.b).flip(0)

    monkeypatch.setattr(ops, "through_factors", faulty)
    with pytest.raises(AssertionError):
        check_three_tasks("llama", tmp_path, torch.float64, 1e-10)


def test_targets_of_lora_unless_told(tmp_path: Path) -> None:
    model = ours(saved(theirs("gpt2"), tmp_path))
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    wanted = [f"transformer.h.{layer}.{part}.weight" for layer in range(2) for part in parts]
    assert list(lora.targets(lora.Config(rank=2), model)) == wanted


# -- items ----------------------------------------------------------------------------------------------------------


def small(n_items: int = 11, **options: Any) -> CausalLM:
    given: dict[str, Any] = {"hidden_size": 16, "n_heads": 2, "dropout": 0.0, "max_len": POSITIONS, **options}
    return causal_lm.build(Config(**given), n_items)


def test_items_are_rows_of_their_own(tmp_path: Path) -> None:
    """A scores by the row that reads it, no token's table is there, and the body is that of the directory."""
    reference = theirs("llama")
    model, sequences = ours(saved(reference, tmp_path), "items", 11), ragged(11)
    params = start(model)
    assert params[ITEMS].shape == (12, 16) and not params[ITEMS][0].any()
    assert {n for n in params if "embed" in n or "lm_head" in n} == set()
    params[ITEMS] = moved({ITEMS: params[ITEMS]})[ITEMS]
    for t, own in enumerate(scores_of(model, params, sequences)):
        slow = []
        for items in prefixes(sequences)[t]:
            weights = params | {"model.embed_tokens.weight": params[ITEMS]}
            slow.append(slow_llama(weights, items) @ params[ITEMS][1:].T)
        torch.testing.assert_close(own, torch.cat(slow), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["items", "tokens"])
def test_the_three_ways_of_score(kind: str, tmp_path: Path) -> None:
    model = ours(saved(theirs("llama", tied=False), tmp_path), kind)
    params, states = start(model), torch.randn(3, 4, 16, dtype=torch.float64)
    whole, some = model.score(params, states), torch.tensor([2, 5, 6, 23])
    assert whole.shape == (3, 4, TOKENS)
    torch.testing.assert_close(model.score(params, states, items=some), whole[..., some - 1])
    each = torch.randint(1, TOKENS + 1, (3, 4))
    torch.testing.assert_close(model.score(params, states, items=each), whole.gather(2, each[..., None] - 1)[..., 0])


def test_a_table_longer_than_its_tokenizer_scores_no_more_than_that(tmp_path: Path) -> None:
    directory = saved(theirs("gpt2"), tmp_path)
    model, whole = ours(directory, n_items=TOKENS - 3), ours(directory)
    states = torch.randn(1, 2, 16, dtype=torch.float64)
    assert torch.equal(model.score(start(model), states), whole.score(start(whole), states)[..., :-3])


def test_a_task_without_events_and_the_state_before_any() -> None:
    model = small()
    params = start(model)
    empty = torch.zeros(2, 3, dtype=torch.int64)
    states = model.encode(
        params, Sequences(empty, torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64))
    )
    assert states.shape == (2, 16) and not states.any()
    assert not model.encode(params, ragged(11))[:3].any()
    with pytest.raises(ValueError, match="a sequence of 7 events, but max_len=5"):
        replace(model, max_len=5).encode(params, ragged(11))


def test_contexts_shift_the_state_and_zero_is_none() -> None:
    model, sequences = small(), ragged(11)
    params, states = start(model), model.encode(start(model), sequences)[None]
    plain, shift = model.score(params, states), torch.randn(16, dtype=torch.float64)
    assert torch.equal(model.score(params | {"context.shift": torch.zeros(16, dtype=torch.float64)}, states), plain)
    torch.testing.assert_close(
        model.score(params | {"context.shift": shift}, states), model.score(params, states + shift)
    )


def test_a_new_model_is_a_function_of_the_generator() -> None:
    model = small()
    first, again = start(model), start(model)
    assert list(first) == list(model.shapes())
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = model.init(torch.Generator().manual_seed(1), torch.float64)
    assert {name for name in first if torch.equal(first[name], other[name])} == set(model.fixed)
    state = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_comes_from_the_generator_alone() -> None:
    model, sequences = small(dropout=0.5), ragged(11)
    params, rates = start(model), torch.Generator()

    def found(seed: int | None) -> Tensor:
        drawn = None if seed is None else rates.manual_seed(seed)
        return model.score(params, model.encode(params, sequences, drawn)[None], drawn)

    assert torch.equal(found(1), found(1)) and not torch.equal(found(1), found(2))
    assert torch.equal(
        found(None), torch.cat([replace(model, dropout=0.0).score(params, model.encode(params, sequences)[None])])
    )


# -- memory ---------------------------------------------------------------------------------------------------------


def gradients(model: CausalLM, params: Params, second: bool) -> list[Tensor]:
    """Of the weights, and through taps of two adapted ones; with `second` those of the taps' squares too."""
    own = {name: value.clone().requires_grad_() for name, value in params.items()}
    names = [name for name in own if "up_proj" in name or "q_proj" in name or "c_fc" in name]
    taps = {name: Tap(second) for name in names}
    weights = {name: FastWeight(value, None, taps.get(name)) for name, value in own.items()}
    sequences = ragged()
    loss = model.encode(weights, sequences)[3:].sin().square().sum()
    nodes = [at for tap in taps.values() for at, _ in tap.notes]
    assert len(nodes) == len(names)  # a second run leaves no note
    found = torch.autograd.grad(loss, nodes, create_graph=second, retain_graph=True)
    pairs = [note for tap in taps.values() for note in tap.notes]
    formed = [finish(grad).dense() for (_, finish), grad in zip(pairs, found, strict=True)]
    assert all(len(tap.notes) == 1 for tap in taps.values())
    last = sum(part.square().sum() for part in formed) if second else loss
    read = [value for name, value in own.items() if name not in model.head or name in model.tables]
    return [*formed, *torch.autograd.grad(last, read)]


@pytest.mark.parametrize("second", [False, True], ids=["first order", "second order"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind: str, second: bool, tmp_path: Path) -> None:
    directory = saved(theirs(kind), tmp_path)
    plain, thrifty = ours(directory), ours(directory, gradient_checkpointing=True)
    params = start(plain)
    for got, wanted in zip(gradients(thrifty, params, second), gradients(plain, params, second), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def kept(model: CausalLM, params: Params, rows: int, length: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Numbers that autograd holds of a pass and a cross-entropy, weights aside."""
    items = torch.randint(1, model.n_items + 1, (1, rows * length))
    starts = torch.arange(rows)[None] * length
    own = {name: value.requires_grad_() for name, value in params.items()}
    weights, held, keep = (
        {value.untyped_storage().data_ptr() for value in own.values()},
        dict[int, int](),
        list[Tensor](),
    )

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
            keep.append(value)
        return value

    monkeypatch.setattr(causal_lm, "differentiated_twice", lambda weights: True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        states = model.encode(own, Sequences(items, starts, torch.full_like(starts, length)))
        scores = model.score(own, states[None, 1:])
        torch.nn.functional.cross_entropy(scores[0], items[0] - 1)
    return sum(held.values()) / 4


@pytest.mark.parametrize(
    "options", [{}, {"n_layers": 4, "ffn_dim": 96}, {"n_kv_heads": 1, "hidden_size": 128}], ids=str
)
def test_the_activations_that_are_foretold_are_those_that_are_kept(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(300, **{"hidden_size": 64, "n_heads": 4, **options})
    foretold = model.activation_numbers(30 * POSITIONS, POSITIONS)
    assert foretold == pytest.approx(kept(model, start(model, torch.float32), 30, POSITIONS, monkeypatch), rel=0.03)
    thrifty = small(300, **{"hidden_size": 64, "n_heads": 4, "gradient_checkpointing": True, **options})
    less = kept(thrifty, start(thrifty, torch.float32), 30, POSITIONS, monkeypatch)
    # what is held between layers; the layer that is made again is whole for a moment, behind this
    assert less < thrifty.activation_numbers(30 * POSITIONS, POSITIONS) < foretold


def test_what_mixes_the_tokens_of_tasks_is_refused(tmp_path: Path) -> None:
    model = ours(saved(theirs("llama"), tmp_path))
    params, body = start(model), model.net.body.layers[0].mlp
    body.forward = lambda x: body.down_proj(body.up_proj(x[:, :1]).expand(-1, x.shape[1], -1))
    with pytest.raises(ValueError, match=r"up_proj\.weight is asked about 9 of 63 tokens: tasks cannot be told apart"):
        model.encode(params, ragged())


def test_the_kind_is_what_the_data_set_says() -> None:
    with pytest.raises(build.ConfigError, match=r"model\.titles: .*made of tokens, which have no titles"):
        causal_lm.build_of(Config(titles="x"), Catalogue(300, "tokens"))
    with pytest.raises(build.ConfigError, match=r"model\.vocab_size: 299: the data set's tokenizer has 300 tokens"):
        causal_lm.build_of(Config(vocab_size=299), Catalogue(300, "tokens"))
    model = causal_lm.build_of(Config(), Catalogue(300, "tokens"))
    assert model.shapes()["model.embed_tokens.weight"] == (300, 64) and ITEMS not in model.shapes()
