"""What a task has learned about one weight, in the form that its gradients have.

    Dense     [T, *S]                                               small or recurrent weights
    LowRank   sum_r left[t, r] (x) right[t, r], r <= pairs seen      a linear layer: its gradient is G^T X
    Rows      values for the rows that a task has looked up         an embedding: all other rows have no gradient
    Both      LowRank + Rows                                        a matrix that is looked up and multiplied by (tied)

All of them form one vector space: `plus`, `scaled` and `dot` mix forms freely, and the result has the cheaper form that
is exact. A scale is a number, a tensor of shape () or of the weight's own shape [*S] (a step size of its own for every
element; a factored form then has to become dense), or, through `per_task`, one number a task.

Shapes: T tasks, r rank, U rows looked up; a weight is [*S], a matrix [out, in].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Scale = float | Tensor


@dataclass(frozen=True)
class Dense:
    value: Tensor  # [T, *S]

    def plus(self, other: Offset, scale: float = 1.0) -> Dense:
        if isinstance(other, LowRank):
            return Dense(torch.baddbmm(self.value, other.left.transpose(1, 2), other.right, alpha=scale))
        return Dense(torch.add(self.value, other.dense(), alpha=scale))

    def scaled(self, scale: Scale) -> Dense:
        return Dense(self.value * scale)

    def per_task(self, factor: Tensor) -> Dense:
        return Dense(self.value * factor.view(-1, *[1] * (self.value.dim() - 1)))

    def dense(self) -> Tensor:
        return self.value

    def detach(self) -> Dense:
        return Dense(self.value.detach())

    def shrunk(self, by: Scale, first_order: bool) -> Dense:
        """self - by * self; under first order the graph of `self` does not run through the second term."""
        return Dense(self.value - by * (self.value.detach() if first_order else self.value))


@dataclass(frozen=True)
class LowRank:
    left: Tensor  # [T, r, out]
    right: Tensor  # [T, r, in]

    def dense(self) -> Tensor:
        return torch.bmm(self.left.transpose(1, 2), self.right)

    def scaled(self, scale: Scale) -> LowRank | Dense:
        if isinstance(scale, Tensor) and scale.dim() > 0:
            return Dense(self.dense() * scale)
        return self._times(scale)

    def per_task(self, factor: Tensor) -> LowRank:
        return self._times(factor[:, None, None])

    def _times(self, scale: Scale) -> LowRank:
        """Every scale goes to the narrower side: less to write, and a graph that is of scales alone stays on that side."""
        if self.left.shape[2] <= self.right.shape[2]:
            return LowRank(self.left * scale, self.right)
        return LowRank(self.left, self.right * scale)

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        if isinstance(other, LowRank):
            other = other if scale == 1 else other._times(scale)
            return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))
        if isinstance(other, Rows):
            return Both(self, other.scaled(scale))
        if isinstance(other, Both):
            return Both(self.plus(other.low, scale), other.rows.scaled(scale))  # type: ignore[arg-type]
        return Dense(other.value * scale).plus(self)

    def detach(self) -> LowRank:
        return LowRank(self.left.detach(), self.right.detach())

    def shrunk(self, by: Scale, first_order: bool) -> LowRank | Dense:
        if isinstance(by, Tensor) and by.dim() > 0:
            return Dense(self.dense()).shrunk(by, first_order)
        if self.left.shape[2] <= self.right.shape[2]:  # as `_times`
            return LowRank(self.left - by * (self.left.detach() if first_order else self.left), self.right)
        return LowRank(self.left, self.right - by * (self.right.detach() if first_order else self.right))

    def at(self, ids: Tensor) -> Tensor:
        """ids [T, M] -> rows of the matrix [T, M, in]."""
        picked = self.left.gather(2, ids[:, None, :].expand(-1, self.left.shape[1], -1))
        return torch.bmm(picked.transpose(1, 2), self.right)


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

    def scaled(self, scale: Scale) -> Rows:
        if isinstance(scale, Tensor) and scale.dim() > 0:
            return Rows(self.ids, self.values * scale[self.ids], self.n_rows)
        return Rows(self.ids, self.values * scale, self.n_rows)

    def per_task(self, factor: Tensor) -> Rows:
        return Rows(self.ids, self.values * factor[:, None, None], self.n_rows)

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        if isinstance(other, Rows):
            if self.ids.shape == other.ids.shape and torch.equal(self.ids, other.ids):
                return Rows(self.ids, torch.add(self.values, other.values, alpha=scale), self.n_rows)
            both = torch.cat([self.values, other.values * scale], 1)
            return Rows.of(torch.cat([self.ids, other.ids], 1), both, self.n_rows)
        if isinstance(other, LowRank):
            return Both(other.scaled(scale), self)  # type: ignore[arg-type]  # a number leaves the form as it is
        if isinstance(other, Both):
            return Both(other.low.scaled(scale), self.plus(other.rows, scale))  # type: ignore[arg-type]
        return Dense(other.value * scale).plus(self)

    def dense(self) -> Tensor:
        n_tasks, _, width = self.values.shape
        out = self.values.new_zeros(n_tasks, self.n_rows, width)
        return out.scatter_add(1, self.ids.unsqueeze(-1).expand_as(self.values), self.values)

    def detach(self) -> Rows:
        return Rows(self.ids, self.values.detach(), self.n_rows)

    def shrunk(self, by: Scale, first_order: bool) -> Rows:
        by = by[self.ids] if isinstance(by, Tensor) and by.dim() > 0 else by
        return Rows(self.ids, self.values - by * (self.values.detach() if first_order else self.values), self.n_rows)


@dataclass(frozen=True)
class Both:
    low: LowRank
    rows: Rows

    def dense(self) -> Tensor:
        return self.low.dense() + self.rows.dense()

    def scaled(self, scale: Scale) -> Offset:
        low = self.low.scaled(scale)
        if isinstance(low, Dense):
            return low.plus(self.rows.scaled(scale))
        return Both(low, self.rows.scaled(scale))

    def per_task(self, factor: Tensor) -> Both:
        return Both(self.low.per_task(factor), self.rows.per_task(factor))

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        if isinstance(other, Dense):
            return Dense(other.value * scale).plus(self)
        low = other if isinstance(other, LowRank) else other.low if isinstance(other, Both) else None
        rows = other if isinstance(other, Rows) else other.rows if isinstance(other, Both) else None
        return Both(
            self.low if low is None else self.low.plus(low, scale),  # type: ignore[arg-type]
            self.rows if rows is None else self.rows.plus(rows, scale),  # type: ignore[arg-type]
        )

    def detach(self) -> Both:
        return Both(self.low.detach(), self.rows.detach())

    def shrunk(self, by: Scale, first_order: bool) -> Offset:
        if isinstance(by, Tensor) and by.dim() > 0:
            return Dense(self.dense()).shrunk(by, first_order)
        low = self.low.shrunk(by, first_order)
        assert isinstance(low, LowRank)
        return Both(low, self.rows.shrunk(by, first_order))


Offset = Dense | LowRank | Rows | Both


def tensors(offset: Offset) -> list[Tensor]:
    """The tensors that a gradient can run through."""
    if isinstance(offset, Dense):
        return [offset.value]
    if isinstance(offset, LowRank):
        return [offset.left, offset.right]
    if isinstance(offset, Rows):
        return [offset.values]
    return [offset.low.left, offset.low.right, offset.rows.values]


def rows_at(offset: Offset, ids: Tensor) -> Tensor:
    """Rows ids [T, M] of the offset of a matrix, whatever its form: [T, M, in]."""
    if isinstance(offset, Rows):
        return offset.look_up(ids)
    if isinstance(offset, LowRank):
        return offset.at(ids)
    if isinstance(offset, Both):
        return offset.rows.look_up(ids) + offset.low.at(ids)
    first = torch.arange(ids.shape[0], device=ids.device)[:, None] * offset.value.shape[1]
    return offset.value.flatten(0, 1)[ids + first]


def rebuilt(offset: Offset, parts: list[Tensor]) -> Offset:
    """The same form around other tensors, as `tensors` gives them."""
    if isinstance(offset, Dense):
        return Dense(parts[0])
    if isinstance(offset, LowRank):
        return LowRank(parts[0], parts[1])
    if isinstance(offset, Rows):
        return Rows(offset.ids, parts[0], offset.n_rows)
    return Both(LowRank(parts[0], parts[1]), Rows(offset.rows.ids, parts[2], offset.rows.n_rows))


def dot(a: Offset, b: Offset) -> Tensor:
    """<a[t], b[t]> of every task, [T], without forming a matrix where both are factored."""
    if isinstance(a, Both):
        return dot(a.low, b) + dot(a.rows, b)
    if isinstance(b, Both):
        return dot(a, b.low) + dot(a, b.rows)
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        gram = torch.bmm(a.left, b.left.transpose(1, 2)) * torch.bmm(a.right, b.right.transpose(1, 2))
        return gram.flatten(1).sum(1)
    if isinstance(a, Rows) and not isinstance(b, Rows):
        a, b = b, a
    if isinstance(b, Rows):
        return (rows_at(a, b.ids) * b.values).flatten(1).sum(1)  # filling has value zero
    return (a.dense() * b.dense()).flatten(1).sum(1)


def moved(offset: Offset | None, step: Offset, rank_ahead: int) -> Offset:
    """offset + step, in the cheaper form.

    A product G^T X stays factored while the rank it will reach (`rank_ahead` such steps) is cheaper to keep than the
    matrix; the choice follows from sizes alone and both forms give the same weights.
    """
    if isinstance(step, LowRank) and not isinstance(offset, LowRank | Both | Dense):
        rank, out = step.left.shape[1:]
        width = step.right.shape[2]
        if rank * rank_ahead * (out + width) >= out * width:
            step = Dense(step.dense())
    return step if offset is None else offset.plus(step)
