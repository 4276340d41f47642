"""The models of torch's own layers, one prefix (or one task's images) at a time: the slow second version of `models`.

Each takes a dictionary by the names of the engine's weights, with contexts where they stand among them, and can be
differentiated as often as one likes. Nothing is packed and nothing padded. Options follow from which names are there and
from their shapes; only the number of heads and the kind of pooling are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]


@lru_cache
def _gru(n_in: int, n_hidden: int, n_layers: int) -> nn.GRU:
    return nn.GRU(n_in, n_hidden, n_layers, dtype=torch.float64)


@lru_cache
def _attention(dim: int, n_heads: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(dim, n_heads, dtype=torch.float64)


def _part(params: Params, prefix: str) -> Params:
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _scores(params: Params, state: Tensor) -> Tensor:
    """state [H] -> logits [V]: by the output layer, or by the item embedding where there is none."""
    state = state + params["context.shift"] if "context.shift" in params else state
    logits = params["fc.weight"] @ state if "fc.weight" in params else params["embedding.weight"][1:] @ state
    return logits + params["fc.bias"] if "fc.bias" in params else logits


def gru4rec(params: Params, prefix: Sequence[int]) -> Tensor:
    """Logits [V] behind one prefix; an empty one leaves the state before any event: zero, or the context's."""
    weights = _part(params, "gru.")
    n_hidden, n_layers = weights["weight_hh_l0"].shape[1], len(weights) // 4
    names = ["context.state" if i == 0 else f"context.state_l{i}" for i in range(n_layers)]
    zero = torch.zeros(n_hidden, dtype=torch.float64)
    start = torch.stack([params.get(name, zero) for name in names])
    if not prefix:
        return _scores(params, start[-1])
    x = params["embedding.weight"][list(prefix)]
    states, _ = functional_call(_gru(x.shape[1], n_hidden, n_layers), weights, (x, start))
    return _scores(params, states[-1])


def sasrec(params: Params, prefix: Sequence[int], n_heads: int) -> Tensor:
    """Logits [V] behind one prefix, all its states by nn.MultiheadAttention; an empty one has state zero.

    Prefix tokens c (`context.prefix`), for every query and head: softmax(q . K norm1(P + c)) V c beside attention's own sum.
    """
    position, tokens = params["position.weight"], params.get("context.prefix")
    dim, n = position.shape[1], len(prefix)
    if not prefix:
        return _scores(params, torch.zeros(dim, dtype=torch.float64))
    h = params["embedding.weight"][list(prefix)] + position[:n]
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    for i in range(sum(name.endswith("ffn1.bias") for name in params)):
        of = _part(params, f"layers.{i}.")
        x = F.layer_norm(h, (dim,), of["norm1.weight"], of["norm1.bias"])
        theirs = {
            "in_proj_weight": of["attention.in.weight"], "in_proj_bias": of["attention.in.bias"],
            "out_proj.weight": of["attention.out.weight"], "out_proj.bias": of["attention.out.bias"],
        }  # fmt: skip
        # asked for the masses it goes by plain products, which can be differentiated twice; the fused kernel cannot
        added, _ = functional_call(
            _attention(dim, n_heads), theirs, (x, x, x), {"attn_mask": later, "need_weights": True}
        )
        if tokens is not None:
            w_q, w_k, w_v = of["attention.in.weight"].chunk(3)
            q = x @ w_q.T + of["attention.in.bias"][:dim]
            k = F.layer_norm(position[: len(tokens)] + tokens, (dim,), of["norm1.weight"], of["norm1.bias"]) @ w_k.T
            v = tokens @ w_v.T
            size = dim // n_heads
            by_head = zip(q.split(size, 1), k.split(size, 1), v.split(size, 1), strict=True)
            seen = torch.cat([(a @ b.T / size**0.5).softmax(1) @ c for a, b, c in by_head], 1)
            added = added + seen @ of["attention.out.weight"].T
        h = h + added
        x = F.layer_norm(h, (dim,), of["norm2.weight"], of["norm2.bias"])
        x = F.relu(F.linear(x, of["ffn1.weight"], of["ffn1.bias"]))
        h = h + F.linear(x, of["ffn2.weight"], of["ffn2.bias"])
    return _scores(params, F.layer_norm(h[-1], (dim,), params["norm.weight"], params["norm.bias"]))


