"""Supervised pretraining: the loss at every position of a session in one pass, nothing expanded.

An epoch reads the training users' sessions once, in an order that is a pure function of (seed, epoch); validation scores
the pairs of the validation users.
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
from metarec.data.batches import Batcher
from metarec.data.store import Prepared, train_sessions
from metarec.tasks import Tasks

Ints = NDArray[np.int64]
VALIDATION_PAIRS = 20_000


@dataclass
class Sessions:
    """The training sessions in batches: step -> the sessions of that step."""

    begin: Ints
    end: Ints
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.begin) // self.batch_size)

    def at(self, step: int) -> Ints:
        """Numbers of the sessions of step 0, 1, ...; the last batch of an epoch may be smaller."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # a cache, not a state: the order follows from (seed, epoch)
            key = np.array([self.seed, epoch], dtype=np.uint64)
            bits = np.random.Philox(key=key).random_raw(len(self.begin))
            self._epoch, self._order = epoch, np.argsort(bits, kind="stable")
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


def loss_of_step(
    tasks: Tasks, batcher: Batcher, sessions: Sessions, phi: Params, device: torch.device
) -> Callable[[int], Tensor]:
    """step -> mean cross-entropy over all positions of the step's sessions, dropout on."""

    def loss(step: int) -> Tensor:
        chosen = sessions.at(step)
        pairs = batcher.sessions(sessions.begin[chosen], sessions.end[chosen]).to(device)
        return tasks.loss(pairs, generator(sessions.seed, "dropout", step, device))(phi)[0]

    return loss


def training_sessions(prepared: Prepared, batch_size: int, seed: int) -> Sessions:
    begin, end = train_sessions(prepared)
    return Sessions(np.asarray(begin), np.asarray(end), batch_size, seed)


def validation_pairs(prepared: Prepared) -> Ints:
    """The pairs that pretraining is validated by, rising: all of the validation users, evenly thinned to 20,000.

    leave_one_out has no such users; there it is the validation target of every user.
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
