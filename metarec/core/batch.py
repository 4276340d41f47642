"""Pairs of many tasks as packed sequences in which what several pairs share stands once.

Pairs of one session are nested: the prefix of the next pair is this prefix and one more event. So the batch holds
*sequences*, and a pair says behind which of their events to look. One pass over a session gives the hidden state of
every pair in it; nothing is expanded, and nothing is padded but the events to the task with the most of them. Prefixes
that were cut to their latest events start at different places of one session: they are sequences of their own, with
hidden states of their own, but they read the same events (`starts` may overlap).

Shapes: T tasks, M events a task, R sequences a task, S states of the batch (the sum of all lengths), N pairs a task, L
entries of a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Made = TypeVar("Made")
STEP_COST = 8  # what a step of a recurrence costs by itself, in sequences; bends the plan, not the result


@dataclass(frozen=True)
class Block:
    """One step of a recurrence: `tasks` tasks from number `begin` of `Plan.order` on, `rows` sequences of each."""

    begin: int
    tasks: int
    rows: int
    first: bool  # the first step of its sequences; else a leading part of the block before goes on


@dataclass(frozen=True)
class Plan:
    """A recurrence over all sequences, block after block, and what belongs to each place of each block (an entry).

    A block holds every sequence of its tasks that still runs; what has ended inside a block runs on into nowhere.
    """

    blocks: list[Block]
    order: Tensor  # int64 [T], the tasks in the order that blocks count in
    read: Tensor  # int64 [L], the event in [0, T*M) that an entry reads; any event where the sequence has ended
    task: Tensor  # int64 [L], whose sequence it is
    origin: Tensor  # int64 [L], the same sequence's entry one step earlier; L + task where there is none
    entry: Tensor  # int64 [S], where the plan makes each state

    @property
    def sizes(self) -> list[int]:
        """Entries of each block [blocks]; they add up to L."""
        return [block.tasks * block.rows for block in self.blocks]


@dataclass(frozen=True)
class Group:
    """Tasks of about the same number of states n, and where to find what belongs to each state."""

    tasks: Tensor  # int64 [G]
    entry: Tensor  # int64 [G, n], its entry in the plan; L behind a task's last state


@dataclass(frozen=True)
class Sequences:
    """items int64 [T, M] (1..n_items; 0 = a break between sessions, and behind the last); starts, lengths int64 [T, R].

    Sequence r of a task is items[starts : starts + lengths]; a row of length 0 is no sequence. States stand task behind
    task, and sequence behind sequence in the order of the rows. Sequences of a task are best given longest first
    (recurrent models then touch only what runs); any order is right.
    """

    items: Tensor
    starts: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Sequences:
        """A copy on `device`, or the same tensors where they are there already."""
        return Sequences(self.items.to(device), self.starts.to(device), self.lengths.to(device))

    @property
    def n_tasks(self) -> int:
        """T, also where a task has no sequence."""
        return self.items.shape[0]

    @cached_property
    def places(self) -> Tensor:
        """Where the states of each sequence begin, int64 [T, R]."""
        flat = self.lengths.flatten()
        return (flat.cumsum(0) - flat).view_as(self.lengths)

    @cached_property
    def row(self) -> Tensor:
        """The sequence of each state, int64 [S], in [0, T*R)."""
        lengths = self.lengths.flatten()
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

    @cached_property
    def step(self) -> Tensor:
        """The number of each state in its sequence, int64 [S], from 0: how many states of the sequence are before it."""
        return torch.arange(len(self.row), device=self.row.device) - self.places.flatten()[self.row]

    @cached_property
    def task(self) -> Tensor:
        """The task of each state, int64 [S]."""
        return self.row // self.lengths.shape[1]

    @cached_property
    def event(self) -> Tensor:
        """The event that each state is behind, int64 [S], in [0, T*M)."""
        return self.task * self.items.shape[1] + self.starts.flatten()[self.row] + self.step

    def events(self) -> Tensor:
        """Which events some sequence reads, bool [T, M]."""
        found = torch.zeros(self.items.numel(), dtype=torch.bool, device=self.items.device)
        return found.index_fill(0, self.event, True).view_as(self.items)

    @cached_property
    def _found(self) -> dict[Callable[[Sequences], Any], Any]:
        return {}

    def once(self, make: Callable[[Sequences], Made]) -> Made:
        """make(self), made at the first call and kept: what a model derives from a batch, for all layers and inner steps.

        It is kept by the function, so give one that has a name, not a lambda.
        """
        if make not in self._found:
            self._found[make] = make(self)
        made: Made = self._found[make]
        return made

    @cached_property
    def plan(self) -> Plan:
        """Made once, used by every inner step."""
        lengths, starts, places = self.lengths.cpu(), self.starts.cpu(), self.places.cpu()
        by_states = lengths.sum(1).sort(descending=True, stable=True).indices
        # tasks of many long sequences apart, where that leaves less to run into nowhere
        heavy = (0, *(2**i for i in range(7) if 2**i < self.n_tasks))
        parts = min(
            (_parts(lengths, by_states, count) for count in heavy), key=lambda found: sum(p.cost for p in found)
        )
        blocks, order, read, origin, owner = [], [], [], [], []
        entry = torch.empty(int(lengths.sum()) + 1, dtype=torch.int64)  # the last place is for what has ended
        n_entries = n_ordered = 0
        for part in parts:
            sizes = part.tasks * part.rows
            begin = sizes.cumsum(0) - sizes
            step = torch.arange(len(sizes)).repeat_interleave(sizes)
            inside = torch.arange(len(step)) - begin[step]
            task, row = part.order[inside // part.rows[step]], inside % part.rows[step]
            runs = step < lengths[task, row]
            read.append((task * self.items.shape[1] + starts[task, row] + step).where(runs, 0))
            earlier = (step - 1).clamp(min=0)
            back = begin[earlier] + inside // part.rows[step] * part.rows[earlier] + row + n_entries
            origin.append(back.where(step > 0, -1 - task))  # L is not known yet
            owner.append(task)
            entry[(places[task, row] + step).where(runs, len(entry) - 1)] = torch.arange(len(step)) + n_entries
            shape = zip(part.tasks.tolist(), part.rows.tolist(), strict=True)
            blocks += [Block(n_ordered, tasks, rows, i == 0) for i, (tasks, rows) in enumerate(shape)]
            order.append(part.order)
            n_entries, n_ordered = n_entries + len(step), n_ordered + len(part.order)
        found = torch.cat(origin)
        origins = found.where(found >= 0, n_entries - 1 - found)
        tensors = torch.cat(order), torch.cat(read), torch.cat(owner), origins, entry[:-1]
        return Plan(blocks, *(tensor.to(self.items.device) for tensor in tensors))

    @cached_property
    def groups(self) -> list[Group]:
        """The tasks by how many states they have, so that a short one is not padded to a long one."""
        lengths, places, entry = self.lengths.cpu(), self.places.cpu(), self.plan.entry.cpu()
        counts, members = lengths.sum(1), dict[int, list[int]]()
        for task, count in enumerate(counts.tolist()):
            members.setdefault((count - 1).bit_length() // 2, []).append(task)
        found = []
        for own in members.values():
            tasks = torch.tensor(own)
            at = torch.arange(int(counts[tasks].max()))
            inside = at < counts[tasks, None]
            state = (places[tasks, :1] + at).where(inside, 0)
            padded = Group(tasks, entry[state].where(inside, len(self.plan.read)))
            found.append(Group(*(tensor.to(self.items.device) for tensor in vars(padded).values())))
        return found


@dataclass(frozen=True)
class _Part:
    """Tasks that run together, longest first, and the tasks and rows of each of their steps."""

    order: Tensor
    tasks: Tensor
    rows: Tensor

    @property
    def cost(self) -> int:
        return int((self.tasks * self.rows).sum()) + STEP_COST * len(self.tasks)


def _parts(lengths: Tensor, by_states: Tensor, heavy: int) -> list[_Part]:
    """The first `heavy` of the tasks `by_states`, and the rest; one part when `heavy` is 0."""
    parts = []
    for own in (by_states[:heavy], by_states[heavy:]):
        if len(own) == 0:
            continue
        order = own[lengths[own].max(1).values.sort(descending=True, stable=True).indices]
        longest = lengths[order].max(1).values
        at = torch.arange(int(longest.max()))
        # the last row that still runs, over all tasks: a running maximum from the end of the row axis
        alive = lengths[order].max(0).values.flip(0).cummax(0).values.flip(0)
        parts.append(_Part(order, (longest[:, None] > at).sum(0), (alive[:, None] > at).sum(0)))
    return parts


@dataclass(frozen=True)
class Recall:
    """What a user is known to have had before each pair's target, entry by entry, the earliest first (`data.recall`).

    A key names a state of the pair's own task: 0 = the one before any event, j = the task's j-th state of this batch,
    W + j = its j-th of the batch `support`, where W is the most states that a task has in this batch; -1 = there is none.
    """

    item: Tensor  # int64 [T, N, C], 1..n_items, 0 = no entry
    age: Tensor  # int64 [T, N, C], 0 for the latest entry of the pair
    own: Tensor  # bool [T, N, C], whether it stands in the pair's own prefix
    key: Tensor  # int64 [T, N, C], the state just before it
    support: PairBatch | None = None  # of which keys may be, beside those of the batch itself

    def to(self, device: torch.device) -> Recall:
        """A copy on `device`, the support's batch with it."""
        support = None if self.support is None else self.support.to(device)
        return Recall(self.item.to(device), self.age.to(device), self.own.to(device), self.key.to(device), support)

    def alone(self) -> Recall:
        """The entries of the pairs' own prefixes; they are the latest ones, so ages stay what they are."""
        return replace(self, item=self.item.where(self.own, 0), key=self.key.where(self.own, -1), support=None)


