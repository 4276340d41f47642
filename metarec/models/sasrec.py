"""SASRec: self-attention over the events so far, written once for one user or many.

    h = E[item_j] + P[j];   per layer  h += attention(norm1(h)),  h += W2 relu(W1 norm2(h) + b1) + b2
    score(item | prefix) = E[item] . norm(h_last)              (tied; or W norm(h_last) + b)

Source: Kang & McAuley 2018, arXiv:1808.09781. What differs here: norms stand ahead of each part and what they read goes
on unnormalised, as in the paper's text (the authors' code normalises queries alone and carries on the normalised); heads
end in a projection; nothing is scaled by sqrt(d); the loss is cross-entropy over the catalogue at all positions (there one
drawn negative each); weights of attention have no dropout. And an event's position is its number *from the start of its
sequence*. The paper pads in front, so there the last event always has the same position. Counted from the start, the
prefixes of one session share their states; a prefix cut to its latest `max_len` events starts at position 0 again.

Shapes: T tasks, N pairs a task, S states of the batch (`core.batch`), V items, d width, P prefix tokens. Item 0 is padding:
its embedding is never read by a valid state and it has no logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.core.attention import Attention, Layout, Prefix, differentiated_twice
from metarec.core.batch import Sequences
from metarec.core.ops import embed, layer_norm, linear
from metarec.core.states import dropout, score_items
from metarec.core.weights import Factored, Params, Weights, fast, own, rescaled
from metarec.models.personal import personal
from metarec.options import Refusal, ranged


@dataclass
class Config:
    """conf/model/sasrec.yaml"""

    name: str = "sasrec"
    dim: int = ranged(64, min=1)
    n_layers: int = ranged(2, min=1)
    n_heads: int = ranged(2, min=1)
    ffn_dim: int | None = ranged(None, min=1)  # None = dim
    dropout: float = ranged(0.2, min=0, max=1, exclusive=["max"])
    tie: bool = True
    n_prefix: int = ranged(2, min=1)  # prefix tokens that residual=context adapts
    max_len: int = ranged(50, min=1)

    has: ClassVar[tuple[str, ...]] = ("norm",)
    pretrain_lr: ClassVar[float] = 1e-3

    def refused(self) -> Iterator[Refusal]:
        """A width that cannot be divided among the heads."""
        if self.dim % self.n_heads:
            yield "dim", f"is no multiple of model.n_heads={self.n_heads}", f"give a multiple of {self.n_heads}"


def build(config: Config, n_items: int) -> SASRec:
    """`max_len` is the number of positions; `ffn_dim` null: as wide as `dim`."""
    return SASRec(
        n_items, config.dim, config.n_layers, config.n_heads, config.dropout, config.max_len, config.ffn_dim, config.tie,
        config.n_prefix,
    )  # fmt: skip


@dataclass(frozen=True)
class SASRec:
    n_items: int
    dim: int = 64
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    max_len: int = 50  # events of the longest sequence
    ffn_dim: int | None = None  # None = dim, as in the paper
    tie: bool = True  # score with the item embedding
    n_prefix: int = 2  # tokens of `context.prefix`

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ValueError(f"SASRec: dim={self.dim} cannot be cut into n_heads={self.n_heads} equal heads")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        v, d, f = self.n_items, self.dim, self.ffn_dim or self.dim
        # prefix tokens have positions too
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.weight": (v + 1, d), "position.weight": (max(self.max_len, self.n_prefix), d)
        }  # fmt: skip
        for i in range(self.n_layers):
            of_layer = {
                "norm1.weight": (d,), "norm1.bias": (d,), "attention.in.weight": (3 * d, d), "attention.in.bias": (3 * d,),
                "attention.out.weight": (d, d), "attention.out.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
                "ffn1.weight": (f, d), "ffn1.bias": (f,), "ffn2.weight": (d, f), "ffn2.bias": (d,),
            }  # fmt: skip
            shapes |= {f"layers.{i}.{name}": shape for name, shape in of_layer.items()}
        shapes |= {"norm.weight": (d,), "norm.bias": (d,)}
        return shapes if self.tie else shapes | {"fc.weight": (v, d), "fc.bias": (v,)}

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: prefix tokens that all events attend to, and a shift of the last hidden state.

        Prefix token j stands at position j without an item: its key is that of P[j] + c[j], its value that of c[j] alone.
        So a zero token has no effect, the gradient there is that of the value, and the tokens differ from the start.
        """
        return {"context.prefix": (self.n_prefix, self.dim), "context.shift": (self.dim,)}

    def scale_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=ia3` adapts: scales of keys, values and inner feed-forward layers, and of the last hidden state."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(self.n_layers):
            shapes |= {f"scale.l{i}.keys": (self.dim,), f"scale.l{i}.values": (self.dim,)}
            shapes[f"scale.l{i}.ffn"] = (self.ffn_dim or self.dim,)
        return shapes | {"scale.state": (self.dim,)}

    @property
    def output(self) -> tuple[str, int] | None:
        """The table that scores states by their products with its rows: the item's number less that of its row."""
        return ("embedding.weight", 0) if self.tie else ("fc.weight", 1)

    @property
    def item_rows(self) -> dict[str, int]:
        """Tables with a row for every item: the item's number less that of its row."""
        return {"embedding.weight": 0} | ({} if self.tie else {"fc.weight": 1, "fc.bias": 1})

    @property
    def slower(self) -> tuple[tuple[str, ...], ...]:
        """Patterns of what moves on a slower timescale than attention and embeddings, level by level: the feed-forward
        layers of the lower half of the blocks, then those of the upper half."""
        half = -(-self.n_layers // 2)
        blocks = range(half), range(half, self.n_layers)
        return tuple(tuple(f"layers.{i}.ffn*" for i in own) for own in blocks)

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        parts = ("attention.in", "attention.out", "ffn1", "ffn2")
        layers = tuple(f"layers.{i}.{part}.weight" for i in range(self.n_layers) for part in parts)
        return layers if self.tie else (*layers, "fc.weight")

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads, the last norm not among it; tied, the embedding is both body and head."""
        return (*(("embedding.weight",) if self.tie else ("fc.weight", "fc.bias")), "context.shift", "scale.state")

    @property
    def norms(self) -> tuple[str, ...]:
        """Weights and biases of the norms."""
        return tuple(name for name in self.shapes() if "norm" in name)

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """N(0, 0.02^2) cut at two standard deviations; biases and row 0 (padding) zero, weights of norms one."""
        params: Params = {}
        for name, shape in self.shapes().items():
            if name.endswith("bias"):
                params[name] = torch.zeros(shape, dtype=dtype)
            elif name in self.norms:
                params[name] = torch.ones(shape, dtype=dtype)
            else:
                params[name] = torch.empty(shape, dtype=dtype)
                torch.nn.init.trunc_normal_(params[name], 0.0, 0.02, -0.04, 0.04, generator)
        params["embedding.weight"][0] = 0.0
        return params

    def encode(self, params: Weights, sequences: Sequences, generator: torch.Generator | None = None) -> Tensor:
        """Hidden states [T + S, d]: of each task before any event (zero), then behind every event.

        A generator switches dropout on (of the embedding and of what each attention and feed-forward part adds).
        """
        layout, n_tasks = Layout.of(sequences), sequences.n_tasks
        if layout.longest > self.max_len:
            raise ValueError(f"SASRec: a sequence of {layout.longest} events, but max_len={self.max_len} positions")
        twice = differentiated_twice(params.values())

        def positions(count: int) -> Tensor:  # [T, count, d]
            with inputs.apart():  # once for all tokens; which token reads which row is said below
                return embed(
                    torch.arange(count, device=sequences.items.device).repeat(n_tasks, 1), params["position.weight"]
                )

        with inputs.only(sequences.events):
            h = layout.gather(embed(sequences.items, params["embedding.weight"]))
        if inputs.active is not None:
            places = params["position.weight"]
            table = fast(places.b if isinstance(places, Factored) else places)
            inputs.active.looked_up(table.shared, sequences.step, every=True)
        h = h + layout.gather_positions(positions(layout.longest))
        h = dropout(h, self.dropout, generator)
        prefix = placed = None
        if "context.prefix" in params:
            prefix = own(params["context.prefix"], n_tasks)
            placed = prefix + positions(self.n_prefix)
        for i in range(self.n_layers):
            layer = {name: params[f"layers.{i}.{name}"] for name in LAYER}
            of_chunks = {name: layout.spread(weight) for name, weight in layer.items()}
            w_in, b_in, w_out, b_out = (layer[f"attention.{name}"] for name in ATTENTION)
            attention = Attention(w_in, b_in, w_out, b_out, self.n_heads)
            seen = None
            if prefix is not None and placed is not None:
                seen = Prefix(layer_norm(placed, layer["norm1.weight"], layer["norm1.bias"]), prefix)
            x = layer_norm(h, of_chunks["norm1.weight"], of_chunks["norm1.bias"])
            scale = _keys_and_values(params, i, n_tasks, h.new_zeros(n_tasks, self.dim))
            with inputs.only(layout.real):
                attended = attention(x, layout, twice=twice, prefix=seen, scale=scale)
            h = h + dropout(attended, self.dropout, generator)
            x = layer_norm(h, of_chunks["norm2.weight"], of_chunks["norm2.bias"])
            with inputs.only(layout.real):
                x = linear(x, of_chunks["ffn1.weight"], of_chunks["ffn1.bias"]).relu()
            if f"scale.l{i}.ffn" in params:
                x = rescaled(x, layout.spread_values(own(params[f"scale.l{i}.ffn"], n_tasks)))
            with inputs.only(layout.real):
                x = linear(x, of_chunks["ffn2.weight"], of_chunks["ffn2.bias"])
            h = h + dropout(x, self.dropout, generator)
        h = layer_norm(h, layout.spread(params["norm.weight"]), layout.spread(params["norm.bias"]))
        return torch.cat([h.new_zeros(n_tasks, self.dim), h.flatten(0, 1).index_select(0, layout.state)])

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, d] -> logits [T, N, V], column i - 1 for item i. The generator is not used: see `encode`.

        items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
        """
        states = personal(states, params)
        if self.tie:
            return score_items(states, params["embedding.weight"], None, items, padded=True)
        return score_items(states, params["fc.weight"], params["fc.bias"], items)


def _keys_and_values(params: Weights, layer: int, n_tasks: int, zero: Tensor) -> Tensor | None:
    """The scales of a layer's keys and values side by side, [T, 2d]; `zero` [T, d] where one of them has none."""
    names = [f"scale.l{layer}.{part}" for part in ("keys", "values")]
    if not any(name in params for name in names):
        return None
    return torch.cat([own(params[name], n_tasks) if name in params else zero for name in names], 1)


ATTENTION = ("in.weight", "in.bias", "out.weight", "out.bias")
LAYER = (
    *(f"attention.{name}" for name in ATTENTION),
    *(f"{part}.{kind}" for part in ("norm1", "norm2", "ffn1", "ffn2") for kind in ("weight", "bias")),
)
