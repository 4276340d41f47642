"""Architectures beside Llama and GPT-2: the same logits, or refused in words; never other logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference.small_lms import TOKENS, ours, prefixes, ragged, saved
from transformers import AutoConfig, AutoModelForCausalLM

from metarec.errors import ConfigError
from metarec.models.causal_lm import CausalLM

GROUPED = {"num_key_value_heads": 2}


def written(kind: str, directory: Path, **options: Any) -> Any:
    """A model of transformers with random weights, saved."""
    common: dict[str, Any] = {
        "vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 20, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **options})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    saved(model, directory)
    return model


def check(model: CausalLM, reference: Any) -> None:
    params, sequences = model.init(torch.Generator().manual_seed(0)), ragged()
    states = model.encode(params, sequences)[3:]
    with torch.no_grad():
        wanted = torch.cat([reference(own[None] - 1).logits[0] for task in prefixes(sequences) for own in task])
    torch.testing.assert_close(model.score(params, states[None])[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", GROUPED), ("qwen2", GROUPED), ("qwen3", {**GROUPED, "head_dim": 8}), ("phi3", {"pad_token_id": 0}),
        ("olmo2", {}), ("bloom", {"n_head": 4, "n_layer": 2}),
        ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 1}),
        ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 20}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_logits_are_those_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    reference = written(kind, tmp_path, **options)
    check(ours(tmp_path), reference)


def test_matrices_of_a_class_of_its_own_are_fixed(tmp_path: Path) -> None:
    reference = written("falcon", tmp_path)
    model = ours(tmp_path)
    check(model, reference)
    assert "transformer.h.0.mlp.dense_h_to_4h.weight" in model.fixed


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("granite", {**GROUPED, "logits_scaling": 2.0}, "logits by transformers differ from those here by"),
        ("cohere", GROUPED, "logits by transformers differ from those here by"),
        ("mamba", {}, r"its modules do more with their weights .*no attribute 'weight'"),
    ],
)
def test_what_does_more_than_its_modules_say_is_refused(
    kind: str, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    written(kind, tmp_path, **options)
    with pytest.raises(ConfigError, match=line):
        ours(tmp_path).init(torch.Generator().manual_seed(0))


def test_scaled_embeddings_are_refused_when_it_is_built(tmp_path: Path) -> None:
    written("gemma", tmp_path, head_dim=4, **GROUPED)
    with pytest.raises(ValueError, match="tokens go in and out by Gemma"):
        ours(tmp_path)
