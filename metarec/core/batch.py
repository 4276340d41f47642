"""Pairs of many tasks as packed sequences in which a prefix shared by several pairs stands once.

Pairs of one session are nested: the prefix of the next pair is this prefix and one more event. So the batch holds
*sequences*, and a pair says behind which of their events to look. One pass over a session gives the hidden state of
every pair in it; nothing is expanded, and nothing is padded but to the task with the most events.

Shapes: T tasks, R sequences a task, M events a task (all sequences one behind the other), N pairs a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One step of a recurrence: the sequences that still run, as a block of leading tasks and rows."""

    tasks: int
    rows: int
    read: Tensor  # int64 [tasks * rows], event in [0, T*M); any event where the sequence has ended
    write: Tensor  # the same, T*M where it has ended
    ended: Tensor | None  # places in the block that have ended; None = all run


@dataclass(frozen=True)
class Sequences:
    """items int64 [T, M] (1..n_items, 0 behind the last); starts, lengths int64 [T, R]: sequence r is items[starts:starts+lengths].

    Sequences of a task are best given longest first (recurrent models then touch only what runs); any order is right.
    """

    items: Tensor
    starts: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Sequences:
        return Sequences(self.items.to(device), self.starts.to(device), self.lengths.to(device))

    @property
    def n_tasks(self) -> int:
        return self.items.shape[0]

    @cached_property
    def order(self) -> Tensor:
        """The tasks, longest first, int64 [T]: the order that `steps` counts in."""
        return self.lengths.max(1).values.sort(descending=True, stable=True).indices

    @cached_property
    def steps(self) -> list[Step]:
        """What each step of a recurrence touches; made once, used by every inner step."""
        n_tasks, width = self.items.shape
        lengths, starts = self.lengths[self.order], self.starts[self.order]
        n_steps = int(lengths.max()) if lengths.numel() else 0
        at = torch.arange(n_steps, device=lengths.device)
        tasks = (lengths.max(1).values[:, None] > at).sum(0).tolist() if n_steps else []
        # the last row that still runs, over all tasks: a running maximum from the end of the row axis
        alive = lengths.max(0).values.flip(0).cummax(0).values.flip(0)
        rows = (alive[:, None] > at).sum(0).tolist()
        first = starts + self.order[:, None] * width
        steps = []
        for step, (t, r) in enumerate(zip(tasks, rows, strict=True)):
            runs = (lengths[:t, :r] > step).reshape(-1)
            index = (first[:t, :r] + step).reshape(-1)
            all_run = bool(runs.all())
            steps.append(
                Step(
                    t,
                    r,
                    index if all_run else index.clamp(max=n_tasks * width - 1),
                    index if all_run else torch.where(runs, index, n_tasks * width),
                    None if all_run else (~runs).nonzero().squeeze(1),
                )
            )
        return steps


@dataclass(frozen=True)
class PairBatch:
    sequences: Sequences
    at: Tensor  # int64 [T, N]: 0 = nothing known before the target, j + 1 = behind event j of the task
    target: Tensor  # int64 [T, N], 1..n_items, -1 = an item outside the vocabulary, 0 = no pair here

    @property
    def n_tasks(self) -> int:
        return self.at.shape[0]

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(self.sequences.to(device), self.at.to(device), self.target.to(device))

    def gather(self, states: Tensor) -> Tensor:
        """The hidden states [T, N, H] of the pairs, out of [T, M + 1, H]."""
        n_tasks, width, hidden = states.shape
        first = torch.arange(n_tasks, device=states.device)[:, None] * width
        return states.reshape(-1, hidden)[self.at + first]


@dataclass(frozen=True)
class EpisodeBatch:
    """Support and query of T tasks; `user` int64 [T] is the row of each task's user in the prepared data."""

    support: PairBatch
    query: PairBatch
    user: Tensor

    @property
    def n_tasks(self) -> int:
        return self.support.n_tasks

    def to(self, device: torch.device) -> EpisodeBatch:
        return EpisodeBatch(self.support.to(device), self.query.to(device), self.user.to(device))
