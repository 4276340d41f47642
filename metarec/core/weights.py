"""Weights of many tasks at once: one shared tensor plus, where a task has adapted, its own offset.

    weight of task t = shared + offset[t]

Why an offset and not a copy: the first inner step needs no per-task weight at all; the gradient with respect to
`shared` over all tasks is one matrix product; and with the offset under stop-gradient that gradient *is* the
first-order meta-gradient (the graph from the adapted weight back to the start is the identity).

An offset is kept in the form that its gradients have, so that no task ever owns a copy of a large matrix:

    Dense     [T, *S]                                             small or recurrent weights
    LowRank   sum_r left[t, r] (x) right[t, r], r <= pairs seen    a linear layer: its gradient is G^T X
    Rows      values for the rows that a task has looked up       an embedding: all other rows have no gradient

Operators (`core.ops`, `core.gru`) are the only readers. To be differentiated for each task on its own, a weight carries
a `Tap`: operators note there which tensor to differentiate by and how its gradient becomes the weight's (the gradient G
with respect to a pre-activation is all that is needed).

Shapes: T tasks, N rows a task, r rank, U rows looked up; a weight is [*S], a linear one [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Dense:
    value: Tensor  # [T, *S]

    def plus(self, other: Dense | LowRank, scale: float) -> Dense:
        return Dense(torch.add(self.value, other.dense(), alpha=scale))

    def scaled(self, scale: float) -> Dense:
        return Dense(self.value * scale)

    def dense(self) -> Tensor:
        return self.value


@dataclass(frozen=True)
class LowRank:
    left: Tensor  # [T, r, out]
    right: Tensor  # [T, r, in]

    def dense(self) -> Tensor:
        return torch.bmm(self.left.transpose(1, 2), self.right)

    def scaled(self, scale: float) -> LowRank:
        return LowRank(self.left * scale, self.right)

    def plus(self, other: LowRank, scale: float) -> LowRank:
        return LowRank(torch.cat([self.left, other.left * scale], 1), torch.cat([self.right, other.right], 1))


@dataclass(frozen=True)
class Rows:
    """ids int64 [T, U] rising within a task (the largest repeated as filling), values [T, U, d] (zero on filling)."""

    ids: Tensor
    values: Tensor
    n_rows: int

    @staticmethod
    def of(ids: Tensor, grads: Tensor, n_rows: int) -> Rows:
        """Sum `grads` [T, M, d] over equal `ids` [T, M]."""
        order = ids.argsort(dim=1, stable=True)
        ranked = ids.gather(1, order)
        new = torch.ones_like(ranked, dtype=torch.bool)
        new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        place = new.cumsum(1) - 1
        width = int(place.max()) + 1
        unique = ranked[:, -1:].expand(-1, width).scatter(1, place, ranked)
        values = grads.new_zeros(ids.shape[0] * width, grads.shape[-1])
        first = torch.arange(ids.shape[0], device=ids.device)[:, None] * width
        target = torch.empty_like(ids).scatter_(1, order, place) + first
        values = values.index_add(0, target.reshape(-1), grads.reshape(-1, grads.shape[-1]))
        return Rows(unique, values.view(ids.shape[0], width, -1), n_rows)

    def look_up(self, ids: Tensor) -> Tensor:
        """ids [T, M] -> offsets [T, M, d]; zero where a task never saw the row."""
        n_tasks, width = self.ids.shape
        place = torch.searchsorted(self.ids, ids).clamp_(max=width - 1)
        hit = self.ids.gather(1, place) == ids
        first = torch.arange(n_tasks, device=ids.device)[:, None] * width
        found = self.values.reshape(-1, self.values.shape[-1])[(place + first).reshape(-1)]
        return found.view(*ids.shape, -1) * hit.unsqueeze(-1)

    def scaled(self, scale: float) -> Rows:
        return Rows(self.ids, self.values * scale, self.n_rows)

    def plus(self, other: Rows, scale: float) -> Rows:
        if self.ids.shape == other.ids.shape and torch.equal(self.ids, other.ids):
            return Rows(self.ids, torch.add(self.values, other.values, alpha=scale), self.n_rows)
        both = torch.cat([self.values, other.values * scale], 1)
        return Rows.of(torch.cat([self.ids, other.ids], 1), both, self.n_rows)

    def dense(self) -> Tensor:
        n_tasks, _, width = self.values.shape
        out = self.values.new_zeros(n_tasks, self.n_rows, width)
        return out.scatter_add(1, self.ids.unsqueeze(-1).expand_as(self.values), self.values)


Offset = Dense | LowRank | Rows


@dataclass
class Tap:
    """What the operators of one forward pass leave behind so that a weight's per-task gradient can be formed."""

    notes: list[tuple[Tensor, Callable[[Tensor], Offset]]] = field(default_factory=list)

    def add(self, at: Tensor, finish: Callable[[Tensor], Offset]) -> None:
        """`finish` turns the gradient with respect to `at` into the weight's; `at` is an inner node or a new leaf."""
        if not at.requires_grad:
            at.requires_grad_()
        self.notes.append((at, finish))


