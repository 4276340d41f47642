"""Nested: a recurrence, then two feed-forward blocks, each the level of a slower timescale.

    fast     y1_j = norm(E[item_j] + h_j),  h_j = GRU or LSTM (E[item_j], h_{j-1})
    medium   y2_j = norm(y1_j + D2 gelu(U2 y1_j + a2) + d2)
    slow     y3_j = norm(y2_j + D3 gelu(U3 y2_j + a3) + d3)
    score(item | prefix) = W y3_last + b

The level of a weight is the beginning of its name: `fast.`, `medium.`, `slow.`, beside `embedding.weight` and the head `fc.`
(`tie`: the embedding scores as well). So patterns choose timescales (`algorithm.inner.adapt=["fast.*"]`).

Source: Behrouz et al. 2025, "Nested Learning": memories of a continuum of timescales, from those that follow each token to
those that hardly move. The size and order of these parts are ours. Names and gate order of the recurrence as in torch's.
Shapes: T tasks, M events a task, S states of the batch (`core.batch`), V items, d width, F inner width. Item 0 is padding:
its embedding is never read by a valid state and it has no logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import inputs
from metarec.core.attention import Layout
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.lstm import lstm
from metarec.core.ops import embed, layer_norm, linear
from metarec.core.states import Watch, dropout, score_items
from metarec.core.weights import Params, Weights, own, rescaled
from metarec.models.personal import personal
from metarec.options import Refusal, ranged


@dataclass
class Config:
    """conf/model/nested.yaml"""

    name: str = "nested"
    cell: str = ranged("gru", choices=["gru", "lstm"])
    dim: int = ranged(64, min=1)
    medium_dim: int | None = ranged(None, min=1)  # None = 2 * dim
    slow_dim: int | None = ranged(None, min=1)  # None = 4 * dim
    dropout: float = ranged(0.2, min=0, max=1, exclusive=["max"])
    tie: bool = False
    max_len: int = ranged(50, min=1)

    has: ClassVar[tuple[str, ...]] = ("recurrence", "norm")
    levels: ClassVar[tuple[str, ...]] = ("fast", "medium", "slow")  # what `objective.surprise` finds
    pretrain_lr: ClassVar[float] = 3e-3

    def refused(self) -> Iterator[Refusal]:
        """A width of one, which a norm makes zero."""
        if self.dim < 2:
            yield "dim", "a norm over one number is always zero", "give 2 or more"


def build(config: Config, n_items: int) -> Nested:
    """`max_len` is not read: batches are cut to it, and a recurrence has no limit of its own."""
    return Nested(
        n_items, config.dim, config.cell, config.medium_dim or 2 * config.dim, config.slow_dim or 4 * config.dim,
        config.dropout, config.tie,
    )  # fmt: skip


GATES = {"gru": 3, "lstm": 4}
BLOCKS = ("medium", "slow")


@dataclass(frozen=True)
class Nested:
    n_items: int
    dim: int = 64
    cell: str = "gru"
    medium_dim: int = 128
    slow_dim: int = 256
    dropout: float = 0.2  # of the embedding and of what each block adds
    tie: bool = False  # score with the item embedding

    @property
    def _inner(self) -> dict[str, int]:
        return {"medium": self.medium_dim, "slow": self.slow_dim}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        v, d, gates = self.n_items, self.dim, GATES[self.cell] * self.dim
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.weight": (v + 1, d),
            "fast.weight_ih": (gates, d), "fast.weight_hh": (gates, d), "fast.bias_ih": (gates,), "fast.bias_hh": (gates,),
            "fast.norm.weight": (d,), "fast.norm.bias": (d,),
        }  # fmt: skip
        for level, f in self._inner.items():
            shapes |= {
                f"{level}.up.weight": (f, d), f"{level}.up.bias": (f,), f"{level}.down.weight": (d, f),
                f"{level}.down.bias": (d,), f"{level}.norm.weight": (d,), f"{level}.norm.bias": (d,),
            }  # fmt: skip
        return shapes | ({} if self.tie else {"fc.weight": (v, d)}) | {"fc.bias": (v,)}

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: the recurrence's state before any event, and a shift of the last state."""
        return {"context.state": (self.dim,), "context.shift": (self.dim,)}

    def scale_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=ia3` adapts: scales of the input projections, of both inner layers, and of the last state."""
        inner: dict[str, tuple[int, ...]] = {f"scale.{level}": (f,) for level, f in self._inner.items()}
        return {"scale.input": (GATES[self.cell] * self.dim,)} | inner | {"scale.state": (self.dim,)}

    @property
    def output(self) -> tuple[str, int] | None:
        """The table that scores states by their products with its rows: the item's number less that of its row."""
        return ("embedding.weight", 0) if self.tie else ("fc.weight", 1)

    @property
    def item_rows(self) -> dict[str, int]:
        """Tables with a row for every item: the item's number less that of its row."""
        return {"embedding.weight": 0} | ({} if self.tie else {"fc.weight": 1}) | {"fc.bias": 1}

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        blocks = (f"{level}.{part}.weight" for level in BLOCKS for part in ("up", "down"))
        return ("fast.weight_ih", *blocks, *(() if self.tie else ("fc.weight",)))

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads; tied, the embedding is both body and head."""
        return ("embedding.weight" if self.tie else "fc.weight", "fc.bias", "context.shift", "scale.state")

    @property
    def norms(self) -> tuple[str, ...]:
        """Weights and biases of the norms."""
        return tuple(name for name in self.shapes() if ".norm." in name)

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """torch's defaults of each part: N(0, 1) embedding, uniform +-1/sqrt(width) else; norms one and zero; row 0 zero.

        A tied embedding starts as the output layer that it also is.
        """
        params: Params = {}
        for name, shape in self.shapes().items():
            if name in self.norms:
                params[name] = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
            elif name == "embedding.weight" and not self.tie:
                params[name] = torch.randn(shape, generator=generator, dtype=dtype)
            else:
                level = name.split(".")[0]
                bound = (self._inner[level] if ".down." in name else self.dim) ** -0.5
                params[name] = torch.rand(shape, generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
        params["embedding.weight"][0] = 0.0
        return params

    @property
    def levels(self) -> tuple[str, ...]:
        """What `encode` shows to a watch, in this order."""
        return ("fast", *BLOCKS)

    def encode(
        self,
        params: Weights,
        sequences: Sequences,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """States [T + S, d]: of each task before any event (zero), then behind every event. A generator drops.

        A watch is shown what each level puts out, in the same form.
        """
        layout, n_tasks = Layout.of(sequences), sequences.n_tasks
        with inputs.only(sequences.events):
            x = dropout(embed(sequences.items, params["embedding.weight"]), self.dropout, generator)
            gates = linear(x, params["fast.weight_ih"], params["fast.bias_ih"])
        if "scale.input" in params:
            gates = rescaled(gates, own(params["scale.input"], n_tasks))
        start = own(params["context.state"], n_tasks) if "context.state" in params else None
        recurrence = gru if self.cell == "gru" else lstm
        h = recurrence(gates, sequences, params["fast.weight_hh"], params["fast.bias_hh"], start)
        y = _norm(params, "fast", layout, layout.gather(x) + _tokens(h, layout))
        y = y if watch is None else _tokens(watch("fast", _states(y, layout))[n_tasks:], layout)
        for level in BLOCKS:
            inner = F.gelu(_linear(params, f"{level}.up", layout, y))
            if f"scale.{level}" in params:
                inner = rescaled(inner, layout.spread_values(own(params[f"scale.{level}"], n_tasks)))
            added = dropout(_linear(params, f"{level}.down", layout, inner), self.dropout, generator)
            y = _norm(params, level, layout, y + added)
            if watch is not None and level != BLOCKS[-1]:
                y = _tokens(watch(level, _states(y, layout))[n_tasks:], layout)
        states = _states(y, layout)
        return states if watch is None else watch(BLOCKS[-1], states)

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, d] -> logits [T, N, V], column i - 1 for item i. The generator is not used: see `encode`.

        items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
        """
        weight = params["embedding.weight" if self.tie else "fc.weight"]
        return score_items(personal(states, params), weight, params["fc.bias"], items, padded=self.tie)


def _tokens(states: Tensor, layout: Layout) -> Tensor:
    """states [S, d] -> tokens [C, N, d], zero where there is none."""
    tokens = states.new_zeros(len(layout.event), states.shape[1]).index_copy(0, layout.state, states)
    return tokens.view(-1, layout.width, states.shape[1])


def _states(tokens: Tensor, layout: Layout) -> Tensor:
    """tokens [C, N, d] -> states [T + S, d], those before any event zero."""
    return torch.cat([
        tokens.new_zeros(layout.n_tasks, tokens.shape[2]), tokens.flatten(0, 1).index_select(0, layout.state)
    ])  # fmt: skip


def _linear(params: Weights, name: str, layout: Layout, x: Tensor) -> Tensor:
    """x [C, N, in] -> [C, N, out]."""
    with inputs.only(layout.real):
        return linear(x, layout.spread(params[f"{name}.weight"]), layout.spread(params[f"{name}.bias"]))


def _norm(params: Weights, level: str, layout: Layout, x: Tensor) -> Tensor:
    """x [C, N, d], normalised over d."""
    return layer_norm(x, layout.spread(params[f"{level}.norm.weight"]), layout.spread(params[f"{level}.norm.bias"]))
