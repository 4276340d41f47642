"""Supervised pretraining: the loss at every position of a session in one pass, nothing expanded.

With `dataset.history=user`, of a user's whole history, session behind session, the first event of a session included.
An epoch reads the training users' sessions once, in an order that is a pure function of (seed, epoch); validation
scores the pairs of the validation users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.data.batches import Batcher, cut_long
from metarec.data.history import Stream
from metarec.data.store import Prepared, train_sessions
from metarec.objectives.surprise import Surprise
from metarec.tasks import Tasks

Ints = NDArray[np.int64]
VALIDATION_PAIRS = 20_000


@dataclass
class Pieces:
    """The training sessions in batches of about `batch_size` targets: step -> the pieces of sessions of that step.

    A session of more than `max_len` + 1 events is several pieces (`data.batches.cut_long`); `first`, `last`, `start` are
    theirs. A piece is in the batch in which its first target falls, so an epoch has the same number of steps always.
    """

    first: Ints
    last: Ints
    start: Ints
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self._epoch, self._order, self._edges = -1, np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Targets over `batch_size`, rounded down; at least 1."""
        return max(int((self.last - self.first).sum()) // self.batch_size, 1)

    def at(self, step: int) -> Ints:
        """Numbers of the pieces of step 0, 1, ..., [pieces]; the last batch of an epoch takes what is left over."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # a cache, not a state: the order follows from (seed, epoch)
            key = np.array([self.seed, epoch], dtype=np.uint64)
            self._order = np.argsort(np.random.Philox(key=key).random_raw(len(self.first)), kind="stable")
            counts = (self.last - self.first)[self._order]
            batch = np.minimum((np.cumsum(counts) - counts) // self.batch_size, self.steps_per_epoch - 1)
            self._edges = np.searchsorted(batch, np.arange(self.steps_per_epoch + 1))
            self._epoch = epoch
        return self._order[self._edges[place] : self._edges[place + 1]]


def loss_of_step(
    tasks: Tasks,
    batcher: Batcher,
    pieces: Pieces,
    phi: Params,
    device: torch.device,
    surprise: Callable[[int], Surprise | None] = lambda step: None,
) -> Callable[[int], Tensor]:
    """step -> mean loss over all targets of the step, dropout on, items drawn anew: a function of (seed, step).

    The loss is a scalar; what is dropped and drawn does not depend on phi. `surprise`: what a step pays beside its targets.
    """

    def loss(step: int) -> Tensor:
        now = pieces.at(step)
        pairs = batcher.pieces(pieces.first[now], pieces.last[now], pieces.start[now]).to(device)
        dropping = generator(pieces.seed, "dropout", step, device)
        return tasks.loss(pairs, dropping, surprise=surprise(step), recorded=True)(phi)[0]

    return loss


def training_pieces(
    prepared: Prepared,
    max_len: int,
    batch_size: int,
    seed: int,
    stream: Stream | None = None,
    unread: Ints | None = None,
) -> Pieces:
    """The training users' sessions, but for those of the users `unread`, int64 [U].

    `batch_size` targets a step, at least `max_len` (a step must not be empty behind a long piece). Of sessions, or of whole
    histories where there is a `stream` to read them from.
    """
    left_out = np.zeros(0, dtype=np.int64) if unread is None else unread
    if stream is None:
        begin, end = train_sessions(prepared)
        offsets = np.asarray(prepared.session_offsets)[np.asarray(prepared.user_sessions)]  # [users + 1], events
        read = ~np.isin(np.searchsorted(offsets, begin, side="right") - 1, left_out)
        begin, end = begin[read], end[read]
    else:
        users = np.setdiff1d(np.arange(prepared.n_users), left_out)
        begin, end = stream.users(np.asarray(prepared.train_event_end), users)
    return Pieces(*cut_long(np.asarray(begin), np.asarray(end), max_len), batch_size, seed)


def validation_pairs(prepared: Prepared) -> Ints:
    """The pairs that pretraining is validated by, rising: all of the validation users, evenly thinned to 20,000.

    leave_one_out has no such users; there it is the validation target of every user. Numbers of pairs, int64 [pairs].
    """
    if prepared.split_by == "leave_one_out":
        pairs = prepared.user_pairs[1:][np.diff(prepared.user_pairs) >= 2] - 2
    else:
        chosen = np.flatnonzero(prepared.user_split == 1)
        ranges = [np.arange(prepared.user_pairs[u], prepared.user_pairs[u + 1]) for u in chosen]
        pairs = np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)
    known = pairs[np.asarray(prepared.item[prepared.pair_event[pairs]]) > 0]
    if len(known) > VALIDATION_PAIRS:
        known = known[np.linspace(0, len(known) - 1, VALIDATION_PAIRS).astype(np.int64)]
    return known