@dataclass(frozen=True)
class PairBatch:
    sequences: Sequences
    at: Tensor  # int64 [T, N]: 0 = nothing known before the target, j + 1 = behind state j of the batch
    target: Tensor  # int64 [T, N], 1..n_items, -1 = an item outside the vocabulary, 0 = no pair here
    recall: Recall | None = None  # where a residual asks for it

    @property
    def n_tasks(self) -> int:
        """T, also where a task has no pair."""
        return self.at.shape[0]

    def to(self, device: torch.device) -> PairBatch:
        """A copy on `device`; sequences, places and targets go together."""
        recall = None if self.recall is None else self.recall.to(device)
        return PairBatch(self.sequences.to(device), self.at.to(device), self.target.to(device), recall)

    def without_support(self) -> PairBatch:
        """The same pairs, to whoever knows nothing of the user but their own prefixes."""
        return self if self.recall is None else replace(self, recall=self.recall.alone())

    @property
    def inputs(self) -> Sequences:
        """What a model encodes."""
        return self.sequences

    def gather(self, states: Tensor) -> Tensor:
        """The hidden states [T, N, H] of the pairs, out of [T + S, H]: those before any event, then all states."""
        task = torch.arange(self.n_tasks, device=self.at.device)[:, None]
        return states[torch.where(self.at > 0, self.at + (self.n_tasks - 1), task)]


