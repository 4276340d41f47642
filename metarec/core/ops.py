"""Operators with a leading task axis: each takes a weight that is shared or shared-plus-offset (`core.weights`).

    linear      y[t] = x[t] (W + D[t])^T + b + c[t]
    embed       y[t, i] = (E + D[t])[ids[t, i]]
    linear_rows y[t] = x[t] (W + D[t])[rows]^T + (b + c[t])[rows]               some of the outputs
    layer_norm  y[t] = (w + d[t]) * (x[t] - mean) / sd + b + c[t]      (Ba et al. 2016, arXiv:1607.06450)

A factored weight W + s B A is never written: y = x W^T + s (x A^T) B^T, both products by these same operators.

Where a weight carries a tap, the operator notes its result and how the result's gradient G becomes the weight's own:
G^T X for a linear weight, the sum of G for a bias, G by row for an embedding. Checked against autograd on plain copies
in tests/core/test_ops.py.

Shapes: T tasks, N rows a task.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import inputs
from metarec.core.offsets import Both, Dense, LowRank, Offset, Rows, rows_at, tensors
from metarec.core.weights import Factored, Weight, fast


def linear(x: Tensor, weight: Weight, bias: Weight | None = None) -> Tensor:
    """x [T, N, in], weight [out, in], bias [out] -> [T, N, out]."""
    if isinstance(weight, Factored):
        return linear(x, weight.base, bias) + through_factors(x, weight)
    w, b = fast(weight), None if bias is None else fast(bias)
    if inputs.active is not None:
        inputs.active.read(w, x)
    own_bias = None if b is None or b.offset is None else b.dense()[:, None, :]
    if w.offset is None:
        y = F.linear(x, w.shared, None if b is None or own_bias is not None else b.shared)
        y = y if own_bias is None else y + own_bias
    else:
        begin = own_bias if b is None or own_bias is not None else b.shared
        y = _product(x, w.shared, begin, w.offset)
    if w.tap is not None:
        seen = w.tap.keep(x)
        w.tap.add(y, lambda grad: LowRank.of(grad, seen))
    if b is not None and b.tap is not None:
        b.tap.add(y, lambda grad: Dense(grad.sum(1)))
    return y


def through_factors(x: Tensor, weight: Factored) -> Tensor:
    """What the factors add to `linear`: x [T, N, in] -> s (x A^T) B^T [T, N, out]."""
    return weight.scale * linear(linear(_dropped(x, weight), weight.a), weight.b)


def _dropped(x: Tensor, weight: Factored) -> Tensor:
    return x if weight.drop is None else weight.drop(x)


def _product(x: Tensor, shared: Tensor, begin: Tensor | None, offset: Offset) -> Tensor:
    """begin + x (W + D)^T for an offset D in any form; `begin` broadcasts to the result [T, N, out], None = 0."""
    rows = offset if isinstance(offset, Rows) else offset.rows if isinstance(offset, Both) else None
    own = None if isinstance(offset, Rows) else offset.low if isinstance(offset, Both) else offset
    given = [x, shared, begin, *([] if own is None else tensors(own))]
    if torch.is_autocast_enabled(x.device.type):  # which does not see to what is written in place
        dtype = torch.get_autocast_dtype(x.device.type)
        given = [None if value is None else value.to(dtype) for value in given]
    y: Tensor = _Product.apply(*given)  # type: ignore[no-untyped-call]
    if rows is None:
        return y
    part = torch.bmm(x, rows.values.transpose(1, 2))  # only the columns of the rows that this task has looked up
    return y.scatter_add(2, rows.ids[:, None, :].expand_as(part), part)


class _Product(torch.autograd.Function):
    """(x [T, N, in], W [out, in], begin, then nothing, an own matrix [T, out, in], or left and right of each block) -> y.

    One array as wide as the catalogue is written where autograd through single operators would write one for every term.
    The backward pass is made of operators on the inputs, so it can be differentiated in turn.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, begin: Tensor | None, *own: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, begin, *own)
        y = torch.mm(x.flatten(0, 1), weight.T).view(*x.shape[:2], len(weight))  # -1 is no size where there is no pair
        if begin is not None:
            y += begin
        if len(own) == 1:
            return y.baddbmm_(x, own[0].mT)
        for left, right in zip(own[::2], own[1::2], strict=True):
            y.baddbmm_(torch.bmm(x, right.mT), left)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, begin, *own = ctx.saved_tensors
        to_x, to_weight, to_begin, *to_own = ctx.needs_input_grad
        flat = g.flatten(0, 1)
        dx = torch.mm(flat, weight).view_as(x) if to_x else None
        found: list[Tensor | None] = []
        if len(own) == 1:
            dx = None if dx is None else torch.baddbmm(dx, g, own[0])
            found = [torch.bmm(g.mT, x) if to_own[0] else None]
        for i in range(0, len(own) - 1, 2):
            left, right = own[i : i + 2]
            seen = torch.bmm(g, left.mT) if to_x or to_own[i + 1] else None
            dx = None if dx is None or seen is None else torch.baddbmm(dx, seen, right)
            found.append(torch.bmm(torch.bmm(right, x.mT), g) if to_own[i] else None)
            found.append(torch.bmm(seen.mT, x) if seen is not None and to_own[i + 1] else None)
        return (
            dx,
            torch.mm(flat.T, x.flatten(0, 1)) if to_weight else None,
            g.sum_to_size(begin.shape) if to_begin else None,
            *found,
        )


