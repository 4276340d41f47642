"""The GRU of many tasks at once, with its backward pass through time written out.

    r, z = sigmoid(x_r + W_r h + b_r), sigmoid(x_z + W_z h + b_z)
    n    = tanh(x_n + r * (W_n h + b_n))
    h'   = (1 - z) * n + z * h                    (Cho et al. 2014, arXiv:1406.1078; gates as in torch.nn.GRU)

`x` is the input projection of *all* events, made by one product before. What makes it fast on few long-tailed
sequences: events are packed, so no projection is spent on padding; a step touches only the sequences that still run;
the backward pass makes all that does not depend on a later step before its loop, and the weight gradient, the gradient
of `x` and the scattering after it. `W` is shared or shared-plus-offset (`core.weights`).

The gradient G of the product P = W h + b is all that an own weight needs: it is G^T h for `W` and the sum of G for `b`.

Shapes: T tasks, M events a task, S states of the batch, L entries of the plan (`core.batch`), H hidden. Gate order r,
z, n along 3H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarec.core.batch import Block, Sequences
from metarec.core.weights import Dense, FastWeight, Weight, zero_leaf


@dataclass(frozen=True)
class _Product:
    """P = W h + b of a block of leading tasks, and the way back; tasks in the order of the plan."""

    weight: Tensor  # [3H, H]
    bias: Tensor  # [3H]
    own: Tensor | None  # [T, 3H, H], the whole weight of each task
    own_bias: Tensor | None  # [T, 1, 3H], the whole bias of each task

    @staticmethod
    def of(weight: Tensor, bias: Tensor, offset: Dense | None, bias_offset: Dense | None, order: Tensor) -> _Product:
        own = None if offset is None else offset.value.index_select(0, order).add_(weight)
        own_bias = None if bias_offset is None else (bias_offset.value[order] + bias)[:, None, :]
        return _Product(weight, bias, own, own_bias)

    def into(self, out: Tensor, h: Tensor, block: Block) -> None:
        """h [tasks, rows, H] -> out [tasks, rows, 3H]."""
        which = slice(block.begin, block.begin + block.tasks)
        bias = self.bias if self.own_bias is None else self.own_bias[which]
        if self.own is not None:
            torch.baddbmm(bias, h, self.own[which].transpose(1, 2), out=out)
        elif self.own_bias is None:
            torch.addmm(bias, h.flatten(0, 1), self.weight.T, out=out.flatten(0, 1))
        else:
            torch.matmul(h, self.weight.T, out=out).add_(bias)

    def back(self, dh: Tensor, dp: Tensor, block: Block) -> None:
        """dh [tasks, rows, H] += dp [tasks, rows, 3H] W."""
        if self.own is None:
            dh.flatten(0, 1).addmm_(dp.flatten(0, 1), self.weight)
        else:
            dh.baddbmm_(dp, self.own[block.begin : block.begin + block.tasks])


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sequences: Sequences,
        weight: Tensor,
        weight_offset: Dense | None,
        bias: Tensor,
        bias_offset: Dense | None,
        leaf: Tensor | None,
    ) -> Tensor:
        """`leaf` [L, 3H] takes the gradient of P at each entry of the plan; its value is not read."""
        width = x.shape[2]
        hidden = width // 3
        plan = sequences.plan
        product = _Product.of(weight, bias, weight_offset, bias_offset, plan.order)
        gates = x.reshape(-1, width).index_select(0, plan.read)  # x of all entries; becomes r, z, n in place
        products = torch.empty_like(gates)
        states = gates.new_empty(len(gates), hidden)
        h = states  # of the block before
        for block, gate, p, state in zip(
            plan.blocks, *(torch.split(part, plan.sizes) for part in (gates, products, states)), strict=True
        ):
            shape = (block.tasks, block.rows, -1)
            h = x.new_zeros(*shape[:2], hidden) if block.first else h[: block.tasks, : block.rows].contiguous()
            product.into(p.view(shape), h, block)
            rz = gate[:, : 2 * hidden].add_(p[:, : 2 * hidden]).sigmoid_()
            n = gate[:, 2 * hidden :].addcmul_(rz[:, :hidden], p[:, 2 * hidden :]).tanh_()
            torch.lerp(n, h.view(-1, hidden), rz[:, hidden:], out=state)
            h = state.view(shape)
        ctx.kept = gates, products[:, 2 * hidden :].contiguous(), states
        ctx.product, ctx.plan, ctx.shape = product, plan, x.shape
        return torch.cat([x.new_zeros(1, hidden), states.index_select(0, plan.entry)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (gates, pn, states), product, plan = ctx.kept, ctx.product, ctx.plan
        n_tasks, n_events, width = ctx.shape
        hidden = width // 3
        need_x, _, need_w, _, need_b, _, need_leaf = ctx.needs_input_grad
        r, z, n = gates.chunk(3, 1)
        before = F.pad(states, (0, 0, 0, 1)).index_select(0, plan.before)
        dh_of = torch.zeros_like(states).index_copy_(0, plan.entry, g[1:])  # zero where a sequence has ended

        # d state / d (x + P) per gate; times the gradient of the state, it becomes the gradient of P in place
        through_n = (1 - z) * (1 - n * n)
        dp_of = torch.cat([through_n * pn * r * (1 - r), (before - n) * z * (1 - z), through_n * r], 1)
        dh: Tensor | None = None
        for block, total, dp, keep in zip(
            reversed(plan.blocks), *(reversed(torch.split(part, plan.sizes)) for part in (dh_of, dp_of, z)), strict=True
        ):
            shape = (block.tasks, block.rows, -1)
            if dh is not None:  # what ended with this step has no gradient from the next
                total.view(shape)[: dh.shape[0], : dh.shape[1]] += dh
            dp.view(-1, 3, hidden).mul_(total[:, None, :])
            if block.first:
                dh = None
            else:
                dh = (total * keep).view(shape)
                product.back(dh, dp.view(shape), block)

        dx = dw = db = None
        if need_x:
            dx_of = torch.cat([dp_of[:, : 2 * hidden], dh_of * through_n], 1)
            dx = g.new_zeros(n_tasks * n_events, width).index_add_(0, plan.read, dx_of).view(ctx.shape)
        if need_w:
            dw = dp_of.T @ before
        if need_b:
            db = dp_of.sum(0)
        return dx, None, dw, None, db, None, dp_of if need_leaf else None


def gru(x: Tensor, sequences: Sequences, weight: Weight, bias: Weight) -> Tensor:
    """The hidden state behind every event of every sequence: x [T, M, 3H] -> [1 + S, H].

    Number 0 is the zero that sequences start from. weight [3H, H]; bias [3H].
    """
    w = weight if isinstance(weight, FastWeight) else FastWeight(weight)
    b = bias if isinstance(bias, FastWeight) else FastWeight(bias)
    for offset in (w.offset, b.offset):
        if not isinstance(offset, Dense | None):
            raise TypeError(f"gru has no rule for an offset of {type(offset).__name__}")
    tapped = w.tap is not None or b.tap is not None
    leaf = zero_leaf((len(sequences.plan.read), x.shape[2]), x) if tapped else None
    states: Tensor = _GRU.apply(  # type: ignore[no-untyped-call]
        x, sequences, w.shared, w.offset, b.shared, b.offset, leaf
    )
    if leaf is not None and w.tap is not None:
        seen = states.detach()
        w.tap.add(leaf, lambda grad: _weight_gradient(sequences, seen, grad))
    if leaf is not None and b.tap is not None:
        b.tap.add(leaf, lambda grad: _bias_gradient(sequences, grad))
    return states


def _weight_gradient(sequences: Sequences, states: Tensor, grad: Tensor) -> Dense:
    """G^T h of each task: states [1 + S, H], grad [L, 3H] -> [T, 3H, H]."""
    hidden, width = states.shape[1], grad.shape[1]
    g = F.pad(grad, (0, 0, 0, 1))
    out = grad.new_empty(sequences.n_tasks, width, hidden)
    for group in sequences.groups:
        left = g.index_select(0, group.entry.flatten()).view(*group.entry.shape, width)
        right = states.index_select(0, group.source.flatten()).view(*group.entry.shape, hidden)
        out.index_copy_(0, group.tasks, torch.bmm(left.transpose(1, 2), right))
    return Dense(out)


def _bias_gradient(sequences: Sequences, grad: Tensor) -> Dense:
    """The sum of G of each task: grad [L, 3H] -> [T, 3H]."""
    g = F.pad(grad, (0, 0, 0, 1))
    out = grad.new_empty(sequences.n_tasks, grad.shape[1])
    for group in sequences.groups:
        rows = g.index_select(0, group.entry.flatten()).view(*group.entry.shape, grad.shape[1])
        out.index_copy_(0, group.tasks, rows.sum(1))
    return Dense(out)
