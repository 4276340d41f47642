"""From ordered rows to the arrays of `metarec.data.store`: session offsets, pairs, vocabulary, item indices.

Rows come in any number of pieces, users together and each user in the total order; only figures per user stay in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from metarec.data import splits
from metarec.data.funnel import training_mask
from metarec.data.store import ARRAYS, ArrayWriter, blocks


class EventWriter:
    """Writes item codes, times and session offsets; counts the sessions of every user code.

    `numbers`: where the number of every session in its user goes, for those who ask (int32 [S]).
    """

    def __init__(self, root: Path, codes: Path, n_user_codes: int, numbers: Path | None = None) -> None:
        self.root, self.codes = root, codes
        self.sessions = np.zeros(n_user_codes, dtype=np.int64)
        self._code = ArrayWriter(codes, "<i4")
        self._time = ArrayWriter(root / "time.npy", ARRAYS["time"])
        self._offset = ArrayWriter(root / "session_offsets.npy", ARRAYS["session_offsets"])
        self._number = None if numbers is None else ArrayWriter(numbers, "<i4")
        self._before: tuple[int, int] | None = None  # user and session of the last row so far

    def append(self, rows: pa.RecordBatch) -> None:
        """Rows (u, s, i, t) that follow those before them."""
        if not rows.num_rows:
            return
        u, s, i, t = (rows.column(name).to_numpy() for name in ("u", "s", "i", "t"))
        opens = np.empty(len(u), dtype=bool)
        opens[0] = self._before != (u[0], s[0])
        opens[1:] = (u[1:] != u[:-1]) | (s[1:] != s[:-1])
        self._offset.append(np.flatnonzero(opens) + self._code.length)
        if self._number is not None:
            self._number.append(s[opens])
        first = int(u[0])
        added = np.bincount(u[opens] - first)
        self.sessions[first : first + len(added)] += added
        self._code.append(i)
        self._time.append(t)
        self._before = (int(u[-1]), int(s[-1]))

    def close(self) -> None:
        """Write the end of the last session and close the files: only then are their lengths right."""
        self._offset.append(np.array([self._code.length]))
        for writer in (self._code, self._time, self._offset, self._number):
            if writer is not None:
                writer.close()


def write_users_and_pairs(root: Path, sessions_per_user: np.ndarray, user_split: np.ndarray, split_by: str) -> None:
    """Write user_sessions, user_pairs, user_split, pair_event, pair_begin, train_event_end beside the events of
    ``root``.

    sessions_per_user int64 [U] and user_split int8 [U]: of the users kept, in the order of sorted ids.
    """
    offsets = np.load(root / "session_offsets.npy", mmap_mode="r")
    user_sessions = _running(sessions_per_user)
    user_events = np.array(offsets[user_sessions])
    user_pairs = _running(np.diff(user_events) - sessions_per_user)  # every event but the first of its session
    event_writer = ArrayWriter(root / "pair_event.npy", ARRAYS["pair_event"])
    begin_writer = ArrayWriter(root / "pair_begin.npy", ARRAYS["pair_begin"])
    for part in session_blocks(offsets):
        events = np.arange(part[0], part[-1])
        begin = np.repeat(part[:-1], np.diff(part))
        later = events != begin
        event_writer.append(events[later])
        begin_writer.append(begin[later])
    event_writer.close()
    begin_writer.close()
    left = np.where(np.diff(user_events) > 0, user_split, -1).astype(np.int8)
    pair_event = np.load(root / "pair_event.npy", mmap_mode="r")
    end = splits.train_event_end(split_by, left, user_events, user_pairs, pair_event)
    for name, values in (
        ("user_sessions", user_sessions),
        ("user_pairs", user_pairs),
        ("user_split", left),
        ("train_event_end", end),
    ):
        writer = ArrayWriter(root / f"{name}.npy", ARRAYS[name])
        writer.append(values)
        writer.close()


def session_blocks(offsets: np.ndarray, size: int = 500_000) -> Iterator[np.ndarray]:
    """The offsets of up to ``size`` sessions and the end of the last, block by block: [at most size + 1]."""
    for first in range(0, len(offsets) - 1, size):
        yield np.array(offsets[first : first + size + 1])


def index_items(root: Path, codes: Path, n_codes: int, whole: bool = False) -> tuple[np.ndarray, int]:
    """Write item.npy from the item codes; returns the codes in the vocabulary, in order (entry i has index i + 1), and how
    many of them training events hold.

    The vocabulary is the items of the training events, by rising code; every other item becomes -1, or with `whole` stands
    behind them, in the order in which the stored log first has them. The codes are int64 [V].
    """
    code = np.load(codes, mmap_mode="r")
    user_events = np.load(root / "session_offsets.npy", mmap_mode="r")[np.load(root / "user_sessions.npy")]
    train_end = np.load(root / "train_event_end.npy")
    seen = np.zeros(n_codes, dtype=bool)
    for first, part in blocks(code):
        seen[part[training_mask(first, first + len(part), user_events, train_end)]] = True
    index = np.where(seen, np.cumsum(seen), -1).astype(np.int32)
    vocabulary = np.flatnonzero(seen)
    n_trained = len(vocabulary)
    if whole:
        first_place = np.full(n_codes, len(code), dtype=np.int64)
        for first, part in blocks(code):
            np.minimum.at(first_place, part, first + np.arange(len(part)))
        others = np.flatnonzero(~seen & (first_place < len(code)))
        others = others[np.argsort(first_place[others], kind="stable")]
        index[others] = n_trained + 1 + np.arange(len(others))
        vocabulary = np.concatenate([vocabulary, others])
    writer = ArrayWriter(root / "item.npy", ARRAYS["item"])
    for _, part in blocks(code):
        writer.append(index[part])
    writer.close()
    return vocabulary, n_trained


def _running(counts: np.ndarray) -> np.ndarray:
    """Offsets of consecutive ranges of ``counts`` entries, int64 [len + 1]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