@dataclass(frozen=True)
class FastWeight:
    shared: Tensor  # [*S]
    offset: Offset | None = None
    tap: Tap | None = None

    def dense(self) -> Tensor:
        """The weights of all tasks, [T, *S] ([*S] before any step); for checks and small tensors."""
        return self.shared if self.offset is None else self.shared + self.offset.dense()

    def onto(self, base: Tensor, alpha: float) -> FastWeight:
        """base + alpha * this: what a residual of scale alpha makes of it; the tap sees alpha times the gradient."""
        offset, tap = self.offset, self.tap
        if alpha != 1:
            offset = None if offset is None else scaled(offset, alpha)
            tap = None if tap is None else _ScaledTap(tap, alpha)
        return FastWeight(torch.add(base, self.shared, alpha=alpha), offset, tap)


class _ScaledTap(Tap):
    def __init__(self, inner: Tap, alpha: float) -> None:
        super().__init__(inner.notes)
        self.alpha = alpha

    def add(self, at: Tensor, finish: Callable[[Tensor], Offset]) -> None:
        super().add(at, lambda grad: scaled(finish(grad), self.alpha))


Weight = Tensor | FastWeight
Weights = Mapping[str, Weight]


def scaled(offset: Offset, scale: float) -> Offset:
    return offset.scaled(scale)


def zero_leaf(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A zero of any shape that takes one number of memory, to be added and differentiated."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(shape).requires_grad_()


def moved(offset: Offset | None, grad: Offset, scale: float, rank_ahead: int) -> Offset:
    """offset + scale * grad, in the cheaper form.

    A product G^T X stays factored while the rank it will reach (`rank_ahead` such steps) is cheaper to keep than the
    matrix; the choice follows from sizes alone and both forms give the same weights.
    """
    if isinstance(grad, LowRank) and not isinstance(offset, LowRank):
        rank, out = grad.left.shape[1:]
        width = grad.right.shape[2]
        if isinstance(offset, Dense):
            return Dense(torch.baddbmm(offset.value, grad.left.transpose(1, 2), grad.right, alpha=scale))
        if rank * rank_ahead * (out + width) >= out * width:
            return Dense(grad.scaled(scale).dense())
    if offset is None:
        return scaled(grad, scale)
    return offset.plus(grad, scale)  # type: ignore[arg-type]  # forms of one weight agree from the first step on


def squared_norm(weight: FastWeight) -> Tensor:
    """|shared + offset[t]|^2 of every task, [T] (a scalar before any step), without forming a per-task matrix."""
    shared, offset = weight.shared, weight.offset
    own = shared.square().sum()
    if offset is None:
        return own
    if isinstance(offset, Dense):
        return (shared + offset.value).flatten(1).square().sum(1)
    if isinstance(offset, Rows):
        cross = (shared[offset.ids] * offset.values).flatten(1).sum(1)
        return own + 2 * cross + offset.values.flatten(1).square().sum(1)
    cross = (torch.matmul(offset.right, shared.T) * offset.left).flatten(1).sum(1)
    gram = torch.bmm(offset.left, offset.left.transpose(1, 2)) * torch.bmm(offset.right, offset.right.transpose(1, 2))
    return own + 2 * cross + gram.flatten(1).sum(1)
