"""Episodes as ranges of pairs, and the sampler that needs no memory.

An episode is K support pairs and then Q query pairs of one user, consecutive among the user's pairs. A training user
has a window at every ``stride`` pairs; a validation or test user has one episode, made of the last pairs. Nothing is
copied: window j of row i is the pairs first_pair[i] + j * stride + (0 .. K + Q - 1).

The sampler is a pure function of (seed, step): the raw stream of Philox, which numpy keeps frozen, keyed by the two
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A resumed run needs no saved state of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metarec.errors import ConfigError


@dataclass(frozen=True)
class EpisodeRanges:
    """One row per user with at least one episode.

    user int64 [N]: row of the user; first_pair int64 [N]; n_windows int64 [N] >= 1; sha256: of these arrays and the
    shape.
    """

    user: np.ndarray
    first_pair: np.ndarray
    n_windows: np.ndarray
    stride: int
    n_support: int
    n_query: int

    @cached_property
    def sha256(self) -> str:
        """Identity of the episodes: equal for equal arrays and shape, whatever the machine."""
        digest = hashlib.sha256(f"{self.stride} {self.n_support} {self.n_query} {len(self.user)}".encode())
        for array in (self.user, self.first_pair, self.n_windows):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def windows_up_to(self) -> np.ndarray:
        """Windows of the rows 0..i together, int64 [N]."""
        return np.cumsum(self.n_windows, dtype=np.int64)

    @property
    def n_episodes(self) -> int:
        """Windows of all rows together, 0 where no user has one."""
        return int(self.windows_up_to[-1]) if len(self.user) else 0


def sliding_windows(user: np.ndarray, begin: np.ndarray, end: np.ndarray, *, n_support: int, n_query: int,
                    stride: int) -> EpisodeRanges:  # fmt: skip
    """All windows of the pairs [begin, end) of each ``user`` (int64 [U] each), for the users that have one."""
    size = n_support + n_query
    enough = end - begin >= size
    n_windows = (end[enough] - begin[enough] - size) // stride + 1
    return EpisodeRanges(_own(user[enough]), _own(begin[enough]), _own(n_windows), stride, n_support, n_query)


def last_pairs(user: np.ndarray, begin: np.ndarray, end: np.ndarray, *, n_support: int, n_query: int) -> EpisodeRanges:
    """One episode from the last K + Q of the pairs [begin, end) of each ``user`` that has so many (int64 [U] each)."""
    size = n_support + n_query
    enough = end - begin >= size
    first = end[enough] - size
    return EpisodeRanges(_own(user[enough]), _own(first), _own(np.ones_like(first)), 1, n_support, n_query)


def held_out(ranges: EpisodeRanges, share: float, seed: int) -> np.ndarray:
    """int64 [R], rising: rows of `ranges` that are kept from pretraining, a share of them, at least one, drawn by `seed`.

    ConfigError where nobody would be left to pretrain on.
    """
    n_rows = len(ranges.user)
    count = max(round(share * n_rows), 1)
    if count >= n_rows:
        raise ConfigError("pretrain.hold_out", share, f"is all of the {n_rows} training users with an episode",
                          "give a smaller share")  # fmt: skip
    order = np.random.Philox(key=np.array([seed % 2**64, 0x686F6C64], dtype=np.uint64)).random_raw(n_rows)
    return np.sort(np.argsort(order, kind="stable")[:count]).astype(np.int64)


def rows_of(ranges: EpisodeRanges, rows: np.ndarray) -> EpisodeRanges:
    """Some of the users of `ranges`, by their rows int64 [R]."""
    user, first, windows = (_own(part[rows]) for part in (ranges.user, ranges.first_pair, ranges.n_windows))
    return EpisodeRanges(user, first, windows, ranges.stride, ranges.n_support, ranges.n_query)


def _own(array: np.ndarray) -> np.ndarray:
    array = np.array(array, dtype=np.int64)
    array.flags.writeable = False
    return array


def sample(
    ranges: EpisodeRanges, *, seed: int, step: int, n_tasks: int, sampler: str = "user"
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the episodes of one outer step: (first_pair int64 [n_tasks], row of ``ranges`` int64 [n_tasks]).

    ``user``: users uniformly, without replacement unless n_tasks exceeds their number, then one of the user's windows
    uniformly. ``window``: all windows uniformly, with replacement, so that a user counts by the number of windows.
    Depends on (seed, step) and ``ranges`` only. ConfigError for another sampler, no user, or n_tasks < 1.
    """
    n_rows = len(ranges.user)
    if n_tasks < 1:
        raise ConfigError("train.meta_batch_size", n_tasks, "an outer step needs at least one task", "give 1 or more")
    if n_rows == 0:
        raise ConfigError("dataset.episodes", f"{ranges.n_support}+{ranges.n_query}", "no user has an episode to draw",
                          "lower dataset.episodes.n_support or n_query")  # fmt: skip
    if sampler not in ("user", "window"):
        raise ConfigError("train.sampler", sampler, "no such sampler", "choose user or window")
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(2 * n_tasks)
    if sampler == "window":
        drawn = _below(raw[:n_tasks], np.full(n_tasks, ranges.n_episodes))
        row = np.searchsorted(ranges.windows_up_to, drawn, side="right").astype(np.int64)
        window = drawn - (ranges.windows_up_to[row] - ranges.n_windows[row])
    else:
        row = _distinct(raw[:n_tasks], n_rows) if n_tasks <= n_rows else _below(raw[:n_tasks], np.full(n_tasks, n_rows))
        window = _below(raw[n_tasks:], ranges.n_windows[row])
    return ranges.first_pair[row] + window * ranges.stride, row


def _below(raw: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Whole numbers in [0, limit) from 64 random bits each; the bias of the remainder is below limit / 2^64."""
    return (raw % limit.astype(np.uint64)).astype(np.int64)


def _distinct(raw: np.ndarray, n: int) -> np.ndarray:
    """len(raw) different whole numbers below n: the first swaps of a Fisher-Yates shuffle, in O(len(raw))."""
    moved: dict[int, int] = {}
    drawn = np.empty(len(raw), dtype=np.int64)
    for place, bits in enumerate(raw.tolist()):
        other = place + bits % (n - place)
        drawn[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    return drawn
