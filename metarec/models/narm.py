"""NARM: a recurrent next-item model that looks back over its own states; written once for one user or many.

    h_j = GRU(E[item_j], h_{j-1});   a_ij = v . sigmoid(A1 h_j + A2 h_i),   c_j = [h_j ; sum over i <= j of a_ij h_i]
    score(item | prefix) = E[item] . B dropout(c_last)             (tie, the bilinear decoder; or W dropout(c_last) + b)

Source: Li et al. 2017, arXiv:1711.04725, eq. 3 to 10; weights a_ij are not normalised, as there. What differs here: the GRU
has torch's biases (`gru.*` are names and gate order of torch.nn.GRU), and the loss is over the whole catalogue.
Shapes: T tasks, N pairs a task, S states of the batch (`core.batch`), P pairs of a state and one that it looks back at,
V items, d embedding, H hidden. Item 0 is padding: its embedding is never read by a valid state and it has no logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.core.batch import Sequences
from metarec.core.gru import gru
from metarec.core.ops import embed, linear
from metarec.core.states import dropout, linear_states, score_items
from metarec.core.weights import Params, Weights, own, rescaled
from metarec.models.personal import personal
from metarec.options import ranged


@dataclass
class Config:
    """conf/model/narm.yaml"""

    name: str = "narm"
    embedding_dim: int = ranged(64, min=1)
    hidden_dim: int = ranged(128, min=1)
    dropout: float = ranged(0.5, min=0, max=1, exclusive=["max"])
    embedding_dropout: float = ranged(0.25, min=0, max=1, exclusive=["max"])
    tie: bool = True
    max_len: int = ranged(50, min=1)

    has: ClassVar[tuple[str, ...]] = ("recurrence",)
    pretrain_lr: ClassVar[float] = 3e-3  # six epochs of the embedded world: validation NDCG@10 .284; of 1e-3 .278
    context_lr: ClassVar[float] = 0.3  # at 3.0 a short run ends below where it began


def build(config: Config, n_items: int) -> NARM:
    """`max_len` is not read: batches are cut to it, and a recurrence has no limit of its own."""
    return NARM(
        n_items, config.embedding_dim, config.hidden_dim, config.dropout, config.embedding_dropout, config.tie
    )  # fmt: skip


@dataclass(frozen=True)
class NARM:
    n_items: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    dropout: float = 0.5  # of what the decoder reads
    embedding_dropout: float = 0.25
    tie: bool = True  # score with the item embedding

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        v, d, h = self.n_items, self.embedding_dim, self.hidden_dim
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.weight": (v + 1, d),
            "gru.weight_ih_l0": (3 * h, d), "gru.weight_hh_l0": (3 * h, h),
            "gru.bias_ih_l0": (3 * h,), "gru.bias_hh_l0": (3 * h,),
            "attention.query.weight": (h, h), "attention.key.weight": (h, h), "attention.mass": (h,),
        }  # fmt: skip
        if self.tie:
            return shapes | {"decoder.weight": (d, 2 * h)}
        return shapes | {"fc.weight": (v, 2 * h), "fc.bias": (v,)}

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: the state before any event, and a shift of what the decoder reads."""
        return {"context.state": (self.hidden_dim,), "context.shift": (2 * self.hidden_dim,)}

    def scale_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=ia3` adapts: scales of the input projections (r, z, n), and of what the decoder reads."""
        return {"scale.input_l0": (3 * self.hidden_dim,), "scale.state": (2 * self.hidden_dim,)}

    @property
    def output(self) -> tuple[str, int] | None:
        """The table that scores states by their products with its rows: the item's number less that of its row."""
        return None if self.tie else ("fc.weight", 1)  # tied, a bilinear form stands between

    @property
    def item_rows(self) -> dict[str, int]:
        """Tables with a row for every item: the item's number less that of its row."""
        return {"embedding.weight": 0} | ({} if self.tie else {"fc.weight": 1, "fc.bias": 1})

    @property
    def slower(self) -> tuple[tuple[str, ...], ...]:
        """Patterns of what moves on a slower timescale than recurrence and embedding, level by level: attention, then the
        decoder or output layer."""
        return (("attention.*",), ("decoder.*", "fc.*"))

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        body = ("gru.weight_ih_l0", "attention.query.weight", "attention.key.weight")
        return (*body, "decoder.weight" if self.tie else "fc.weight")

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads; tied, the embedding is both body and head."""
        table = ("embedding.weight", "decoder.weight") if self.tie else ("fc.weight", "fc.bias")
        return (*table, "context.shift", "scale.state")

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Uniform +-1/sqrt(inputs), of the GRU +-1/sqrt(H) as in torch; an untied embedding N(0, 1); row 0 is zero."""
        params: Params = {}
        for name, shape in self.shapes().items():
            if name == "embedding.weight" and not self.tie:
                params[name] = torch.randn(shape, generator=generator, dtype=dtype)
                continue
            inputs = {"gru": self.hidden_dim, "fc": 2 * self.hidden_dim}.get(name.partition(".")[0], shape[-1])
            bound = inputs**-0.5
            params[name] = torch.rand(shape, generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
        params["embedding.weight"][0] = 0.0
        return params

    def encode(self, params: Weights, sequences: Sequences, generator: torch.Generator | None = None) -> Tensor:
        """Global beside local state, [T + S, 2H]: of each task before any event, then behind every event.

        Before any event there is nothing to look back at. A generator switches dropout on.
        """
        n_tasks = sequences.n_tasks
        with inputs.only(sequences.events):
            x = dropout(embed(sequences.items, params["embedding.weight"]), self.embedding_dropout, generator)
            x = linear(x, params["gru.weight_ih_l0"], params["gru.bias_ih_l0"])
        if "scale.input_l0" in params:
            x = rescaled(x, own(params["scale.input_l0"], n_tasks))
        start = own(params["context.state"], n_tasks) if "context.state" in params else None
        h = gru(x, sequences, params["gru.weight_hh_l0"], params["gru.bias_hh_l0"], start)
        query, key = (linear_states(h, sequences, params[f"attention.{name}.weight"]) for name in ("query", "key"))
        looking, seen, task = sequences.once(_looks)
        inner = torch.sigmoid(query.index_select(0, looking) + key.index_select(0, seen))  # [P, H]
        mass = (inner * own(params["attention.mass"], n_tasks).index_select(0, task)).sum(1, keepdim=True)
        local = torch.zeros_like(h).index_add(0, looking, mass * h.index_select(0, seen))
        begin = h.new_zeros(n_tasks, self.hidden_dim) if start is None else start
        return torch.cat([torch.cat([begin, torch.zeros_like(begin)], 1), torch.cat([h, local], 1)])

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, 2H] -> logits [T, N, V], column i - 1 for item i. A generator switches dropout on.

        items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
        """
        states = personal(dropout(states, self.dropout, generator), params)
        if self.tie:
            states = linear(states, params["decoder.weight"])
            return score_items(states, params["embedding.weight"], None, items, padded=True)
        return score_items(states, params["fc.weight"], params["fc.bias"], items)


def _looks(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Each state and each of its sequence up to it: (the state that looks, the one it sees, their task), int64 [P]."""
    count = sequences.step + 1  # the states that each looks at
    state = torch.arange(len(count), device=count.device)
    looking = state.repeat_interleave(count)
    number = torch.arange(len(looking), device=count.device) - (count.cumsum(0) - count)[looking]
    return looking, (state - sequences.step)[looking] + number, sequences.task[looking]
