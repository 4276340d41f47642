"""Small language models of transformers in directories, batches of their tokens, and Llama written out slowly in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from metarec.core.batch import Sequences
from metarec.models import Catalogue
from metarec.models.causal_lm import CausalLM, Config, build_of

TOKENS, HEADS, KEYS, POSITIONS = 23, 4, 2, 20
KINDS = ("llama", "gpt2")
WINDOWS = [[(0, 5), (5, 4)], [(0, 7)], [(2, 1), (0, 3), (3, 6)]]  # of each task: (start, length) of its sequences


def theirs(kind: str, tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A model of transformers with weights far from their start, biases and norms among them."""
    common = {"vocab_size": TOKENS, "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None}
    config: Any
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KEYS,
            intermediate_size=24, max_position_embeddings=POSITIONS, **common,
        )  # fmt: skip
    else:
        config = GPT2Config(n_embd=16, n_layer=2, n_head=HEADS, n_positions=POSITIONS, **common)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


def saved(model: Any, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def ours(directory: Path, kind: str = "tokens", n_items: int = TOKENS, **options: Any) -> CausalLM:
    given: dict[str, Any] = {"path": str(directory), "dropout": 0.0, "max_len": POSITIONS, **options}
    return build_of(Config(**given), Catalogue(n_items, kind))


def ragged(n_items: int = TOKENS, seed: int = 1, extra: int = 0) -> Sequences:
    """WINDOWS over random items; `extra`: so many rows of no sequence and columns of any item more."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, n_items + 1, (3, 12), generator=generator)
    if extra:
        items = torch.cat([items, torch.randint(1, n_items + 1, (3, extra), generator=generator)], 1)
    windows = [own + [(0, 0)] * (3 + extra - len(own)) for own in WINDOWS]
    starts, lengths = torch.tensor(windows).unbind(2)
    return Sequences(items, starts.contiguous(), lengths.contiguous())


def prefixes(sequences: Sequences) -> list[list[Tensor]]:
    """The items of every sequence, task by task."""
    return [[sequences.items[t, a : a + n] for a, n in own] for t, own in enumerate(WINDOWS)]


def moved(params: dict[str, Tensor], seed: int = 5, size: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: v + size * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in params.items()}


def slow_llama(weights: dict[str, Tensor], tokens: Tensor, eps: float = 1e-6, base: float = 10_000.0) -> Tensor:
    """States [L, H] behind tokens [L] of the model of `theirs`, head by head and token by token, all in float64."""
    x = weights["model.embed_tokens.weight"][tokens]
    of_head = x.shape[1] // HEADS
    turn = 1.0 / base ** (
        torch.arange(0, of_head, 2, dtype=torch.float32) / of_head
    )  # float32, as transformers has them
    angles = torch.arange(len(tokens), dtype=torch.float64)[:, None] * turn.double()

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + eps) ** -0.5 * weights[name]

    def rotated(v: Tensor) -> Tensor:
        a, b = v[:, : of_head // 2], v[:, of_head // 2 :]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1)

    for layer in ("model.layers.0.", "model.layers.1."):
        y = norm(x, layer + "input_layernorm.weight")
        q, k, v = (y @ weights[f"{layer}self_attn.{name}_proj.weight"].T for name in "qkv")
        found = []
        for head in range(HEADS):
            key = slice(head // (HEADS // KEYS) * of_head, (head // (HEADS // KEYS) + 1) * of_head)
            q_, k_, v_ = rotated(q[:, head * of_head : (head + 1) * of_head]), rotated(k[:, key]), v[:, key]
            rows = []
            for j in range(len(tokens)):
                mass = (k_[: j + 1] @ q_[j] * of_head**-0.5).exp()
                rows.append(mass @ v_[: j + 1] / mass.sum())
            found.append(torch.stack(rows))
        x = x + torch.cat(found, 1) @ weights[layer + "self_attn.o_proj.weight"].T
        y = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = (y @ weights[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ weights[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight")
