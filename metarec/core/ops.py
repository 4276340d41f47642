"""Operators with a leading task axis: each takes a weight that is shared or shared-plus-offset (`core.weights`).

    linear   y[t] = x[t] (W + D[t])^T + b + c[t]
    embed    y[t, i] = (E + D[t])[ids[t, i]]

Where a weight carries a tap, the operator notes its result and how the result's gradient G becomes the weight's own:
G^T X for a linear weight, the sum of G for a bias, G by row for an embedding. Checked against autograd on plain copies
in tests/core/test_ops.py.

Shapes: T tasks, N rows a task.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core.weights import Dense, FastWeight, LowRank, Rows, Weight


def linear(x: Tensor, weight: Weight, bias: Weight | None = None) -> Tensor:
    """x [T, N, in], weight [out, in], bias [out] -> [T, N, out]."""
    w = weight if isinstance(weight, FastWeight) else FastWeight(weight)
    b = bias if isinstance(bias, FastWeight) or bias is None else FastWeight(bias)
    y = F.linear(x, w.shared, None if b is None else b.shared)
    if isinstance(w.offset, LowRank):
        y = torch.baddbmm(y, torch.bmm(x, w.offset.right.transpose(1, 2)), w.offset.left)
    elif isinstance(w.offset, Dense):
        y = torch.baddbmm(y, x, w.offset.value.transpose(1, 2))
    elif w.offset is not None:
        raise TypeError(f"linear has no rule for an offset of {type(w.offset).__name__}")
    if b is not None and b.offset is not None:
        y = y + b.offset.dense()[:, None, :]
    if w.tap is not None:
        seen = x.detach()
        w.tap.add(y, lambda grad: LowRank(grad, seen))
    if b is not None and b.tap is not None:
        b.tap.add(y, lambda grad: Dense(grad.sum(1)))
    return y


def embed(ids: Tensor, table: Weight) -> Tensor:
    """ids int64 [T, M], table [rows, d] -> [T, M, d]."""
    e = table if isinstance(table, FastWeight) else FastWeight(table)
    y = F.embedding(ids, e.shared)
    if isinstance(e.offset, Rows):
        y = y + e.offset.look_up(ids)
    elif e.offset is not None:
        raise TypeError(f"embed has no rule for an offset of {type(e.offset).__name__}")
    if e.tap is not None:
        n_rows = e.shared.shape[0]
        e.tap.add(y, lambda grad: Rows.of(ids, grad, n_rows))
    return y
