"""The GRU of many tasks at once, with its backward pass through time, and the backward pass of that, written out.

    r, z = sigmoid(x_r + P_r), sigmoid(x_z + P_z)        P = W h + b
    n    = tanh(x_n + r * P_n)
    h'   = n + z * (h - n)                        (Cho et al. 2014, arXiv:1406.1078; gates as in torch.nn.GRU)

`x` is the input projection of *all* events, made by one product before. What makes it fast on few long-tailed
sequences: events are packed, so no projection is spent on padding; a step touches only the sequences that still run;
each pass makes all that does not depend on a neighbouring step outside its loop. `W` and `b` are shared or
shared-plus-offset, and sequences start from zero or from a state of their task (`core.weights`).

**Backward.** With t the gradient of h', D = d h'/d P gate by gate and kappa = d h'/d x_n,

    dP = D t,   dx_r, dx_z = dP_r, dP_z,   dx_n = kappa t,   and h receives  z t + W^T dP.

The gradient dP is all that an own weight needs: it is dP^T h for `W` and the sum of dP for `b`.

**Backward of the backward**, for second order. The backward pass runs from the last event to the first, so its own
adjoint runs forward again: it is the tangent of the GRU. With u the cotangent of dP (from dx, from the weight gradients)
and c_n that of dx_n,

    tau = z tau_before + kappa c_n + D (u + W tau_before)        is the cotangent of t, event after event.

What is left are the cotangents of r, z, n, P_n and h that stand in D, kappa and z themselves; they are known once tau is,
and go down one more ordinary backward pass. So second order costs one forward and one backward loop more, and no graph of
single steps is ever kept. Checked against torch.nn.GRU in tests/core/test_gru.py, against autograd through plain steps and
by gradgradcheck in tests/core/test_gru_second_order.py.

Shapes: T tasks, M events a task, S states of the batch, L entries of the plan (`core.batch`), H hidden. Gate order r,
z, n along 3H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarec.core import fused, inputs
from metarec.core.batch import Block, Sequences
from metarec.core.offsets import Dense
from metarec.core.own_gradients import OwnWeight, bias_gradient, through_own, weight_gradient
from metarec.core.weights import Factored, Weight, fast, zero_leaf


@dataclass(frozen=True)
class _Product:
    """W h (+ b) of a block of leading tasks, and the way back; tasks in the order of the plan."""

    weight: Tensor  # [3H, H]
    bias: Tensor  # [3H]
    own: Tensor | None  # [T, 3H, H], the whole weight of each task
    own_bias: Tensor | None  # [T, 1, 3H], the whole bias of each task

    @staticmethod
    def of(weight: Tensor, bias: Tensor, offset: Tensor | None, bias_offset: Tensor | None, order: Tensor) -> _Product:
        own = None if offset is None else offset.index_select(0, order).add_(weight)
        own_bias = None if bias_offset is None else (bias_offset[order] + bias)[:, None, :]
        return _Product(weight, bias, own, own_bias)

    def into(self, out: Tensor, h: Tensor, block: Block) -> None:
        """h [tasks, rows, H] -> out [tasks, rows, 3H] = W h + b."""
        which = slice(block.begin, block.begin + block.tasks)
        bias = self.bias if self.own_bias is None else self.own_bias[which]
        if self.own is not None:
            torch.baddbmm(bias, h, self.own[which].transpose(1, 2), out=out)
        elif self.own_bias is None:
            torch.addmm(bias, h.flatten(0, 1), self.weight.T, out=out.flatten(0, 1))
        else:
            torch.matmul(h, self.weight.T, out=out).add_(bias)

    def onto(self, out: Tensor, h: Tensor, block: Block) -> None:
        """out [tasks, rows, 3H] += W h."""
        if self.own is None:
            out.flatten(0, 1).addmm_(h.flatten(0, 1), self.weight.T)
        else:
            out.baddbmm_(h, self.own[block.begin : block.begin + block.tasks].transpose(1, 2))

    def back(self, dh: Tensor, dp: Tensor, block: Block) -> None:
        """dh [tasks, rows, H] += dp [tasks, rows, 3H] W."""
        if self.own is None:
            dh.flatten(0, 1).addmm_(dp.flatten(0, 1), self.weight)
        else:
            dh.baddbmm_(dp, self.own[block.begin : block.begin + block.tasks])


@dataclass(frozen=True)
class _Kept:
    """What the forward pass leaves for the others, one row for each entry of the plan."""

    gates: Tensor  # [L, 3H]: r, z, n
    pn: Tensor  # [L, H]: P_n
    before: Tensor  # [L, H]: the state an entry was made from
    product: _Product

    def slopes(self) -> tuple[Tensor, Tensor]:
        """kappa [L, H] and D [L, 3H]."""
        found: tuple[Tensor, Tensor] = fused.slopes(self.gates, self.pn, self.before)
        return found


def _forward(x: Tensor, sequences: Sequences, product: _Product, start: Tensor | None) -> tuple[_Kept, Tensor]:
    """(what is kept, states [L, H])."""
    width = x.shape[2]
    hidden, plan = width // 3, sequences.plan
    gates = x.reshape(-1, width).index_select(0, plan.read)  # x of all entries; becomes r, z, n in place
    products = torch.empty_like(gates)
    states = gates.new_empty(len(gates), hidden)
    own_start = None if start is None else start.index_select(0, plan.order)[:, None, :]
    h = states  # of the block before
    for block, gate, p, state in zip(
        plan.blocks, *(torch.split(part, plan.sizes) for part in (gates, products, states)), strict=True
    ):
        shape = (block.tasks, block.rows, -1)
        if not block.first:
            h = h[: block.tasks, : block.rows].contiguous()
        elif own_start is None:
            h = x.new_zeros(*shape[:2], hidden)
        else:
            h = own_start[block.begin : block.begin + block.tasks].expand(-1, block.rows, -1).contiguous()
        product.into(p.view(shape), h, block)
        fused.gates(gate, p, h.view(-1, hidden), state)
        h = state.view(shape)
    before = torch.cat([states, states.new_zeros(sequences.n_tasks, hidden) if start is None else start])
    return _Kept(gates, products[:, 2 * hidden :].contiguous(), before.index_select(0, plan.origin), product), states


def _back_through_time(
    kept: _Kept,
    sequences: Sequences,
    slope: Tensor,
    total: Tensor,
    to_start: bool,
    direct: Tensor | None = None,
    into_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradients of the states alone (`total` [L, H], becomes the whole gradient t in place) down the time axis.

    `direct` [L, 3H] and `into_state` [L, H] join dP and the gradient of the state before. Returns dP [L, 3H], t, and the
    gradient of each task's start [T, H] (zero unless `to_start`).
    """
    plan, hidden = sequences.plan, total.shape[1]
    keep = kept.gates[:, hidden : 2 * hidden]
    dp_of = slope if direct is None else torch.empty_like(slope)
    start = total.new_zeros(sequences.n_tasks, hidden)
    parts = [reversed(torch.split(part, plan.sizes)) for part in (total, slope, dp_of, keep)]
    extra = [None if part is None else torch.split(part, plan.sizes) for part in (direct, into_state)]
    dh: Tensor | None = None
    last = len(plan.blocks) - 1
    for step, (block, t, d, dp, z) in enumerate(zip(reversed(plan.blocks), *parts, strict=True)):
        shape = (block.tasks, block.rows, -1)
        if dh is not None:  # what ended with this step has no gradient from the next
            t.view(shape)[: dh.shape[0], : dh.shape[1]] += dh
        if extra[0] is None:
            dp.view(-1, 3, hidden).mul_(t[:, None, :])
        else:
            torch.addcmul(
                extra[0][last - step].view(-1, 3, hidden), d.view(-1, 3, hidden), t[:, None, :],
                out=dp.view(-1, 3, hidden),
            )  # fmt: skip
        if block.first and not to_start:
            dh = None
            continue
        dh = (t * z).view(shape)
        if extra[1] is not None:
            dh += extra[1][last - step].view(shape)
        kept.product.back(dh, dp.view(shape), block)
        if block.first:
            start.index_add_(0, plan.order[block.begin : block.begin + block.tasks], dh.sum(1))
            dh = None
    return dp_of, total, start


