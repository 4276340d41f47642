"""Causal self-attention of many tasks at once over packed sequences.

    y_j = softmax(q_j . (k_1 ... k_j) / sqrt(width of a head)) (v_1 ... v_j)  +  prefix term           per head

An event has another state in every sequence that reads it (`core.batch`), so here a *token* is a state: the tokens of a
task stand one behind the other, and everything but attention itself runs on them without regard to sequences. So that
a task of few tokens is not padded to one of many, the many are cut into *chunks*, [C, N, d], and the weights of a task are
given to each of its chunks (`Layout.spread`). For attention, sequences of about one length are laid side by side and
padded to the longest of them. Padding stands behind the last event, where causality hides it: no mask beyond the causal
one is needed.

**Prefix term.** Tokens that belong to the task and stand ahead of every sequence (Li & Liang 2021, arXiv:2101.00190), but
with a softmax of their own: softmax(q_j . k) v over the prefix tokens alone. In the common softmax a zero token would
still take mass from the events; here v = 0 adds nothing, whatever the keys are.

**Two kernels**, the same numbers to rounding. The fused one of torch is the faster one and keeps no matrix of masses, but
cannot be differentiated twice (it says so when asked to); the other one, of plain products and a softmax, can.

Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2. Checked against torch's own attention in
tests/core/test_attention.py.

Shapes: T tasks, M events a task, R sequences a task, S states of the batch, C chunks of N tokens, P prefix tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import inputs
from metarec.core.batch import Sequences
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows, rebuilt, tensors
from metarec.core.ops import linear
from metarec.core.weights import Factored, FastWeight, Finish, Read, Tap, Weight, fast_parts, rescaled

# What bends the classes of lengths, not the result; measured on a CPU, in products of a query and a key.
PLACE_COST = 160  # of a place, whatever its sequence's length
CLASS_COST = 30_000  # of a class
CHUNK_COST = 8  # of a chunk by itself, in tokens


@dataclass(frozen=True)
class Layout:
    """Where tokens come from, where they stand in attention, and which of them are states."""

    n_tasks: int
    width: int  # N, at least 1
    owner: Tensor | None  # int64 [C], the task of each chunk; None where every task is one chunk
    longest: int  # events of the longest sequence, at least 1
    event: Tensor  # int64 [C*N], the event in [0, T*M) of a token; any event of the task where there is no token
    position: Tensor  # int64 [C*N], task * longest + the event's number in its sequence
    state: Tensor  # int64 [S], the token in [0, C*N) of each state
    classes: list[tuple[int, int]]  # (sequences, padded length) side by side
    token: Tensor  # int64 [places of all classes], the token of each place; the sequence's last one behind its end
    place: Tensor  # int64 [C*N], the place of each token

    @staticmethod
    def of(sequences: Sequences) -> Layout:
        """Made once for a batch, used by every layer and every inner step."""
        return sequences.once(_layout)

    def real(self) -> Tensor:
        """Which tokens are states, bool [C, N]."""
        found = torch.zeros(len(self.event), dtype=torch.bool, device=self.event.device)
        return found.index_fill(0, self.state, True).view(-1, self.width)

    def gather(self, events: Tensor) -> Tensor:
        """events [T, M, d] -> tokens [C, N, d]."""
        return events.flatten(0, 1).index_select(0, self.event).view(-1, self.width, events.shape[2])

    def gather_positions(self, positions: Tensor) -> Tensor:
        """positions [T, longest, d] -> tokens [C, N, d]."""
        return positions.flatten(0, 1).index_select(0, self.position).view(-1, self.width, positions.shape[2])

    def spread(self, weight: Weight) -> Weight:
        """The weights of tasks as those of their chunks; the tap of a task sees the sum over its chunks."""
        if isinstance(weight, Factored):
            return replace(weight, a=self._spread(weight.a), b=self._spread(weight.b))
        return self._spread(weight) if isinstance(weight, FastWeight) else weight

    def _spread(self, weight: FastWeight) -> FastWeight:
        owner, n_tasks = self.owner, self.n_tasks
        if owner is None:
            return weight
        offset = weight.offset
        if offset is not None:
            offset = _chosen(offset, owner)
        return FastWeight(weight.shared, offset, None if weight.tap is None else _ChunkTap(weight.tap, owner, n_tasks))

    def spread_values(self, values: Tensor) -> Tensor:
        """values [T, ...] -> [C, ...]."""
        return values if self.owner is None else values.index_select(0, self.owner)


def _chosen(offset: Offset, tasks: Tensor) -> Offset:
    """The offset of each of these tasks."""
    if isinstance(offset, Both):
        low, rows = _chosen(offset.low, tasks), _chosen(offset.rows, tasks)
        assert isinstance(low, LowRank)
        assert isinstance(rows, Rows)
        return Both(low, rows)
    found = [part.index_select(0, tasks) for part in tensors(offset)]
    if isinstance(offset, Rows):
        return Rows(offset.ids[tasks], found[0], offset.n_rows, offset.flat)
    return rebuilt(offset, found)


class _ChunkTap(Tap):
    def __init__(self, inner: Tap, owner: Tensor, n_tasks: int) -> None:
        super().__init__(inner.second_order, dtype=inner.dtype)
        self.inner, self.owner, self.n_tasks = inner, owner, n_tasks

    def add(self, at: Tensor, finish: Finish) -> None:
        def of_tasks(grad: Tensor) -> Dense:
            chunks = finish(grad).dense()
            return Dense(chunks.new_zeros(self.n_tasks, *chunks.shape[1:]).index_add(0, self.owner, chunks))

        self.inner.add(at, of_tasks)

    def read(self, x: Tensor, real: Tensor | None) -> None:
        if self.inner.reads is not None:
            self.inner.reads.append(Read(self.keep(x), real, self.owner))


def _layout(sequences: Sequences) -> Layout:
    device, sequences = sequences.items.device, sequences.to(torch.device("cpu"))
    row, step, task, n_tasks = sequences.row, sequences.step, sequences.task, sequences.n_tasks
    flat, counts = sequences.lengths.flatten(), sequences.lengths.sum(1)
    longest, width = max(int(flat.max()), 1), chunk_width(counts)
    ahead = counts.cumsum(0) - counts  # states of the tasks before
    chunks = (-(-counts // width)).clamp(min=1)
    first_chunk = chunks.cumsum(0) - chunks

    state = torch.arange(len(row)) - ahead[task] + first_chunk[task] * width
    owner = torch.arange(n_tasks).repeat_interleave(chunks)
    of_token = owner.repeat_interleave(width)
    event, position, place = of_token * sequences.items.shape[1], of_token * longest, torch.zeros_like(of_token)
    event[state] = sequences.event
    position[state] = task * longest + step

    rows = flat.argsort(stable=True)[int((flat == 0).sum()) :]  # shortest first
    classes = length_classes(flat[rows].bincount().tolist())
    padded = torch.tensor([length for number, length in classes for _ in range(number)], dtype=torch.int64)
    begin = torch.empty_like(flat)
    begin[rows] = padded.cumsum(0) - padded
    place[state] = begin[row] + step
    across = torch.arange(int(padded.sum())) - (padded.cumsum(0) - padded).repeat_interleave(padded)
    own = rows.repeat_interleave(padded)
    first = torch.zeros_like(flat)
    first[row[step == 0]] = state[step == 0]
    token = first[own] + across.minimum(flat[own] - 1)
    event, position, state, token, place = (part.to(device) for part in (event, position, state, token, place))
    owners = None if len(owner) == n_tasks else owner.to(device)
    return Layout(n_tasks, width, owners, longest, event, position, state, classes, token, place)


def chunk_width(counts: Tensor) -> int:
    """The number of tokens of a chunk that leaves least to pad; counts int64 [T], the tokens of each task."""
    most = max(int(counts.max()), 1)
    widths = [most]  # and steps of a fourth below
    while widths[-1] > 1:
        widths.append(widths[-1] * 4 // 5)
    tried = torch.tensor(widths)
    cost = (-(-counts[:, None] // tried)).clamp(min=1).sum(0) * (tried + CHUNK_COST)
    return widths[int(cost.argmin())]


def length_classes(numbers: list[int]) -> list[tuple[int, int]]:
    """How many sequences have length 0, 1, ... -> (sequences, padded length) of the cheapest classes, shortest first."""
    sizes = [size for size, number in enumerate(numbers) if number and size]
    best, back, below = [0], [0], [0]  # of the first lengths: their cost, where their last class begins, sequences
    for end, size in enumerate(sizes, 1):
        below.append(below[-1] + numbers[size])
        each = size * (PLACE_COST + size)
        costs = [best[start] + (below[end] - below[start]) * each + CLASS_COST for start in range(end)]
        best.append(min(costs))
        back.append(costs.index(best[-1]))
    classes, end = [], len(sizes)
    while end:
        classes.append((below[end] - below[back[end]], sizes[end - 1]))
        end = back[end]
    return classes[::-1]


def differentiated_twice(weights: Iterable[Weight]) -> bool:
    """Whether what is made from these weights may be: a tap says so, or an offset is itself in a graph."""
    for weight in weights:
        for part in fast_parts(weight):
            if part.tap is not None and part.tap.second_order:
                return True
            if part.offset is not None and any(value.requires_grad for value in tensors(part.offset)):
                return True
    return False


@dataclass(frozen=True)
class Prefix:
    """Tokens that every event of the task may see, as what the projections to keys and to values read."""

    keys: Tensor  # [T, P, d]
    values: Tensor  # [T, P, d]; zero has no effect


@dataclass(frozen=True)
class Attention:
    """The weights of one attention layer; in and out as in torch.nn.MultiheadAttention: q, k, v along 3d."""

    in_weight: Weight  # [3d, d]
    in_bias: Weight  # [3d]
    out_weight: Weight  # [d, d]
    out_bias: Weight  # [d]
    n_heads: int

    def __call__(
        self, x: Tensor, layout: Layout, *, twice: bool, prefix: Prefix | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """x [C, N, d] -> [C, N, d]; `twice`: the result may be differentiated twice (`differentiated_twice`).

        scale [T, 2d]: what each task adds to the factor one of keys and values, those of the prefix left as they are.
        """
        d, heads = x.shape[2], self.n_heads
        qkv = linear(x, layout.spread(self.in_weight), layout.spread(self.in_bias))
        if scale is not None:
            qkv = torch.cat([qkv[..., :d], rescaled(qkv[..., d:], layout.spread_values(scale))], 2)
        y = self._within_sequences(qkv, layout, fused=not twice)
        if prefix is not None:
            # no bias: one that is added to every key does not change a softmax, and a zero value is to stay zero
            with inputs.only(_every):
                both = layout.spread_values(linear(torch.cat([prefix.keys, prefix.values], 1), self.in_weight))
            k, v = both[:, : prefix.keys.shape[1], d : 2 * d], both[:, prefix.keys.shape[1] :, 2 * d :]
            q, k, v = (part.reshape(*part.shape[:2], heads, d // heads) for part in (qkv[..., :d], k, v))
            mass = torch.einsum("tnhc,tphc->tnhp", q * q.shape[-1] ** -0.5, k).softmax(-1)
            y = y + torch.einsum("tnhp,tphc->tnhc", mass, v).flatten(2)
        return linear(y, layout.spread(self.out_weight), layout.spread(self.out_bias))

    def _within_sequences(self, qkv: Tensor, layout: Layout, *, fused: bool) -> Tensor:
        """q, k, v of all tokens [C, N, 3d] -> [C, N, d]."""
        d = qkv.shape[2] // 3
        if not layout.classes:
            return torch.zeros_like(qkv[..., :d])
        places = qkv.flatten(0, 1).index_select(0, layout.token)
        kernel = _fused if fused else _plain
        found = []
        sizes = [number * length for number, length in layout.classes]
        for (number, length), part in zip(layout.classes, torch.split(places, sizes), strict=True):
            q, k, v = part.view(number, length, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
            found.append(kernel(q, k, v).transpose(1, 2).reshape(number * length, d))
        return torch.cat(found).index_select(0, layout.place).view(*qkv.shape[:2], d)


def _every() -> None:
    """Every position is real (`core.inputs.only`)."""


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v [G, heads, L, width of a head] -> the same."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shape, length = q.shape, q.shape[2]
    q, k, v = (part.reshape(-1, length, shape[3]) for part in (q, k, v))
    later = q.new_full((length, length), -torch.inf).triu(1)
    mass = torch.baddbmm(later, q, k.transpose(1, 2), alpha=shape[3] ** -0.5).softmax(-1)
    return torch.bmm(mass, v).view(shape)
