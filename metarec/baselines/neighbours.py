"""Training sessions as sets of items, found by an item they share with a history.

Sessions are numbered from the newest on, by the time of their last event; in a log without a clock, which has no common
time, from the last stored one. The lists of the inverted index run the same way, so the newest sessions that share anything
are found in the heads of a few lists: one sort of these, and no session is looked at that does not count.

Shapes: S sessions, V items, n sessions found, m common items of all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarec.baselines.baseline import levels
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats, Ints, Ragged, distinct, running


@dataclass(frozen=True)
class Found:
    """Sessions with something in common with a list of items, newest first."""

    session: Ints  # [n]
    start: Ints  # [n], where its common items begin
    hit: Ints  # [m], a common item as its place in the list, rising within a session

    @property
    def common(self) -> Ints:
        """[n]: how many items each has in common."""
        return np.diff(self.start, append=len(self.hit))


@dataclass(frozen=True)
class SessionIndex:
    items: Ragged  # S rows: the distinct items of a session
    sessions: Ragged  # V + 1 rows, by item: its sessions, newest first

    @staticmethod
    def of(log: TrainingLog) -> SessionIndex:
        """Made once for a log, used by every setting that is tried."""
        return log.once("session_index", lambda: SessionIndex._of(log))

    @staticmethod
    def _of(log: TrainingLog) -> SessionIndex:
        stored, n = log.sessions, log.n_items + 1
        filled = np.flatnonzero(stored.sizes)  # a session may have no known item
        number = np.arange(len(filled))
        last = log.event_time[stored.offsets[filled + 1] - 1] if log.has_clock else number
        newest = np.empty(len(stored), np.int64)
        newest[filled[np.lexsort((number, last))[::-1]]] = number
        session, item = np.divmod(distinct(newest[stored.owners()] * n + stored.values), n)
        items = Ragged(item, running(np.bincount(session, minlength=len(filled))))
        return SessionIndex(items, Ragged.by_row(item, session, n))

    def find(self, items: Ints, sample_size: int) -> Found:
        """Among the sessions with any of these distinct items: the `sample_size` newest."""
        bits = len(items).bit_length()
        heads = [(self.sessions[item][:sample_size] << bits) | place for place, item in enumerate(items)]
        both = np.sort(np.concatenate(heads))
        session = both >> bits
        start = np.flatnonzero(np.diff(session, prepend=-1))
        if len(start) > sample_size:
            both = both[: start[sample_size]]
            start = start[:sample_size]
        return Found(session[start], start, both & ((1 << bits) - 1))

    def votes(
        self, sessions: Ints, weight: Floats, of_item: Floats | None = None, without: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Every neighbour votes for all of its items with its weight (times what the item counts): items, levels.

        The items `without` get no vote.
        """
        items = self.items.gather(sessions)
        total: Floats = np.bincount(items, weights=np.repeat(weight, self.items.sizes[sessions])).astype(np.float64)
        if of_item is not None:
            total *= of_item[: len(total)]
        if without is not None:
            total[without[without < len(total)]] = 0.0
        voted = np.flatnonzero(total > 0)
        return voted, levels(total[voted])


def most_similar(similarity: Floats, k: int) -> Ints:
    """Places of the `k` largest of [n], of equal ones the first."""
    if len(similarity) <= k:
        return np.arange(len(similarity))
    rounded = np.round(similarity, 10)  # sums of the same terms in another order are equal
    least = np.partition(rounded, len(rounded) - k)[len(rounded) - k]
    above = rounded > least
    above[np.flatnonzero(rounded == least)[: k - int(above.sum())]] = True
    return np.flatnonzero(above)
