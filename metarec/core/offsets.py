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

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

Scale = float | Tensor
WIDE = 8192  # a side of a matrix from which copies cost more than products in several parts


@dataclass(frozen=True)
class Dense:
    value: Tensor  # [T, *S]

    def plus(self, other: Offset, scale: float = 1.0) -> Dense:
        """this + scale * other; whatever is added, the sum is dense [T, *S]."""
        if isinstance(other, LowRank):
            value = self.value
            for left, right in other.blocks:
                value = torch.baddbmm(value, left.transpose(1, 2), right, alpha=scale)
            return Dense(value)
        return Dense(torch.add(self.value, other.dense(), alpha=scale))

    def scaled(self, scale: Scale) -> Dense:
        """Any scale, one of shape [*S] included."""
        return Dense(self.value * scale)

    def per_task(self, factor: Tensor) -> Dense:
        """factor [T] -> every task's offset times its own number."""
        return Dense(self.value * factor.view(-1, *[1] * (self.value.dim() - 1)))

    def dense(self) -> Tensor:
        """[T, *S], itself: no copy."""
        return self.value

    def detach(self) -> Dense:
        """The same numbers without their graph."""
        return Dense(self.value.detach())

    def shrunk(self, by: Scale, first_order: bool) -> Dense:
        """self - by * self; under first order the graph of `self` does not run through the second term."""
        return Dense(self.value - by * (self.value.detach() if first_order else self.value))


