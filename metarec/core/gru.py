"""The GRU of many tasks at once, with its backward pass through time written out.

    r, z = sigmoid(x_r + W_r h + b_r), sigmoid(x_z + W_z h + b_z)
    n    = tanh(x_n + r * (W_n h + b_n))
    h'   = (1 - z) * n + z * h                                   (Cho et al. 2014, arXiv:1406.1078; gates as in torch.nn.GRU)

`x` is the input projection of *all* events, made by one product before. What makes it fast on few long-tailed
sequences: events are packed, so no projection is spent on padding; tasks and rows are taken longest first, so a step
touches only those that still run; the weight gradient is one product over all steps instead of one a step. `W` is shared
or shared-plus-offset (`core.weights`).

Shapes: T tasks, R sequences a task, M events a task, H hidden. Gate order r, z, n along 3H.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarec.core.batch import Sequences
from metarec.core.weights import Dense, FastWeight, Weight, zero_leaf


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sequences: Sequences,
        weight: Tensor,
        weight_offset: Tensor | None,
        bias: Tensor,
        bias_offset: Tensor | None,
        weight_leaf: Tensor | None,
        bias_leaf: Tensor | None,
    ) -> Tensor:
        n_tasks, n_events, width = x.shape
        hidden = width // 3
        order = sequences.order
        own_w = None if weight_offset is None else (weight + weight_offset)[order]
        own_b = None if bias_offset is None else (bias + bias_offset)[order, None, :]
        flat = x.reshape(-1, width)
        states = x.new_zeros(n_tasks * n_events + 1, hidden)  # the last row takes what ended sequences write
        h = x.new_zeros(n_tasks, sequences.lengths.shape[1], hidden)
        kept = []
        for step in sequences.steps:
            h = h[: step.tasks, : step.rows]
            xt = flat.index_select(0, step.read).view(step.tasks, step.rows, width)
            if own_w is None:
                hp = F.linear(h, weight, bias if own_b is None else None)
            else:
                hp = torch.bmm(h, own_w[: step.tasks].transpose(1, 2))
                if own_b is None:
                    hp += bias
            if own_b is not None:
                hp += own_b[: step.tasks]
            rz = xt[..., : 2 * hidden].add_(hp[..., : 2 * hidden]).sigmoid_()
            r, z, hn = rz[..., :hidden], rz[..., hidden:], hp[..., 2 * hidden :]
            n = xt[..., 2 * hidden :].addcmul_(r, hn).tanh_()
            kept.append((h, r, z, n, hn))
            h = torch.lerp(n, h, z)
            states.index_copy_(0, step.write, h.view(-1, hidden))
        ctx.save_for_backward(weight, own_w)
        ctx.kept, ctx.sequences, ctx.shape = kept, sequences, x.shape
        return states[:-1].view(n_tasks, n_events, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        weight, own_w = ctx.saved_tensors
        sequences = ctx.sequences
        n_tasks, n_events, width = ctx.shape
        hidden = width // 3
        need_x, _, need_w, _, need_b, _, need_wl, need_bl = ctx.needs_input_grad
        g = g.reshape(-1, hidden)
        dx = g.new_zeros(n_tasks * n_events + 1, width)
        pre, before = [], []  # of all steps: the gradient of W h + b, and the h it belongs to
        dh: Tensor | None = None
        for step, (h, r, z, n, hn) in zip(reversed(sequences.steps), reversed(ctx.kept), strict=True):
            total = g.index_select(0, step.read)
            if step.ended is not None:
                total.index_fill_(0, step.ended, 0.0)
            total = total.view(step.tasks, step.rows, hidden)
            if dh is not None:  # what ended with this step has no gradient from the next
                total[: dh.shape[0], : dh.shape[1]] += dh
            dn = torch.addcmul(total, total, z, value=-1)  # total * (1 - z)
            dn = torch.addcmul(dn, dn * n, n, value=-1)  # * (1 - n^2)
            dpre = total.new_empty(step.tasks, step.rows, width)
            torch.mul(torch.addcmul(r, r, r, value=-1), dn * hn, out=dpre[..., :hidden])
            torch.mul(torch.addcmul(z, z, z, value=-1), (h - n) * total, out=dpre[..., hidden : 2 * hidden])
            dpre[..., 2 * hidden :] = dn
            dx.index_copy_(0, step.write, dpre.view(-1, width))
            dpre[..., 2 * hidden :] *= r
            dh = total.mul_(z)
            if own_w is None:
                dh.view(-1, hidden).addmm_(dpre.view(-1, width), weight)
            else:
                dh.baddbmm_(dpre, own_w[: step.tasks])
            pre.append(dpre)
            before.append(h)
        dx = dx[:-1].view(n_tasks, n_events, width) if need_x else None
        dw = dwl = db = dbl = None
        if need_w or need_b:
            p = torch.cat([part.view(-1, width) for part in pre]) if pre else g.new_zeros(0, width)
            b = torch.cat([part.reshape(-1, hidden) for part in before]) if pre else g.new_zeros(0, hidden)
            dw, db = p.T @ b, p.sum(0)
        if need_wl or need_bl:
            dwl, dbl = g.new_zeros(n_tasks, width, hidden), g.new_zeros(n_tasks, width)
            # steps with the same number of tasks go together: one product a group
            for tasks, group in itertools.groupby(range(len(pre)), lambda i: pre[i].shape[0]):
                same = list(group)
                p = torch.cat([pre[i] for i in same], 1)
                dwl[:tasks].baddbmm_(p.transpose(1, 2), torch.cat([before[i] for i in same], 1))
                dbl[:tasks] += p.sum(1)
            back = sequences.order.argsort()
            dwl, dbl = dwl[back], dbl[back]
        return dx, None, dw, None, db, None, dwl, dbl


def gru(x: Tensor, sequences: Sequences, weight: Weight, bias: Weight) -> Tensor:
    """The hidden state behind every event: x [T, M, 3H] -> [T, M, H]; every sequence starts from zero.

    weight [3H, H]; bias [3H]. States behind a task's last event are zero.
    """
    w = weight if isinstance(weight, FastWeight) else FastWeight(weight)
    b = bias if isinstance(bias, FastWeight) else FastWeight(bias)
    leaves = []
    for fast in (w, b):
        leaf = None
        if fast.tap is not None:  # the leaf is the weight's own offset: its gradient is made over all steps at once
            leaf = zero_leaf((x.shape[0], *fast.shared.shape), x)
            fast.tap.add(leaf, Dense)
        leaves.append(leaf)
    offsets = [None if fast.offset is None else fast.offset.dense() for fast in (w, b)]
    return _GRU.apply(x, sequences, w.shared, offsets[0], b.shared, offsets[1], *leaves)