def narm(params: Params, prefix: Sequence[int]) -> Tensor:
    """Logits [V] behind one prefix: states by nn.GRU, then one state after another that the last one looks back at."""
    weights = _part(params, "gru.")
    n_hidden = weights["weight_hh_l0"].shape[1]
    zero = torch.zeros(n_hidden, dtype=torch.float64)
    state, local = params.get("context.state", zero), zero
    if prefix:
        x = params["embedding.weight"][list(prefix)]
        states, _ = functional_call(_gru(x.shape[1], n_hidden, 1), weights, (x, state[None]))
        state = states[-1]
        for other in states:
            inner = params["attention.query.weight"] @ state + params["attention.key.weight"] @ other
            local = local + params["attention.mass"] @ inner.sigmoid() * other
    both = torch.cat([state, local])
    both = both + params["context.shift"] if "context.shift" in params else both
    if "fc.weight" in params:
        return params["fc.weight"] @ both + params["fc.bias"]
    return params["embedding.weight"][1:] @ (params["decoder.weight"] @ both)


@lru_cache
def _lstm(dim: int) -> nn.LSTM:
    return nn.LSTM(dim, dim, dtype=torch.float64)


def nested(params: Params, prefix: Sequence[int]) -> Tensor:
    """Logits [V] behind one prefix: nn.GRU or nn.LSTM, then two blocks of nn.functional; an empty one has state zero."""
    fast = _part(params, "fast.")
    gates, dim = fast["weight_hh"].shape
    if not prefix:
        return _nested_scores(params, torch.zeros(dim, dtype=torch.float64))
    x = params["embedding.weight"][list(prefix)]
    theirs = {f"{name}_l0": fast[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    start = params.get("context.state", torch.zeros(dim, dtype=torch.float64))[None]
    if gates == 4 * dim:
        h, _ = functional_call(_lstm(dim), theirs, (x, (start, torch.zeros_like(start))))
    else:
        h, _ = functional_call(_gru(dim, dim, 1), theirs, (x, start))
    y = F.layer_norm(x + h, (dim,), fast["norm.weight"], fast["norm.bias"])
    for level in ("medium", "slow"):
        of = _part(params, f"{level}.")
        inner = F.gelu(F.linear(y, of["up.weight"], of["up.bias"]))
        y = F.layer_norm(
            y + F.linear(inner, of["down.weight"], of["down.bias"]), (dim,), of["norm.weight"], of["norm.bias"]
        )
    return _nested_scores(params, y[-1])


def _nested_scores(params: Params, state: Tensor) -> Tensor:
    state = state + params.get("context.shift", torch.zeros_like(state))
    weight = params["fc.weight"] if "fc.weight" in params else params["embedding.weight"][1:]
    return weight @ state + params["fc.bias"]


def conv4(params: Params, images: Tensor, pool: str = "max") -> Tensor:
    """Logits [N, n_way] of one task's images [N, C, H, W]; norms go by these images, or by norm{i}.mean and .var."""
    x = images
    for i in range(1, 5):
        of, norm = _part(params, f"conv{i}."), _part(params, f"norm{i}.")
        x = F.conv2d(x, of["weight"], of["bias"], stride=2 if pool == "stride" else 1, padding=1)
        mean, var = norm.get("mean"), norm.get("var")
        x = F.batch_norm(x, mean, var, norm["weight"], norm["bias"], training=mean is None)
        if i == 1 and "context.channels" in params:
            x = x + params["context.channels"].view(1, -1, 1, 1)
        x = F.relu(x)
        x = F.max_pool2d(x, 2) if pool == "max" else x
    x = x.flatten(1)
    x = x + params["context.shift"] if "context.shift" in params else x
    return F.linear(x, params["fc.weight"], params["fc.bias"])
