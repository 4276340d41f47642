"""Pairs given by event ranges -> one packed batch (`core.batch`), by index arithmetic alone, on any device.

A prefix is item[begin:event]. Neighbouring pairs of a task whose prefixes start at one event share one sequence, and
neighbouring sequences that overlap read one stretch of events. Items outside the vocabulary (-1), and those numbered above
`n_read`, are left out of a prefix; a break between sessions (0, `data.history`) is read.

Where the events live on a GPU, they are gathered there, and everything here runs there: only sizes come back to the host.

Shapes: P pairs, T tasks, N pairs a task.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec.core.batch import PairBatch, Sequences


def pack(
    items_at: Callable[[Tensor], Tensor],
    n_tasks: int,
    task: Tensor,
    begin: Tensor,
    event: Tensor,
    n_read: int | None = None,
) -> PairBatch:
    """task, begin, event int64 [P], grouped by task, as many of each; items_at: events [n] -> their items, int64 [n].

    Targets are whatever `items_at` says; prefixes hold items up to `n_read` (None: all).
    """
    device = task.device
    new = torch.ones_like(task, dtype=torch.bool)
    new[1:] = (begin[1:] != begin[:-1]) | (task[1:] != task[:-1])
    row = new.cumsum(0) - 1  # the sequence of each pair
    row_task, row_begin, row_end = task[new], begin[new], event[_last_of(new)]

    opens = torch.ones_like(row_task, dtype=torch.bool)
    inside = (row_begin[1:] > row_begin[:-1]) & (row_begin[1:] < row_end[:-1])
    opens[1:] = ~inside | (row_task[1:] != row_task[:-1])
    stretch = opens.cumsum(0) - 1
    stretch_begin = row_begin[opens]
    spans = row_end[_last_of(opens)] - stretch_begin
    tokens = items_at(ranges(stretch_begin, spans))
    seen = tokens >= 0 if n_read is None else (tokens >= 0) & (tokens <= n_read)
    known = torch.cat([tokens.new_zeros(1), seen.cumsum(0)])  # how many known items stand ahead of a token
    row_at = (spans.cumsum(0) - spans - stretch_begin)[stretch] + row_begin  # the row's first token
    lengths = known[row_at + row_end - row_begin] - known[row_at]

    # known items of a task stand one behind the other
    every_task = torch.arange(n_tasks, device=device)
    token_task = row_task[opens].repeat_interleave(spans)[seen]
    ahead = torch.searchsorted(token_task, every_task)
    own = torch.arange(len(token_task), device=device) - ahead[token_task]
    items = tokens.new_zeros(n_tasks, max(int(own.max()) + 1 if len(own) else 0, 1))
    items[token_task, own] = tokens[seen]

    # rows of a task longest first: recurrent models then touch only what still runs
    order = lengths.argsort(descending=True, stable=True)
    order = order[row_task[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device)
    rank -= torch.searchsorted(row_task, row_task)
    starts = tokens.new_zeros(n_tasks, int(rank.max()) + 1 if len(rank) else 1)
    sizes = torch.zeros_like(starts)
    starts[row_task, rank] = known[row_at] - ahead[row_task]
    sizes[row_task, rank] = lengths
    flat = sizes.flatten()
    places = (flat.cumsum(0) - flat).view_as(sizes)

    depth = known[row_at[row] + event - begin] - known[row_at[row]]
    at = torch.where(depth > 0, places[task, rank[row]] + depth, 0)
    shape = (n_tasks, len(task) // n_tasks)
    return PairBatch(Sequences(items, starts, sizes), at.view(shape), items_at(event).view(shape))


def _last_of(new: Tensor) -> Tensor:
    """The last number of every group, where `new` marks the first."""
    first = new.nonzero()[:, 0]
    return torch.cat([first[1:], first.new_full((1,), len(new))]) - 1 if len(first) else first


def ranges(begin: Tensor, counts: Tensor) -> Tensor:
    """begin[0], begin[0] + 1, ... (counts[0] numbers), begin[1], ..."""
    ends = counts.cumsum(0)
    shift = (begin - ends + counts).repeat_interleave(counts)
    return shift + torch.arange(len(shift), device=shift.device)
