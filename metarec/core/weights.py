"""Weights of many tasks at once: one shared tensor plus, where a task has adapted, its own offset.

    weight of task t = shared + offset[t]                      or, factored, base + scale * b[t] a[t]

Why an offset and not a copy: the first inner step needs no per-task weight at all; the gradient with respect to
`shared` over all tasks is one matrix product; and with the offset under stop-gradient that gradient *is* the
first-order meta-gradient (the graph from the adapted weight back to the start is the identity). With the graph through
the offset kept, the same forms carry second order.

Operators (`core.ops`, `core.gru`, ...) are the only readers. To be differentiated for each task on its own, a weight
carries a `Tap`: operators note there which tensor to differentiate by and how its gradient becomes the weight's (the
gradient G with respect to a pre-activation is all that a linear layer needs). An operator without such a form asks for
the weight as a dense tensor a task (`FastWeight.own`), which is right for every weight and cheap for small ones.

Of a factored weight (`Factored`) the factors are what is shared, adapted and tapped; operators multiply by one after the
other, so that a task owns its factors and no matrix.

Shapes: T tasks; a weight is [*S], a linear one [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from metarec.core.offsets import Dense, LowRank, Offset, Rows, dot, within

Params = dict[str, Tensor]
Finish = Callable[[Tensor], Offset]


@dataclass(frozen=True)
class Read:
    """What a linear operator multiplied by a weight, told at its tap."""

    x: Tensor  # [C, N, in]
    real: Tensor | None  # bool [C, N], which of it count; None = all
    owner: Tensor | None = None  # int64 [C], whose task's it is; None = there are as many as tasks, in their order


@dataclass
class Tap:
    """What the operators of one forward pass leave behind so that a weight's per-task gradient can be formed.

    `second_order`: the gradient itself will be differentiated, so what it is made of keeps its graph. `dtype`: the weight's
    own, in which the gradient is formed whatever the operator multiplied in (None: in the operator's). `reads`: what linear
    operators multiplied by the weight, where somebody asks (`core.inputs.of_tasks`).
    """

    second_order: bool = False
    notes: list[tuple[Tensor, Finish]] = field(default_factory=list)
    dtype: torch.dtype | None = None
    reads: list[Read] | None = None

    def add(self, at: Tensor, finish: Finish) -> None:
        """`finish` turns the gradient with respect to `at` into the weight's; `at` is an inner node or a new leaf."""
        if not at.requires_grad:
            at.requires_grad_()
        self.notes.append((at, finish))

    def read(self, x: Tensor, real: Tensor | None) -> None:
        """x [T, N, in] is multiplied by the weight; real bool [T, N]: which of it count, None = all."""
        if self.reads is not None:
            self.reads.append(Read(self.keep(x), real))

    def keep(self, seen: Tensor) -> Tensor:
        """What `finish` may hold on to of an operator's input."""
        seen = seen if self.second_order else seen.detach()
        return seen if self.dtype is None else seen.to(self.dtype)


@dataclass(frozen=True)
class FastWeight:
    shared: Tensor  # [*S]
    offset: Offset | None = None
    tap: Tap | None = None

    def dense(self) -> Tensor:
        """The weights of all tasks, [T, *S] ([*S] before any step); for checks and small tensors."""
        return self.shared if self.offset is None else self.shared + self.offset.dense()

    def detach(self) -> FastWeight:
        """The same numbers without their graph, and without a tap."""
        return FastWeight(self.shared.detach(), None if self.offset is None else self.offset.detach())

    def own(self, n_tasks: int) -> Tensor:
        """The weights of all tasks as one dense tensor [T, *S], noted at the tap; for operators without a better form."""
        value = self.shared.expand(n_tasks, *self.shared.shape)
        if self.offset is not None:
            value = value + self.offset.dense()
        if self.tap is not None:
            leaf = zero_leaf(tuple(value.shape), value)
            self.tap.add(leaf, Dense)
            value = value + leaf
        return value

    def onto(self, base: Tensor, alpha: float) -> FastWeight:
        """base + alpha * this: what a residual of scale alpha makes of it; the tap sees alpha times the gradient."""
        offset, tap = self.offset, self.tap
        if alpha != 1:
            offset = None if offset is None else offset.scaled(alpha)
            tap = None if tap is None else _ScaledTap(tap, alpha)
        return FastWeight(torch.add(base, self.shared, alpha=alpha), offset, tap)

    def within(self, ids: Tensor, real: Tensor) -> FastWeight:
        """The same, but its tap sees of each task's gradient the rows ids [T, U] alone, and of these no filling.

        `real` bool [T, U]: which are none. Both are constants, so what is seen is linear in the gradient.
        """
        if self.tap is None:
            return self
        return FastWeight(self.shared, self.offset, _RowsTap(self.tap, ids, real, self.shared.shape))


class _RowsTap(Tap):
    def __init__(self, inner: Tap, ids: Tensor, real: Tensor, shape: torch.Size) -> None:
        super().__init__(inner.second_order, inner.notes, inner.dtype, inner.reads)
        self.inner, self.ids, self.real, self.shape = inner, ids, real, shape

    def add(self, at: Tensor, finish: Finish) -> None:
        self.inner.add(at, lambda grad: within(finish(grad), self.ids, self.real, self.shape))


class _ScaledTap(Tap):
    def __init__(self, inner: Tap, alpha: float) -> None:
        super().__init__(inner.second_order, inner.notes, inner.dtype, inner.reads)
        self.inner, self.alpha = inner, alpha

    def add(self, at: Tensor, finish: Finish) -> None:
        self.inner.add(at, lambda grad: finish(grad).scaled(self.alpha))  # whatever kind of tap it is


@dataclass(frozen=True)
class Factored:
    """base + scale * b a, where b and a are weights with offsets and taps of their own.

    `core.ops` reads it in this form. `own` and `whole` write the product, a matrix a task, for operators without it.
    `drop`: what becomes of an activation ahead of the factors, and of nothing else; the same whenever it is called.
    """

    base: Tensor  # [out, in], that of all tasks
    a: FastWeight  # [r, in]
    b: FastWeight  # [out, r]
    scale: float
    drop: Callable[[Tensor], Tensor] | None = None  # [..., in] -> the same shape

    def dense(self) -> Tensor:
        """The weights of all tasks, [T, out, in] ([out, in] before any step); not noted at a tap."""
        return self._onto_base(self.b.dense(), self.a.dense())

    def of_task(self, task: int | None) -> Tensor:
        """The weight of one task, or with None that before any step: [out, in]."""
        a, b = (w.shared if task is None or w.offset is None else w.dense()[task] for w in (self.a, self.b))
        return self._onto_base(b, a)

    def own(self, n_tasks: int) -> Tensor:
        """The weights of all tasks, [T, out, in]; the factors are noted at their taps."""
        return self._onto_base(self.b.own(n_tasks), self.a.own(n_tasks))

    def whole(self, n_tasks: int) -> FastWeight:
        """Base and a dense offset [T, out, in], for an operator that reads no factors: nothing is shared but the base."""
        if all(w.offset is None and w.tap is None for w in (self.a, self.b)):
            return FastWeight(self.dense())
        with torch.autocast(self.base.device.type, enabled=False):
            return FastWeight(self.base, Dense(self.scale * torch.bmm(self.b.own(n_tasks), self.a.own(n_tasks))))

    def _onto_base(self, b: Tensor, a: Tensor) -> Tensor:
        with torch.autocast(self.base.device.type, enabled=False):  # a weight, not an activation
            return torch.add(self.base, torch.matmul(b, a), alpha=self.scale)


Weight = Tensor | FastWeight | Factored
Weights = Mapping[str, Weight]


def fast(weight: Weight) -> FastWeight:
    """A weight in the form that has an offset and a tap; a plain tensor has neither, a factored one is refused."""
    if isinstance(weight, Factored):
        raise TypeError("this operator has no rule for a factored weight")
    return weight if isinstance(weight, FastWeight) else FastWeight(weight)


def fast_parts(weight: Weight) -> tuple[FastWeight, ...]:
    """What of a weight has an offset or a tap: itself, the two factors, or of a plain tensor nothing."""
    if isinstance(weight, Factored):
        return weight.a, weight.b
    return (weight,) if isinstance(weight, FastWeight) else ()


def own(weight: Weight, n_tasks: int) -> Tensor:
    """Any weight as a dense tensor a task, [T, *S]; see `FastWeight.own`."""
    return weight.own(n_tasks) if isinstance(weight, Factored) else fast(weight).own(n_tasks)


def rescaled(x: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) o x: activations x [T, N, d], what each task adds to the factor one [T, d]."""
    return x * (1 + scale)[:, None, :]


def zero_leaf(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A zero of any shape that takes one number of memory, to be added and differentiated."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(shape).requires_grad_()


def squared_norm(weight: FastWeight) -> Tensor:
    """|shared + offset[t]|^2 of every task, [T] (a scalar before any step), without forming a per-task matrix."""
    shared, offset = weight.shared, weight.offset
    own_norm = shared.square().sum()
    if offset is None:
        return own_norm
    if isinstance(offset, Dense):
        return (shared + offset.value).flatten(1).square().sum(1)
    return own_norm + 2 * _against(shared, offset) + dot(offset, offset)


def _against(shared: Tensor, offset: Offset) -> Tensor:
    """<shared, offset[t]> of every task, [T]."""
    if isinstance(offset, Rows):
        return (shared[offset.ids].view_as(offset.values) * offset.values).flatten(1).sum(1)
    if isinstance(offset, LowRank):
        each = [(torch.matmul(right, shared.T) * left).flatten(1).sum(1) for left, right in offset.blocks]
        return reduce(torch.add, each)
    if isinstance(offset, Dense):
        return (shared * offset.value).flatten(1).sum(1)
    return _against(shared, offset.low) + _against(shared, offset.rows)