def _tangents(kept: _Kept, sequences: Sequences, slope: Tensor, u: Tensor, tau: Tensor, start: Tensor | None) -> Tensor:
    """tau in place of kappa c_n [L, H], W tau_before added to `u` [L, 3H] in place; returns tau_before [L, H]."""
    plan, hidden = sequences.plan, tau.shape[1]
    keep = kept.gates[:, hidden : 2 * hidden]
    own_start = None if start is None else start.index_select(0, plan.order)[:, None, :]
    h = tau
    for block, cotangent, d, z, out in zip(
        plan.blocks, *(torch.split(part, plan.sizes) for part in (u, slope, keep, tau)), strict=True
    ):
        shape = (block.tasks, block.rows, -1)
        if not block.first:
            h = h[: block.tasks, : block.rows].contiguous()
        elif own_start is not None:
            h = own_start[block.begin : block.begin + block.tasks].expand(-1, block.rows, -1).contiguous()
        if not block.first or own_start is not None:
            kept.product.onto(cotangent.view(shape), h, block)
            out.addcmul_(z, h.view(-1, hidden))
        out.add_((cotangent * d).view(-1, 3, hidden).sum(1))
        h = out.view(shape)
    begin = tau.new_zeros(sequences.n_tasks, hidden) if start is None else start
    return torch.cat([tau, begin]).index_select(0, plan.origin)


