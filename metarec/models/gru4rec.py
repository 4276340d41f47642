"""GRU4Rec: a recurrent next-item model, written once for one user or many.

    h_j = GRU(E[item_j], h_{j-1});   score(item | prefix) = W dropout(h_last) + b

Source: Hidasi et al. 2016, arXiv:1511.06939; weights, names and gate order as in torch.nn.GRU, so a state dict of
`Embedding, GRU, Linear` loads as it is (`metarec.models.convert`).
Shapes: T tasks, N pairs a task, S states of the batch (`core.batch`), V items, d embedding, H hidden. Item 0 is
padding: its embedding is never read by a valid state and it has no logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.ops import embed, linear
from metarec.core.weights import Params, Weights, own


@dataclass(frozen=True)
class GRU4Rec:
    n_items: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    dropout: float = 0.1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        v, d, h = self.n_items, self.embedding_dim, self.hidden_dim
        return {
            "embedding.weight": (v + 1, d),
            "gru.weight_ih_l0": (3 * h, d),
            "gru.weight_hh_l0": (3 * h, h),
            "gru.bias_ih_l0": (3 * h,),
            "gru.bias_hh_l0": (3 * h,),
            "fc.weight": (v, h),
            "fc.bias": (v,),
        }

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: the state before any event, and a shift of the last hidden state."""
        return {"context.state": (self.hidden_dim,), "context.shift": (self.hidden_dim,)}

    @property
    def head(self) -> tuple[str, ...]:
        return ("fc.weight", "fc.bias", "context.shift")

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """torch's own defaults: N(0, 1) embedding, uniform +-1/sqrt(H) elsewhere; row 0 (padding) is zero."""
        bound = self.hidden_dim**-0.5
        params: Params = {}
        for name, shape in self.shapes().items():
            if name == "embedding.weight":
                params[name] = torch.randn(shape, generator=generator, dtype=dtype)
                params[name][0] = 0.0
            else:
                params[name] = torch.rand(shape, generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
        return params

    def encode(self, params: Weights, sequences: Sequences) -> Tensor:
        """Hidden states [T + S, H]: of each task before any event (zero without context), then behind every event."""
        x = linear(
            embed(sequences.items, params["embedding.weight"]), params["gru.weight_ih_l0"], params["gru.bias_ih_l0"]
        )
        start = own(params["context.state"], sequences.n_tasks) if "context.state" in params else None
        states = gru(x, sequences, params["gru.weight_hh_l0"], params["gru.bias_hh_l0"], start)
        begin = states.new_zeros(sequences.n_tasks, self.hidden_dim) if start is None else start
        return torch.cat([begin, states])

    def score(self, params: Weights, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """states [T, N, H] -> logits [T, N, V], column i - 1 for item i. A generator switches dropout on."""
        if generator is not None and self.dropout > 0:
            keep = (
                torch.rand(states.shape, generator=generator, dtype=states.dtype, device=states.device) >= self.dropout
            )
            states = states * keep / (1 - self.dropout)
        if "context.shift" in params:
            states = states + own(params["context.shift"], states.shape[0])[:, None, :]
        return linear(states, params["fc.weight"], params["fc.bias"])
