"""What the training users did, as plain arrays: all that a baseline may learn from.

Only events inside a training session count: the arrays may hold more, as a whole log with its test users does.

Shapes: E events, S training sessions, P training pairs, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarec.ragged import Floats, Ints, Ragged, ranges, running

UNKNOWN = -1  # an item outside the vocabulary
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingLog:
    item: NDArray[np.int32] | Ints  # [E], 1..n_items or UNKNOWN; sessions contiguous, in time order
    time: Ints  # [E], microseconds; without a clock, the position in the user's order
    has_clock: bool
    begin: Ints  # [S], first event of each training session
    end: Ints  # [S], one behind its last event
    pair_begin: Ints  # [P], training pairs in stored order: the prefix is item[pair_begin:pair_event] ...
    pair_event: Ints  # [P], ... and the target item[pair_event]
    n_items: int
    user: Ints  # [S], a number of each session's user, from 0 on
    _kept: dict[str, tuple[Hashable, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], T], of: Hashable = None) -> T:
        """What `make` returns, made for this log once under `key`, a name of the caller's file: for all settings tried.

        Where it depends on options, `of` holds them. Only the latest value of a key is kept, and let go before the next
        one is made, since there may be memory for one only.
        """
        if key not in self._kept or self._kept[key][0] != of:
            self._kept.pop(key, None)
            self._kept[key] = of, make()
        found: T = self._kept[key][1]
        return found

    @cached_property
    def _event(self) -> Ragged:
        """Numbers of the events of each session whose item is known."""
        counts = self.end - self.begin
        event = ranges(self.begin, counts)
        return Ragged(event, running(counts)).where(self.item[event] > 0)

    @cached_property
    def sessions(self) -> Ragged:
        """The known items of each training session, in time order."""
        return Ragged(self.item[self._event.values].astype(np.int64), self._event.offsets)

    @cached_property
    def event_time(self) -> Ints:
        """The time of every value of `sessions`."""
        return np.asarray(self.time[self._event.values], dtype=np.int64)

    @cached_property
    def popularity(self) -> Ints:
        """[V]: training events of each item; entry v is item v + 1."""
        return np.bincount(self.sessions.values - 1, minlength=self.n_items)

    @cached_property
    def below_one(self) -> Floats:
        """[V]: popularity as fractions in [0, 1), so that it decides between equal counts and nothing else."""
        fractions: Floats = self.popularity / (self.popularity.max() + 1.0)
        return fractions
