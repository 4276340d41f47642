"""The gradients of recurrent weights that each task has of its own: sums over the states of a task.

    own W    dP^T h of each task        own b    the sum of dP of each task

Tasks of about the same number of states are one product (`core.batch.Group`).

Shapes: T tasks, L entries of the plan (`core.batch`), H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarec.core.batch import Sequences


class OwnWeight(torch.autograd.Function):
    """dP^T h of each task: before [L, H], grad [L, 3H] -> [T, 3H, H]; bilinear, so its backward is its own kind."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, grad: Tensor, sequences: Sequences) -> Tensor:
        """before [L, H], grad [L, 3H] -> [T, 3H, H]."""
        ctx.save_for_backward(before, grad)
        ctx.sequences = sequences
        return weight_gradient(sequences, before, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, Tensor, None]:
        """c [T, 3H, H] -> the gradients by `before` [L, H] and by `grad` [L, 3H]; differentiable no further."""
        before, grad = ctx.saved_tensors
        u, e_before = torch.zeros_like(grad), torch.zeros_like(before)
        through_own(ctx.sequences, c, before, grad, u, e_before)
        return e_before, u, None


def weight_gradient(sequences: Sequences, before: Tensor, grad: Tensor) -> Tensor:
    """G^T h of each task: before [L, H], grad [L, 3H] -> [T, 3H, H]."""
    hidden, width = before.shape[1], grad.shape[1]
    g, h = F.pad(grad, (0, 0, 0, 1)), F.pad(before, (0, 0, 0, 1))
    out = grad.new_empty(sequences.n_tasks, width, hidden)
    for group in sequences.groups:
        entry = group.entry.flatten()
        left = g.index_select(0, entry).view(*group.entry.shape, width)
        right = h.index_select(0, entry).view(*group.entry.shape, hidden)
        out.index_copy_(0, group.tasks, torch.bmm(left.transpose(1, 2), right))
    return out


def through_own(sequences: Sequences, c: Tensor, before: Tensor, dp: Tensor, u: Tensor, e_before: Tensor) -> None:
    """The cotangent c [T, 3H, H] of dP^T h of each task: u += h c^T, e_before += dP c, in place."""
    hidden, width = before.shape[1], dp.shape[1]
    g, h = F.pad(dp, (0, 0, 0, 1)), F.pad(before, (0, 0, 0, 1))
    more_u, more_e = torch.zeros_like(g), torch.zeros_like(h)
    for group in sequences.groups:
        entry, own = group.entry.flatten(), c.index_select(0, group.tasks)
        left = g.index_select(0, entry).view(*group.entry.shape, width)
        right = h.index_select(0, entry).view(*group.entry.shape, hidden)
        more_u.index_copy_(0, entry, torch.bmm(right, own.transpose(1, 2)).flatten(0, 1))
        more_e.index_copy_(0, entry, torch.bmm(left, own).flatten(0, 1))
    u += more_u[:-1]
    e_before += more_e[:-1]


def bias_gradient(sequences: Sequences, grad: Tensor) -> Tensor:
    """The sum of G of each task: grad [L, 3H] -> [T, 3H]."""
    return grad.new_zeros(sequences.n_tasks, grad.shape[1]).index_add(0, sequences.plan.task, grad)
