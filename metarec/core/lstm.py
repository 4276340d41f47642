"""The LSTM of many tasks at once, over packed sequences: plain operators step by step, differentiated by autograd.

    i, f, o = sigmoid(x_i + P_i), sigmoid(x_f + P_f), sigmoid(x_o + P_o)        P = W h + b
    g  = tanh(x_g + P_g);   c' = f * c + i * g;   h' = o * tanh(c')             (gates as in torch.nn.LSTM)

Source: Hochreiter & Schmidhuber 1997, Neural Computation 9(8), with the forget gate of Gers et al. 2000. Unlike the GRU
(`core.gru`), whose backward passes are written out, this one keeps the graph of its steps: it can be differentiated as often
as one likes, and is slower and larger for it. `x` is the input projection of all events, made by one product before, and a
step touches only the sequences that still run (`core.batch.Plan`).

Shapes: T tasks, M events a task, S states of the batch, L entries of the plan, H hidden. Gate order i, f, g, o along 4H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.core.batch import Sequences
from metarec.core.weights import Weight, fast_parts, own


def lstm(x: Tensor, sequences: Sequences, weight: Weight, bias: Weight, start: Tensor | None = None) -> Tensor:
    """The hidden state behind every event of every sequence: x [T, M, 4H] -> [S, H].

    weight [4H, H]; bias [4H]; start [T, H], the hidden state of each task before any event (zero without); the cell's is
    always zero. A weight with an offset or a tap is written out, a matrix a task.
    """
    with torch.autocast(x.device.type, enabled=False):  # a recurrence adds up what it rounds: never in bfloat16
        return _states(x, sequences, weight, bias, start)


def _states(x: Tensor, sequences: Sequences, weight: Weight, bias: Weight, start: Tensor | None) -> Tensor:
    plan, hidden = sequences.plan, x.shape[2] // 4
    w, b = (_of_tasks(given, sequences.n_tasks, plan.order) for given in (weight, bias))
    if not plan.blocks:  # no state, and gradients of zero
        return x.to(w.dtype).flatten(0, 1)[:0, :hidden] + 0 * (w.sum() + b.sum())
    x = x.to(w.dtype).flatten(0, 1).index_select(0, plan.read)
    begun = None if start is None else start.to(w.dtype).index_select(0, plan.order)[:, None, :]
    h = c = x  # of the block before
    found, before = [], []
    for block, read in zip(plan.blocks, torch.split(x, plan.sizes), strict=True):
        which = slice(block.begin, block.begin + block.tasks)
        if block.first:
            c = x.new_zeros(block.tasks, block.rows, hidden)
            h = c if begun is None else begun[which].expand(-1, block.rows, -1)
        else:
            h, c = (part[: block.tasks, : block.rows] for part in (h, c))
        before.append(h)
        p = torch.matmul(h, (w if w.dim() == 2 else w[which]).mT)
        gates = read.view(block.tasks, block.rows, -1) + p + (b if b.dim() == 1 else b[which, None, :])
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h.flatten(0, 1))
    if inputs.active is not None and (shared := _shared(weight)) is not None and inputs.active.name(shared) is not None:
        read_by = torch.cat([h.detach().flatten(0, 1) for h in before])
        inputs.active.seen(shared, read_by.index_select(0, plan.entry), every=True)
    return torch.cat(found).index_select(0, plan.entry)


def _shared(weight: Weight) -> Tensor | None:
    """What of a weight an optimizer steps; of a product of factors, which is written out here, nothing."""
    if isinstance(weight, Tensor):
        return weight
    (alone, *others) = fast_parts(weight)
    return None if others else alone.shared


def _of_tasks(weight: Weight, n_tasks: int, order: Tensor) -> Tensor:
    """[*S] where all tasks share it, else [T, *S] in the order of the plan."""
    if isinstance(weight, Tensor):
        return weight
    (alone, *others) = fast_parts(weight)
    if not others and alone.offset is None and alone.tap is None:
        return alone.shared
    return own(weight, n_tasks).index_select(0, order)