@dataclass(frozen=True)
class _Wanted:
    """Which gradients are asked for."""

    x: bool
    weight: bool
    own: bool
    bias: bool
    own_bias: bool
    leaf: bool
    start: bool


def _gradients(
    wanted: _Wanted, kept: _Kept, sequences: Sequences, shape: torch.Size, dp: Tensor, dx_n: Tensor, start: Tensor
) -> list[Tensor | None]:
    """dP and dx_n of all entries -> the gradients of x, W, own W, b, own b, leaf, start."""
    hidden = dx_n.shape[1]
    dx = None
    if wanted.x:
        rows = torch.cat([dp[:, : 2 * hidden], dx_n], 1)
        dx = dp.new_zeros(shape[0] * shape[1], shape[2]).index_add_(0, sequences.plan.read, rows).view(shape)
    return [
        dx,
        dp.T @ kept.before if wanted.weight else None,
        weight_gradient(sequences, kept.before, dp) if wanted.own else None,
        dp.sum(0) if wanted.bias else None,
        bias_gradient(sequences, dp) if wanted.own_bias else None,
        dp if wanted.leaf else None,
        start if wanted.start else None,
    ]


class _GRU(torch.autograd.Function):
    """(x, W, own offset of W, b, own offset of b, leaf, start) -> states [S, H].

    `leaf` [L, 3H] takes the gradient of P at each entry of the plan; its value is not read.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        bias: Tensor,
        bias_offset: Tensor | None,
        leaf: Tensor | None,
        start: Tensor | None,
        sequences: Sequences,
    ) -> Tensor:
        product = _Product.of(weight, bias, offset, bias_offset, sequences.plan.order)
        ctx.kept, states = _forward(x, sequences, product, start)
        ctx.sequences = sequences
        # not read again but by the graph: the gradients are functions of them
        ctx.save_for_backward(x, weight, offset, bias, bias_offset, leaf, start)
        return states.index_select(0, sequences.plan.entry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        wanted = _Wanted(*ctx.needs_input_grad[:7])
        return (*_GRUBackward.apply(g, *ctx.saved_tensors, ctx.sequences, ctx.kept, wanted), None)  # type: ignore[no-untyped-call]


class _GRUBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        bias: Tensor,
        bias_offset: Tensor | None,
        leaf: Tensor | None,
        start: Tensor | None,
        sequences: Sequences,
        kept: _Kept,
        wanted: _Wanted,
    ) -> tuple[Tensor | None, ...]:
        kappa, slope = kept.slopes()
        # zero where a sequence has ended
        total = torch.zeros_like(kappa).index_copy_(0, sequences.plan.entry, g)
        dp, total, d_start = _back_through_time(kept, sequences, slope, total, wanted.start)
        ctx.kept, ctx.sequences, ctx.shape = kept, sequences, x.shape
        ctx.save_for_backward(dp, total)
        ctx.set_materialize_grads(False)
        return tuple(_gradients(wanted, kept, sequences, x.shape, dp, total * kappa, d_start))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        kept, sequences = ctx.kept, ctx.sequences
        dp, t = ctx.saved_tensors
        plan, hidden = sequences.plan, t.shape[1]
        c_x, c_w, c_own, c_b, c_own_b, c_leaf, c_start = cotangents
        wanted = _Wanted(*ctx.needs_input_grad[1:8])
        kappa, slope = kept.slopes()

        u = torch.zeros_like(dp) if c_leaf is None else c_leaf.clone()  # the cotangent of dP
        e_before = torch.zeros_like(t)  # of the state before
        c_n = None
        if c_x is not None:
            rows = c_x.reshape(-1, 3 * hidden).index_select(0, plan.read)
            u[:, : 2 * hidden] += rows[:, : 2 * hidden]
            c_n = rows[:, 2 * hidden :]
        if c_w is not None:
            u.addmm_(kept.before, c_w.T)
            e_before.addmm_(dp, c_w)
        if c_own is not None:
            through_own(sequences, c_own, kept.before, dp, u, e_before)
        if c_b is not None:
            u += c_b
        if c_own_b is not None:
            u += c_own_b.index_select(0, plan.task)

        tau = torch.zeros_like(t) if c_n is None else kappa * c_n
        tau_before = _tangents(kept, sequences, slope, u, tau, c_start)
        d_g = tau.index_select(0, plan.entry) if ctx.needs_input_grad[0] else None

        direct, e_n = fused.bends(kept.gates, kept.pn, kept.before, kappa, t, u, c_n, tau_before, e_before)
        dq, total, d_start = _back_through_time(
            kept, sequences, slope, torch.zeros_like(t), wanted.start, direct, e_before
        )
        found = _gradients(wanted, kept, sequences, ctx.shape, dq, total * kappa + e_n, d_start)
        if wanted.weight:
            found[1] = found[1] + dp.T @ tau_before
        if wanted.own:
            found[2] = found[2] + weight_gradient(sequences, tau_before, dp)  # type: ignore[operator]
        return (d_g, *found, None, None, None)


def gru(x: Tensor, sequences: Sequences, weight: Weight, bias: Weight, start: Tensor | None = None) -> Tensor:
    """The hidden state behind every event of every sequence: x [T, M, 3H] -> [S, H].

    weight [3H, H]; bias [3H]; start [T, H], the state of each task before any event (zero without). A factored weight is
    written out, a matrix a task, as every own weight of a recurrence is: a step would else be three thin products.
    """
    w, b = weight.whole(sequences.n_tasks) if isinstance(weight, Factored) else fast(weight), fast(bias)
    for offset in (w.offset, b.offset):
        if not isinstance(offset, Dense | None):
            raise TypeError(f"gru has no rule for an offset of {type(offset).__name__}")
    plan = sequences.plan
    x = x.to(w.shared.dtype)  # a recurrence adds up what it rounds: never in bfloat16
    tapped = w.tap is not None or b.tap is not None
    leaf = zero_leaf((len(plan.read), x.shape[2]), x) if tapped else None
    states: Tensor = _GRU.apply(  # type: ignore[no-untyped-call]
        x,
        w.shared,
        None if w.offset is None else w.offset.value,  # type: ignore[union-attr]
        b.shared,
        None if b.offset is None else b.offset.value,  # type: ignore[union-attr]
        leaf,
        start,
        sequences,
    )
    if inputs.active is not None and inputs.active.name(w.shared) is not None:
        inputs.active.seen(w.shared, _before(states.detach(), sequences, start)[plan.entry], every=True)
    if leaf is not None and w.tap is not None:
        seen = w.tap.keep(states)
        begin = x.new_zeros(sequences.n_tasks, states.shape[1]) if start is None else w.tap.keep(start)

        def finish(grad: Tensor) -> Dense:
            made = seen.new_zeros(len(plan.read), states.shape[1]).index_copy(0, plan.entry, seen)
            before = torch.cat([made, begin]).index_select(0, plan.origin)
            return Dense(OwnWeight.apply(before, grad, sequences))  # type: ignore[no-untyped-call]

        w.tap.add(leaf, finish)
    if leaf is not None and b.tap is not None:
        b.tap.add(leaf, lambda grad: Dense(bias_gradient(sequences, grad)))
    return states


def _before(states: Tensor, sequences: Sequences, start: Tensor | None) -> Tensor:
    """The state that each entry of the plan was made from: states [S, H], start [T, H] or None = zero -> [L, H]."""
    plan, hidden = sequences.plan, states.shape[1]
    made = states.new_zeros(len(plan.read), hidden).index_copy(0, plan.entry, states)
    begin = states.new_zeros(sequences.n_tasks, hidden) if start is None else start.detach()
    return torch.cat([made, begin]).index_select(0, plan.origin)