@dataclass(frozen=True)
class EpisodeBatch:
    """Support and query of T tasks; `user` int64 [T] is the row of each task's user in the prepared data.

    `reliability` float [T, K]: how much each support pair can be relied on, > 0, where that is asked for. `support_pairs`
    [T, K], `query_pairs` [T, Q]: their numbers in the log, for methods that read it themselves; images have none.
    """

    support: PairBatch | ImageBatch
    query: PairBatch | ImageBatch
    user: Tensor
    reliability: Tensor | None = None
    support_pairs: NDArray[np.int64] | None = None
    query_pairs: NDArray[np.int64] | None = None

    @property
    def n_tasks(self) -> int:
        """T; support and query have the same."""
        return self.support.n_tasks

    def cast(self, dtype: torch.dtype) -> EpisodeBatch:
        """Images in another precision."""
        parts = [
            ImageBatch(part.images.to(dtype), part.target) if isinstance(part, ImageBatch) else part
            for part in (self.support, self.query)
        ]
        return replace(self, support=parts[0], query=parts[1])

    def to(self, device: torch.device) -> EpisodeBatch:
        """A copy on `device`; the numbers of pairs stay where they are, as numpy arrays."""
        scores = None if self.reliability is None else self.reliability.to(device)
        return replace(
            self,
            support=self.support.to(device),
            query=self.query.to(device),
            user=self.user.to(device),
            reliability=scores,
        )


@dataclass(frozen=True)
class ImageBatch:
    """Images in place of prefixes, the classes of an episode in place of items."""

    images: Tensor  # [T, N, C, H, W]
    target: Tensor  # int64 [T, N], 1..n_way

    @property
    def n_tasks(self) -> int:
        """T, the episodes of the batch."""
        return self.images.shape[0]

    @property
    def inputs(self) -> Tensor:
        """What a model encodes."""
        return self.images

    def gather(self, states: Tensor) -> Tensor:
        """Every image is a pair of its own."""
        return states

    def without_support(self) -> ImageBatch:
        """Itself: an image knows of no other."""
        return self

    def to(self, device: torch.device) -> ImageBatch:
        """A copy on `device`; images and targets go together."""
        return ImageBatch(self.images.to(device), self.target.to(device))