@dataclass(frozen=True)
class LowRank:
    """The sum of blocks left^T right. Small blocks are joined into one; wide ones, of a catalogue, are never copied."""

    blocks: tuple[tuple[Tensor, Tensor], ...]  # left [T, r, out], right [T, r, in] of each

    @staticmethod
    def of(left: Tensor, right: Tensor) -> LowRank:
        """left [T, r, out], right [T, r, in] -> one block."""
        return LowRank(((left, right),))

    @property
    def rank(self) -> int:
        """r, of all blocks together."""
        return sum(left.shape[1] for left, _ in self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of the matrix."""
        left, right = self.blocks[0]
        return left.shape[2], right.shape[2]

    def dense(self) -> Tensor:
        """[T, out, in], formed anew at every call."""
        (left, right), *more = self.blocks
        found = torch.bmm(left.transpose(1, 2), right)
        for left, right in more:
            found = torch.baddbmm(found, left.transpose(1, 2), right)
        return found

    def scaled(self, scale: Scale) -> LowRank | Dense:
        """Factored still by a number, dense by a scale of shape [out, in]."""
        if isinstance(scale, Tensor) and scale.dim() > 0:
            return Dense(self.dense() * scale)
        return self._narrow(lambda side: side * scale)

    def per_task(self, factor: Tensor) -> LowRank:
        """factor [T] -> every task's offset times its own number."""
        return self._narrow(lambda side: side * factor[:, None, None])

    def _narrow(self, change: Callable[[Tensor], Tensor]) -> LowRank:
        """Every scale goes to the narrower side: less to write, and a graph that is of scales alone stays on that side."""
        if self.shape[0] <= self.shape[1]:
            return LowRank(tuple((change(left), right) for left, right in self.blocks))
        return LowRank(tuple((left, change(right)) for left, right in self.blocks))

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        """this + scale * other: blocks beside blocks, rows beside them (`Both`), a dense other makes it dense."""
        if isinstance(other, LowRank):
            other = other if scale == 1 else other._narrow(lambda side: side * scale)
            blocks = (*self.blocks, *other.blocks)
            if max(self.shape) > WIDE:
                return LowRank(blocks)
            return LowRank.of(*(torch.cat([block[side] for block in blocks], 1) for side in (0, 1)))
        if isinstance(other, Rows):
            return Both(self, other.scaled(scale))
        if isinstance(other, Both):
            return Both(self.plus(other.low, scale), other.rows.scaled(scale))  # type: ignore[arg-type]
        return Dense(other.value * scale).plus(self)

    def detach(self) -> LowRank:
        """The same factors without their graph."""
        return LowRank(tuple((left.detach(), right.detach()) for left, right in self.blocks))

    def shrunk(self, by: Scale, first_order: bool) -> LowRank | Dense:
        """(1 - by) * this; `first_order`: what is taken away is a constant to the gradient."""
        if isinstance(by, Tensor) and by.dim() > 0:
            return Dense(self.dense()).shrunk(by, first_order)
        return self._narrow(lambda side: side - by * (side.detach() if first_order else side))

    def at(self, ids: Tensor) -> Tensor:
        """ids [T, M] -> rows of the matrix [T, M, in]."""
        found: Tensor | None = None
        for left, right in self.blocks:
            picked = left.gather(2, ids[:, None, :].expand(-1, left.shape[1], -1)).transpose(1, 2)
            found = torch.bmm(picked, right) if found is None else torch.baddbmm(found, picked, right)
        assert found is not None
        return found


@dataclass(frozen=True)
class Rows:
    """ids int64 [T, U] rising within a task (the largest repeated as filling), values [T, U, d] (zero on filling).

    `flat`: of a vector in place of a matrix, whose rows are numbers (d = 1).
    """

    ids: Tensor
    values: Tensor
    n_rows: int
    flat: bool = False

    def _with(self, values: Tensor) -> Rows:
        return Rows(self.ids, values, self.n_rows, self.flat)

    def _of_rows(self, scale: Scale) -> Scale:
        """A scale of shape [rows, d] ([rows] of a vector) at the rows that are here, [T, U, d]; any other as it is."""
        if isinstance(scale, Tensor) and scale.dim() > 0:
            return scale[self.ids].view_as(self.values)
        return scale

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
        """The same rows; of a scale [rows, d] each row takes its own."""
        return self._with(self.values * self._of_rows(scale))

    def per_task(self, factor: Tensor) -> Rows:
        """factor [T] -> every task's offset times its own number."""
        return self._with(self.values * factor[:, None, None])

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        """this + scale * other: rows of either; with a factored other `Both`, with a dense one dense."""
        if isinstance(other, Rows):
            if self.ids.shape == other.ids.shape and torch.equal(self.ids, other.ids):
                return self._with(torch.add(self.values, other.values, alpha=scale))
            both = torch.cat([self.values, other.values * scale], 1)
            joined = Rows.of(torch.cat([self.ids, other.ids], 1), both, self.n_rows)
            return Rows(joined.ids, joined.values, self.n_rows, self.flat)
        if isinstance(other, LowRank):
            return Both(other.scaled(scale), self)  # type: ignore[arg-type]  # a number leaves the form as it is
        if isinstance(other, Both):
            return Both(other.low.scaled(scale), self.plus(other.rows, scale))  # type: ignore[arg-type]
        return Dense(other.value * scale).plus(self)

    def dense(self) -> Tensor:
        """[T, rows, d] ([T, rows] of a vector), zero where a task never looked: as large as T tables."""
        n_tasks, _, width = self.values.shape
        out = self.values.new_zeros(n_tasks, self.n_rows, width)
        out = out.scatter_add(1, self.ids.unsqueeze(-1).expand_as(self.values), self.values)
        return out.squeeze(-1) if self.flat else out

    def detach(self) -> Rows:
        """The same rows without the graph of their values."""
        return self._with(self.values.detach())

    def shrunk(self, by: Scale, first_order: bool) -> Rows:
        """(1 - by) * this; `first_order`: what is taken away is a constant to the gradient."""
        return self._with(self.values - self._of_rows(by) * (self.values.detach() if first_order else self.values))


@dataclass(frozen=True)
class Both:
    low: LowRank
    rows: Rows

    def dense(self) -> Tensor:
        """[T, rows, d], formed anew at every call."""
        return self.low.dense() + self.rows.dense()

    def scaled(self, scale: Scale) -> Offset:
        """Two parts still by a number, dense by a scale of shape [rows, d]."""
        low = self.low.scaled(scale)
        if isinstance(low, Dense):
            return low.plus(self.rows.scaled(scale))
        return Both(low, self.rows.scaled(scale))

    def per_task(self, factor: Tensor) -> Both:
        """factor [T] -> every task's offset times its own number."""
        return Both(self.low.per_task(factor), self.rows.per_task(factor))

    def plus(self, other: Offset, scale: float = 1.0) -> Offset:
        """this + scale * other: each part takes its kind, a dense other makes it dense."""
        if isinstance(other, Dense):
            return Dense(other.value * scale).plus(self)
        low = other if isinstance(other, LowRank) else other.low if isinstance(other, Both) else None
        rows = other if isinstance(other, Rows) else other.rows if isinstance(other, Both) else None
        return Both(
            self.low if low is None else self.low.plus(low, scale),  # type: ignore[arg-type]
            self.rows if rows is None else self.rows.plus(rows, scale),  # type: ignore[arg-type]
        )

    def detach(self) -> Both:
        """The same parts without their graph."""
        return Both(self.low.detach(), self.rows.detach())

    def shrunk(self, by: Scale, first_order: bool) -> Offset:
        """(1 - by) * this; `first_order`: what is taken away is a constant to the gradient."""
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
        return [side for block in offset.blocks for side in block]
    if isinstance(offset, Rows):
        return [offset.values]
    return [*tensors(offset.low), offset.rows.values]


def rows_at(offset: Offset, ids: Tensor) -> Tensor:
    """Rows ids [T, M] of the offset of a matrix, whatever its form: [T, M, in]; of a vector's [T, M, 1]."""
    if isinstance(offset, Rows):
        return offset.look_up(ids)
    if isinstance(offset, LowRank):
        return offset.at(ids)
    if isinstance(offset, Both):
        return offset.rows.look_up(ids) + offset.low.at(ids)
    first = torch.arange(ids.shape[0], device=ids.device)[:, None] * offset.value.shape[1]
    found = offset.value.flatten(0, 1)[ids + first]
    return found.unsqueeze(-1) if offset.value.dim() == 2 else found


def within(offset: Offset, ids: Tensor, real: Tensor, shape: torch.Size) -> Rows:
    """The rows ids [T, U] of the offset of a weight [*S] and nothing else; filling (`real` [T, U] false) is zero."""
    values = torch.where(real[..., None], rows_at(offset, ids), 0.0)
    return Rows(ids, values, shape[0], flat=len(shape) == 1)


def rebuilt(offset: Offset, parts: list[Tensor]) -> Offset:
    """The same form around other tensors, as `tensors` gives them."""
    if isinstance(offset, Dense):
        return Dense(parts[0])
    if isinstance(offset, LowRank):
        return LowRank(tuple(zip(parts[::2], parts[1::2], strict=True)))
    if isinstance(offset, Rows):
        return Rows(offset.ids, parts[0], offset.n_rows, offset.flat)
    low = LowRank(tuple(zip(parts[:-1:2], parts[1:-1:2], strict=True)))
    return Both(low, Rows(offset.rows.ids, parts[-1], offset.rows.n_rows))


def dot(a: Offset, b: Offset) -> Tensor:
    """<a[t], b[t]> of every task, [T], without forming a matrix where both are factored."""
    if isinstance(a, Both):
        return dot(a.low, b) + dot(a.rows, b)
    if isinstance(b, Both):
        return dot(a, b.low) + dot(a, b.rows)
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        grams = [
            (torch.bmm(left, other.mT) * torch.bmm(right, another.mT)).flatten(1).sum(1)
            for left, right in a.blocks
            for other, another in b.blocks
        ]
        return reduce(torch.add, grams)
    if isinstance(a, Rows) and not isinstance(b, Rows):
        a, b = b, a
    if isinstance(b, Rows):
        return (rows_at(a, b.ids) * b.values).flatten(1).sum(1)  # filling has value zero
    return (a.dense() * b.dense()).flatten(1).sum(1)


def moved(offset: Offset | None, step: Offset, rank_ahead: int, scale: Scale = 1.0, join: bool = True) -> Offset:
    """offset + scale * step, in the cheaper form; without `join` it shares its blocks with `offset`.

    A product G^T X stays factored while the rank it will reach (`rank_ahead` such steps) is cheaper to keep than the
    matrix; the choice follows from sizes alone and both forms give the same weights.
    """
    if isinstance(step, LowRank) and not isinstance(offset, LowRank | Both | Dense):
        rank, (out, width) = step.rank, step.shape
        if rank * rank_ahead * (out + width) >= out * width:
            step = Dense(step.dense())
    if not join and isinstance(offset, LowRank) and isinstance(step, LowRank):
        step = step.scaled(scale)
        return LowRank((*offset.blocks, *step.blocks)) if isinstance(step, LowRank) else step.plus(offset)
    if offset is not None and isinstance(scale, float):
        return offset.plus(step, scale)  # without an array for the scaled step
    step = step.scaled(scale)
    return step if offset is None else offset.plus(step)
