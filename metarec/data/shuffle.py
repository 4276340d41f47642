"""The same sessions with their items in another order: what is left of a figure when the order says nothing.

    key(u, s, p) = p-th output of splitmix64 started at mix(mix(seed, hash of u's id), s)
    the items of a session stand in the order of their keys; users, times, lengths and splits stay as they are

A control: whoever is better on the real order than on this one has read something in the order. A session's permutation
is a function of the seed, the text of the user's id, the number s of the session in its user (of all his sessions, short
ones included, from 1) and its length; of nothing else, so neither other users nor the order of rows move it. Times stay at
their place, so only items change hands.

No item crosses from training to what is judged. Under user_time, user_disjoint and column a stored session lies on one side
whole. leave_one_out cuts inside a user: his training events are permuted among themselves, and both held out targets stay
where they are.

The idea: Klenitskiy et al. 2024, arXiv:2408.12008; they shuffle whole histories. splitmix64: Steele, Lea & Flood 2014,
OOPSLA, Fig. 17; the user's hash is BLAKE2b of 8 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarec.data import store
from metarec.data.store import ARRAYS, REAL_ITEM, ArrayWriter

CHUNK_EVENTS = 1_000_000  # worked on at once: about 60 MB; a session longer than that is worked on alone
GAMMA = np.uint64(0x9E3779B97F4A7C15)  # between the states of splitmix64

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Shuffled:
    """What a shuffle did: events whose item comes from another place, and known items that repeat the one before them."""

    moved: int
    repeats: int


def output(state: Keys) -> Keys:
    """The number that splitmix64 puts out at a state, uint64 of any shape; sums and products wrap."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def user_keys(ids: Iterable[str], seed: int) -> Keys:
    """A number for every user, of the text of his id and the seed alone, uint64 [U]."""
    hashes = (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in ids)
    return _mixed(np.array([seed], dtype=np.uint64), np.fromiter(hashes, dtype=np.uint64))


def event_keys(session_key: Keys, length: NDArray[np.int64]) -> Keys:
    """Keys of the events of sessions [S] of so many events, session behind session, uint64 [sum of length]."""
    first = np.repeat(np.cumsum(length) - length, length)
    position = (np.arange(len(first)) - first).astype(np.uint64)
    return output(np.repeat(session_key, length) + (position + np.uint64(1)) * GAMMA)


def shuffle_items(root: Path, numbers: Path, ids: Iterable[str], seed: int, split_by: str) -> Shuffled:
    """Rewrite item.npy of the directory in the new order; the real one goes to real_item.npy, for the guard.

    `numbers`: int32 [S], the number of each stored session in its user; `ids`: of the users kept, in order.
    """
    offsets = np.load(root / "session_offsets.npy", mmap_mode="r")
    user_sessions = np.load(root / "user_sessions.npy")
    number = np.load(numbers, mmap_mode="r")
    users = user_keys(ids, seed)
    cuts = _cuts(root, offsets, user_sessions, split_by)
    (root / "item.npy").rename(root / REAL_ITEM)
    item = np.load(root / REAL_ITEM, mmap_mode="r")
    writer = ArrayWriter(root / "item.npy", ARRAYS["item"])
    moved = repeats = 0
    for first, last in session_runs(offsets):
        edge = np.array(offsets[first : last + 1])
        user = np.searchsorted(user_sessions, np.arange(first, last), side="right") - 1
        key = event_keys(_mixed(users[user], np.array(number[first:last], dtype=np.uint64)), np.diff(edge))
        opens = np.zeros(len(key), dtype=np.int32)  # where a session begins, or a side of the split inside of one
        opens[edge[:-1] - edge[0]] = 1
        opens[cuts[np.searchsorted(cuts, edge[0]) : np.searchsorted(cuts, edge[-1])] - edge[0]] = 1
        order = np.lexsort((key, np.cumsum(opens)))
        new = np.array(item[edge[0] : edge[-1]])[order]
        writer.append(new)
        moved += int((order != np.arange(len(order))).sum())
        again = (new[1:] == new[:-1]) & (new[1:] > 0)
        again[edge[1:-1] - edge[0] - 1] = False  # across sessions
        repeats += int(again.sum())
        store.give_back(item)
    writer.close()
    return Shuffled(moved, repeats)


def session_runs(offsets: NDArray[np.int64], size: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of sessions, of up to `size` events (CHUNK_EVENTS) or one session; `offsets` int64 [S+1]."""
    size = size or CHUNK_EVENTS
    first, n_sessions = 0, len(offsets) - 1
    while first < n_sessions:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), n_sessions)
        yield first, last
        first = last


def _mixed(state: Keys, value: Keys) -> Keys:
    """A state of splitmix64 that depends on both, uint64 [N]: one or both of [N], or of [1]."""
    return output(output(state + GAMMA) ^ value)


def _cuts(root: Path, offsets: NDArray[np.int64], user_sessions: NDArray[np.int64], split_by: str) -> NDArray[np.int64]:
    """Events at which another side of the split begins inside a user, rising: none but under leave_one_out."""
    if split_by != "leave_one_out":
        return np.zeros(0, dtype=np.int64)
    end = np.asarray(offsets[user_sessions[1:]])
    validation = np.load(root / "train_event_end.npy")
    held = validation < end  # a user of a single pair trains on all he has
    return np.sort(np.concatenate([validation[held], end[held] - 1]))