def embed(ids: Tensor, table: Weight) -> Tensor:
    """ids int64 [T, M], table [rows, d] -> [T, M, d]."""
    if isinstance(table, Factored):  # the rows of B that were looked up, times A
        more = torch.bmm(embed(ids, table.b), table.a.own(ids.shape[0]))
        return F.embedding(ids, table.base) + table.scale * more
    e = fast(table)
    if inputs.active is not None:
        inputs.active.looked_up(e.shared, ids)
    y = F.embedding(ids, e.shared)
    if e.offset is not None:
        y = y + rows_at(e.offset, ids)
    if e.tap is not None:
        n_rows = e.shared.shape[0]
        e.tap.add(y, lambda grad: Rows.of(ids, grad, n_rows))
    return y


def layer_norm(x: Tensor, weight: Weight, bias: Weight, eps: float = 1e-5) -> Tensor:
    """x [T, N, C], normalised over C; weight, bias [C] -> [T, N, C]."""
    w, b = fast(weight), fast(bias)
    x = x.to(w.shared.dtype)  # what was multiplied in bfloat16
    if w.offset is None and w.tap is None and b.offset is None and b.tap is None:
        return F.layer_norm(x, x.shape[-1:], w.shared, b.shared, eps)
    normal = F.layer_norm(x, x.shape[-1:], eps=eps)
    scale = w.shared if w.offset is None else w.dense()[:, None, :]
    shift = b.shared if b.offset is None else b.dense()[:, None, :]
    y = torch.addcmul(shift, normal, scale)
    if w.tap is not None:
        seen = w.tap.keep(normal)
        w.tap.add(y, lambda grad: Dense((grad * seen).sum(1)))
    if b.tap is not None:
        b.tap.add(y, lambda grad: Dense(grad.sum(1)))
    return y


def linear_rows(
    x: Tensor, weight: Weight, bias: Weight | None, rows: Tensor, bias_rows: Tensor | None = None
) -> Tensor:
    """Some of the outputs of `linear`: x [T, N, in], weight [out, in], bias [out].

    rows int64 [C], rising, without a repeat, for all tasks -> [T, N, C]; rows [T, N], one for each row of x -> [T, N]. The
    others have no gradient: the weight's own gradient has the form `Rows`. `bias_rows`: where the bias stands in another
    order (a table that is also looked up has a row for padding, its bias has none).
    """
    if isinstance(weight, Factored):
        more = linear_rows(linear(_dropped(x, weight), weight.a), weight.b, None, rows)
        return linear_rows(x, weight.base, bias, rows, bias_rows) + weight.scale * more
    w = fast(weight)
    if inputs.active is not None:
        inputs.active.read(w, x)
    if rows.dim() == 1:
        if rows.numel() > 1 and not bool((rows.diff() > 0).all()):
            raise ValueError("linear_rows: rows must rise without a repeat")
        shared, offset = _rows_of(w.shared, rows), _picked(w.offset, rows)
        y = F.linear(x, shared) if offset is None else _product(x, shared, None, offset)
        if w.tap is not None:
            seen, n_rows = w.tap.keep(x), w.shared.shape[0]
            ids = rows.expand(x.shape[0], -1).contiguous()
            w.tap.add(y, lambda grad: Rows(ids, torch.bmm(grad.transpose(1, 2), seen), n_rows))
    else:
        with inputs.apart():  # rows to multiply by, not inputs
            y = (x * embed(rows, weight)).sum(-1)
    return y if bias is None else _plus_bias(y, bias, rows if bias_rows is None else bias_rows)


def _rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows]; without a copy where they stand next to each other."""
    if rows.numel() and int(rows[-1] - rows[0]) == rows.numel() - 1:
        return table.narrow(0, int(rows[0]), rows.numel())
    return table.index_select(0, rows)


def _picked(offset: Offset | None, rows: Tensor) -> Offset | None:
    """The rows [C] of an offset of a matrix, as an offset of the matrix of these rows."""
    if isinstance(offset, Both):
        return _look_up(offset.rows, rows).plus(_left_at(offset.low, rows))
    if isinstance(offset, LowRank):
        return _left_at(offset, rows)
    if isinstance(offset, Rows):
        return _look_up(offset, rows)
    return None if offset is None else Dense(offset.value.index_select(1, rows))


def _left_at(offset: LowRank, rows: Tensor) -> LowRank:
    return LowRank(tuple((left.index_select(2, rows), right) for left, right in offset.blocks))


def _look_up(offset: Rows, rows: Tensor) -> Dense:
    return Dense(offset.look_up(rows.expand(offset.ids.shape[0], -1).contiguous()))


def _plus_bias(y: Tensor, bias: Weight, rows: Tensor) -> Tensor:
    """y [T, N, C] or [T, N] + the bias at rows [C] or [T, N]."""
    b, shared_rows = fast(bias), rows.dim() == 1
    y = y + b.shared[rows]
    if b.offset is not None:
        own = b.offset.dense()
        y = y + (own.index_select(1, rows)[:, None, :] if shared_rows else own.gather(1, rows))
    if b.tap is not None:
        n_rows = b.shared.shape[0]

        def finish(grad: Tensor) -> Dense:
            out = grad.new_zeros(grad.shape[0], n_rows)
            return Dense(out.index_copy(1, rows, grad.sum(1)) if shared_rows else out.scatter_add(1, rows, grad))

        b.tap.add(y, finish)
    return y
