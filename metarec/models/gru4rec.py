"""GRU4Rec: a recurrent next-item model, written once for one user or many.

    h_j = GRU(E[item_j], h_{j-1});   score(item | prefix) = W dropout(h_last) + b

With `n_layers`, the next GRU reads the (dropped) states of the one below; with `tie`, W is E, as in the authors' later
code. `embedding_dropout` drops units of E[item_j].

Source: Hidasi et al. 2016, arXiv:1511.06939, and Hidasi & Karatzoglou 2018, arXiv:1706.03847, for their additions; weights,
names and gate order as in torch.nn.GRU, so a state dict of `Embedding, GRU, Linear` loads as it is
(`metarec.models.convert`).
Shapes: T tasks, N pairs a task, S states of the batch (`core.batch`), V items, d embedding, H hidden. Item 0 is
padding: its embedding is never read by a valid state and it has no logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.ops import embed, linear
from metarec.core.states import dropout, score_items
from metarec.core.weights import Params, Weights, own, rescaled
from metarec.models.personal import personal
from metarec.options import Refusal, ranged


@dataclass
class Config:
    """conf/model/gru4rec.yaml"""

    name: str = "gru4rec"
    embedding_dim: int = ranged(64, min=1)
    hidden_dim: int = ranged(128, min=1)
    n_layers: int = ranged(1, min=1)
    dropout: float = ranged(0.3, min=0, max=1, exclusive=["max"])
    embedding_dropout: float = ranged(0.2, min=0, max=1, exclusive=["max"])
    tie: bool = False
    max_len: int = ranged(50, min=1)

    has: ClassVar[tuple[str, ...]] = ("recurrence",)
    pretrain_lr: ClassVar[float] = 3e-3

    def refused(self) -> Iterator[Refusal]:
        """Tied weights of unlike widths: the state would not fit the embedding that scores it."""
        if self.tie and self.embedding_dim != self.hidden_dim:
            what = f"with model.tie=true the state is scored by the embedding, of width {self.embedding_dim}"
            yield "hidden_dim", what, f"add model.hidden_dim={self.embedding_dim}"


def build(config: Config, n_items: int) -> GRU4Rec:
    """`max_len` is not read: batches are cut to it, and a recurrence has no limit of its own."""
    return GRU4Rec(
        n_items, config.embedding_dim, config.hidden_dim, config.dropout, config.n_layers, config.tie,
        config.embedding_dropout,
    )  # fmt: skip


@dataclass(frozen=True)
class GRU4Rec:
    n_items: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    dropout: float = 0.1  # of the states that the next layer, or the output layer, reads
    n_layers: int = 1
    tie: bool = False  # score with the item embedding
    embedding_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.tie and self.embedding_dim != self.hidden_dim:
            raise ValueError(
                f"GRU4Rec: tie=True scores states with the item embedding, so embedding_dim={self.embedding_dim} and "
                f"hidden_dim={self.hidden_dim} must be equal"
            )
        if self.n_layers < 1:
            raise ValueError(f"GRU4Rec: n_layers={self.n_layers}, at least 1 is needed")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        v, d, h = self.n_items, self.embedding_dim, self.hidden_dim
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (v + 1, d)}
        for i in range(self.n_layers):
            shapes[f"gru.weight_ih_l{i}"] = (3 * h, h if i else d)
            shapes[f"gru.weight_hh_l{i}"] = (3 * h, h)
            shapes[f"gru.bias_ih_l{i}"] = (3 * h,)
            shapes[f"gru.bias_hh_l{i}"] = (3 * h,)
        if not self.tie:
            shapes["fc.weight"] = (v, h)
        shapes["fc.bias"] = (v,)
        return shapes

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: each layer's state before any event, and a shift of the last hidden state."""
        starts: dict[str, tuple[int, ...]] = {_start(i): (self.hidden_dim,) for i in range(self.n_layers)}
        return starts | {"context.shift": (self.hidden_dim,)}

    def scale_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=ia3` adapts: scales of each layer's input projections (r, z, n), and of the last hidden state."""
        inputs: dict[str, tuple[int, ...]] = {f"scale.input_l{i}": (3 * self.hidden_dim,) for i in range(self.n_layers)}
        return inputs | {"scale.state": (self.hidden_dim,)}

    @property
    def output(self) -> tuple[str, int] | None:
        """The table that scores states by their products with its rows: the item's number less that of its row."""
        return ("embedding.weight", 0) if self.tie else ("fc.weight", 1)

    @property
    def item_rows(self) -> dict[str, int]:
        """Tables with a row for every item: the item's number less that of its row."""
        return {"embedding.weight": 0} | ({} if self.tie else {"fc.weight": 1}) | {"fc.bias": 1}

    @property
    def slower(self) -> tuple[tuple[str, ...], ...]:
        """Patterns of what moves on a slower timescale than recurrence and embedding, level by level: the output layer."""
        return (("fc.*",),)

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        inputs = tuple(f"gru.weight_ih_l{i}" for i in range(self.n_layers))
        return inputs if self.tie else (*inputs, "fc.weight")

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads; tied, the embedding is both body and head."""
        return ("embedding.weight" if self.tie else "fc.weight", "fc.bias", "context.shift", "scale.state")

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """torch's own defaults: N(0, 1) embedding, uniform +-1/sqrt(H) elsewhere; row 0 (padding) is zero.

        A tied embedding starts as the output layer that it also is.
        """
        bound = self.hidden_dim**-0.5
        params: Params = {}
        for name, shape in self.shapes().items():
            if name == "embedding.weight" and not self.tie:
                params[name] = torch.randn(shape, generator=generator, dtype=dtype)
            else:
                params[name] = torch.rand(shape, generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
        params["embedding.weight"][0] = 0.0
        return params

    def encode(self, params: Weights, sequences: Sequences, generator: torch.Generator | None = None) -> Tensor:
        """Hidden states [T + S, H]: of each task before any event (zero without context), then behind every event.

        A generator switches dropout on.
        """
        with inputs.only(sequences.events):
            x = dropout(embed(sequences.items, params["embedding.weight"]), self.embedding_dropout, generator)
        at, states, start = sequences, x, None
        for i in range(self.n_layers):
            if i:
                at = sequences.once(_as_events)
                x = dropout(states, self.dropout, generator)
                x = x.new_zeros(at.items.numel(), self.hidden_dim).index_copy(0, at.event, x).view(*at.items.shape, -1)
            with inputs.only(at.events):
                x = linear(x, params[f"gru.weight_ih_l{i}"], params[f"gru.bias_ih_l{i}"])
            if f"scale.input_l{i}" in params:
                x = rescaled(x, own(params[f"scale.input_l{i}"], sequences.n_tasks))
            start = own(params[_start(i)], sequences.n_tasks) if _start(i) in params else None
            states = gru(x, at, params[f"gru.weight_hh_l{i}"], params[f"gru.bias_hh_l{i}"], start)
        begin = states.new_zeros(sequences.n_tasks, self.hidden_dim) if start is None else start
        return torch.cat([begin, states])

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, H] -> logits [T, N, V], column i - 1 for item i. A generator switches dropout on.

        items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
        """
        states = personal(dropout(states, self.dropout, generator), params)
        weight = params["embedding.weight" if self.tie else "fc.weight"]
        return score_items(states, weight, params["fc.bias"], items, padded=self.tie)


def _start(layer: int) -> str:
    return f"context.state_l{layer}" if layer else "context.state"


def _as_events(sequences: Sequences) -> Sequences:
    """The same sequences over states in place of items, for the layer above: state s is item `event[s]` of the result.

    An event has another state in every sequence that reads it, so here nothing is shared.
    """
    starts, counts = sequences.places - sequences.places[:, :1], sequences.lengths.sum(1)
    return Sequences(counts.new_zeros(len(counts), int(counts.max())), starts, sequences.lengths)
