"""dataset=episode_tables: the published tables turned back into events, sessions, pairs and episode ranges.

A session's events are the prefix of its longest pair and that pair's label; every other pair of the session must be a
start of it. Pairs of a user are ordered by session (time of its first label, then smallest pair_id) and prefix
length. Prepared data holds episodes as rules, not as lists (sliding windows of training users; the last K+Q pairs of
the others), so tables whose episodes follow other rules are refused with the first episode that does.

What the tables do not hold: the time of a session's first event (taken to be that of its first label) and parts of a
second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from metarec.data.episodes import EpisodeRanges, sliding_windows
from metarec.data.source import locate
from metarec.data.spec import DatasetSpec
from metarec.data.table_files import SPLITS, Pairs, prefix_batches, read_episodes, read_numbers, read_pairs, table_paths
from metarec.data.timestamps import ORDER_END, UNITS
from metarec.errors import DataError


@dataclass(frozen=True)
class EpisodeTables:
    """What the store needs; arrays are named and shaped as in `metarec.data.store.ARRAYS`. ``notes`` are lines for
    the reader."""

    arrays: dict[str, np.ndarray]
    user_ids: list[str]
    item_ids: list[str]
    has_clock: bool
    n_support: int
    n_query: dict[str, int]
    stride: int
    notes: list[str]


def read_episode_tables(spec: DatasetSpec, data_dir: Path | None) -> EpisodeTables:
    """Read the directory ``spec.path``; K and Q of ``spec.episodes`` choose the episode files.

    Raises DataError naming the file with pair_id or episode_id: a prefix that is not the start of its session, a user
    in two splits, support not strictly before query, a pair that is nowhere, an item number out of range, other kinds
    of episodes.
    """
    directory = locate(spec, data_dir)
    n_support, n_query = spec.episodes.n_support, spec.episodes.n_query
    paths = table_paths(directory, n_support, n_query)
    pairs = read_pairs(paths)
    if not len(pairs.pair_id):
        raise DataError(directory, "0 pairs", "the pair tables are empty", "write them again")
    item_ids, first, notes = _items(directory, pairs, paths)
    has_clock = _clock(paths, pairs)
    rows = _Rows(pairs, paths)
    item = _events(rows, paths, first, len(item_ids))
    notes.append("label_ts_epoch: " + ("seconds since 1970 UTC" if has_clock else "positions, no clock"))
    keep, stride = np.ones(len(rows.order), bool), 1
    for code, split in enumerate(SPLITS):
        path = paths[f"episodes_{split}"]
        windows = _windows(path, rows, code, n_support, n_query)
        if split == "train":
            stride = _stride(path, rows, windows, n_support, n_query)
        else:
            cut = _last_windows(path, rows, code, windows, n_support + n_query)
            if n_cut := int((~cut).sum()):
                notes.append(f"{path.name}: {n_cut} pairs after the episodes of their users are left out")
            keep &= cut
    arrays = _arrays(rows, item, keep, has_clock)
    unseen = _never_trained(arrays, len(item_ids))
    if unseen:
        notes.append(
            f"{unseen} of {len(item_ids)} items are in no training event; they stay in the vocabulary as numbered"
        )
    return EpisodeTables(
        arrays, rows.user_ids, item_ids, has_clock, n_support, dict.fromkeys(SPLITS, n_query), stride, notes
    )


class _Rows:
    """The pairs in the order of the store: users by sorted id, then sessions, then prefix length."""

    def __init__(self, pairs: Pairs, paths: dict[str, Path]) -> None:
        self.pairs, self.paths = pairs, paths
        code, names = pd.factorize(pairs.user)
        self.user_ids: list[str] = sorted(names.tolist(), key=_id_key(names.tolist()))
        rank = np.empty(len(names), np.int64)
        rank[pd.Index(names).get_indexer(self.user_ids)] = np.arange(len(names))
        user = rank[code]
        self.user_split = self._one_split(user)
        session_code, _ = pd.factorize(pairs.session)
        _, session = np.unique(user * (int(session_code.max()) + 1) + session_code, return_inverse=True)
        n_sessions = int(session.max()) + 1
        start = _least(session, pairs.ts, n_sessions)
        lowest = _least(session, pairs.pair_id, n_sessions)
        self.order = np.lexsort((pairs.pair_id, pairs.length, session, lowest[session], start[session], user))
        self.user, session = user[self.order], session[self.order]
        opens = np.r_[True, session[1:] != session[:-1]]
        self.session = np.cumsum(opens) - 1  # numbered in the order of the store
        self.length, self.ts = pairs.length[self.order], pairs.ts[self.order]
        self._monotone(opens)
        last = np.r_[np.flatnonzero(opens)[1:], len(opens)] - 1
        self.longest = self.order[last]  # row of each session's longest pair
        self.offsets = np.r_[0, np.cumsum(self.length[last] + 1)]
        self.begin = self.offsets[self.session]
        self.session_user = self.user[last]
        self.bounds = np.searchsorted(self.user, np.arange(len(names) + 1))

    def place(self, at: int) -> str:
        """File and pair of the pair number ``at`` of this order."""
        row = self.order[at]
        return f"{self.paths['pairs_' + SPLITS[self.pairs.split[row]]]}: pair_id {self.pairs.pair_id[row]}"

    def _one_split(self, user: np.ndarray) -> np.ndarray:
        low, high = np.full(len(self.user_ids), 9), np.full(len(self.user_ids), -1)
        np.minimum.at(low, user, self.pairs.split)
        np.maximum.at(high, user, self.pairs.split)
        both = np.flatnonzero(low != high)
        if len(both):
            one, two = SPLITS[low[both[0]]], SPLITS[high[both[0]]]
            raise DataError(
                self.paths[f"pairs_{two}"],
                f"user {self.user_ids[both[0]]}",
                f"is in {one} too ({len(both)} such users); episode tables need user-disjoint splits",
                "for leave-one-out prepare the log itself",
            )
        return low.astype(np.int8)

    def _monotone(self, opens: np.ndarray) -> None:
        bad = np.flatnonzero(self.length < 1)
        if len(bad):
            raise DataError(
                self.place(bad[0]),
                "empty prefix",
                "a pair needs at least one event before its label",
                "leave the pair out",
            )
        bad = 1 + np.flatnonzero(~opens[1:] & (self.length[1:] == self.length[:-1]))
        if len(bad):
            raise DataError(
                self.place(bad[0]),
                f"prefix of {self.length[bad[0]]}",
                "its session has another pair of that prefix length",
                "a session has one label for every prefix; check session_id",
            )
        bad = 1 + np.flatnonzero((self.user[1:] == self.user[:-1]) & (self.ts[1:] < self.ts[:-1]))
        if len(bad):
            raise DataError(
                self.place(bad[0]),
                self.ts[bad[0]],
                "the label is earlier than that of the pair before it (sessions of one "
                "user overlap, or times run backwards)",
                "check label_ts_epoch and session_id",
            )


def _id_key(names: list[str]) -> type[int] | type[str]:
    """Numbers sort as numbers if every id is a canonical whole number, else as text (the rule of the whole product)."""
    plain = all(n.removeprefix("-").isascii() and n.removeprefix("-").isdigit() and str(int(n)) == n for n in names)
    return int if plain else str


def _least(group: np.ndarray, value: np.ndarray, n_groups: int) -> np.ndarray:
    least = np.full(n_groups, np.iinfo(np.int64).max)
    np.minimum.at(least, group, value)
    return least


def _items(directory: Path, pairs: Pairs, paths: dict[str, Path]) -> tuple[list[str], int, list[str]]:
    """(item ids by number, first number, notes)."""
    found = read_numbers(directory)
    if found is not None:
        return *found, [f"course2id.json: items are numbered from {found[1]}"]
    low, high = np.iinfo(np.int64).max, 0
    for numbers in (pairs.label, *(flat for split in SPLITS for _, flat in prefix_batches(paths[f"pairs_{split}"]))):
        known = numbers[numbers != -1]
        low, high = min(low, int(known.min(initial=low))), max(high, int(known.max(initial=high)))
    first = 1 if low >= 1 else 0
    note = f"no course2id.json: the smallest item number is {low}, so items are taken to be numbered from {first}"
    return [str(number) for number in range(first, high + 1)], first, [note]


def _clock(paths: dict[str, Path], pairs: Pairs) -> bool:
    low, high = int(pairs.ts.min()), int(pairs.ts.max())
    if low < 0 or high >= UNITS["s"][1] or low < ORDER_END <= high:
        at = int(pairs.ts.argmax() if high >= ORDER_END and low >= 0 else pairs.ts.argmin())
        raise DataError(
            f"{paths['pairs_' + SPLITS[pairs.split[at]]]}: pair_id {pairs.pair_id[at]}",
            pairs.ts[at],
            "label_ts_epoch must be seconds since 1970 UTC in every row, or a position in every row",
            "convert the column to whole seconds",
        )
    return high >= ORDER_END


def _events(rows: _Rows, paths: dict[str, Path], first: int, n_items: int) -> np.ndarray:
    """Item index of every event, int32 [E]; checks that every prefix and label lies on its session's events."""
    pairs, item = rows.pairs, np.full(rows.offsets[-1], -2, np.int32)
    begin = np.empty(len(rows.order), np.int64)
    begin[rows.order] = rows.begin  # by row of the files
    target = begin + pairs.length
    longest = np.zeros(len(begin), bool)
    longest[rows.longest] = True
    for fill in (True, False):
        row = 0
        for split in SPLITS:
            path = paths[f"pairs_{split}"]
            for length, flat in prefix_batches(path):
                mine = slice(row, row + len(length))
                row += len(length)
                before = np.cumsum(length) - length
                at = np.repeat(begin[mine] - before, length) + np.arange(len(flat))
                index = _index(path, flat, length, pairs.pair_id[mine], first, n_items)
                label = _index(
                    path, pairs.label[mine], np.ones(len(length), np.int64), pairs.pair_id[mine], first, n_items
                )
                if fill:
                    chosen = np.repeat(longest[mine], length)
                    item[at[chosen]] = index[chosen]
                    item[target[mine][longest[mine]]] = label[longest[mine]]
                    continue
                wrong = np.flatnonzero(item[at] != index)
                owner = int(np.searchsorted(before, wrong[0], side="right")) - 1 if len(wrong) else -1
                if owner < 0 and len(off := np.flatnonzero(item[target[mine]] != label)):
                    owner = int(off[0])
                if owner >= 0:
                    raise DataError(
                        f"{path}: pair_id {pairs.pair_id[mine][owner]}",
                        f"session {pairs.session[mine][owner]}",
                        "prefix and label are not a start of the session's event sequence (that of its longest pair)",
                        "check session_id, and that prefixes are not cut to a maximum length",
                    )
    return item


def _index(
    path: Path, number: np.ndarray, length: np.ndarray, pair_id: np.ndarray, first: int, n_items: int
) -> np.ndarray:
    """Our item index of the tables' numbers: 1.., -1 for unknown."""
    wrong = np.flatnonzero((number != -1) & ((number < first) | (number >= first + n_items)))
    if len(wrong):
        owner = int(np.searchsorted(np.cumsum(length), wrong[0], side="right"))
        raise DataError(
            f"{path}: pair_id {pair_id[owner]}",
            number[wrong[0]],
            f"no such item: numbers run from {first} to {first + n_items - 1}, -1 for unknown",
            "use the course2id.json that the tables were written with",
        )
    return np.where(number == -1, -1, number - first + 1).astype(np.int32)


def _windows(path: Path, rows: _Rows, code: int, n_support: int, n_query: int) -> np.ndarray:
    """First pair (in the order of the store) of every episode of a split, ascending; checks that it is one user's
    window."""
    episode, user, ids = read_episodes(path, n_support, n_query)
    mine = np.flatnonzero(rows.pairs.split[rows.order] == code)
    by_id = mine[np.argsort(rows.pairs.pair_id[rows.order[mine]], kind="stable")]
    known = rows.pairs.pair_id[rows.order[by_id]]
    twice = np.flatnonzero(known[1:] == known[:-1])
    if len(twice):
        raise DataError(
            rows.place(by_id[twice[0]]),
            known[twice[0]],
            "the pair_id stands twice",
            "number the pairs of a split uniquely",
        )
    if not len(ids):
        raise DataError(path, "0 episodes", "the split has no episode", "write the tables with smaller K and Q")
    found = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))

    def refuse(bad: np.ndarray, value: object, what: str, fix: str) -> DataError:
        return DataError(f"{path}: episode_id {episode[bad[0]]}", value, what, fix)

    missing = np.argwhere(known[found] != ids) if len(known) else np.argwhere(ids == ids)
    if len(missing):
        raise refuse(
            missing[0],
            ids[tuple(missing[0])],
            "a pair_id that the pair table of this split does not have",
            "write both anew",
        )
    at = by_id[found]
    owner = np.array(rows.user_ids, dtype=object)[rows.user[at]]
    foreign = np.argwhere(owner != user[:, None])
    if len(foreign):
        raise refuse(
            foreign[0],
            ids[tuple(foreign[0])],
            f"a pair of user {owner[tuple(foreign[0])]}, not of {user[foreign[0][0]]}",
            "an episode is of one user",
        )
    late = np.flatnonzero(at[:, :n_support].max(axis=1) >= at[:, n_support:].min(axis=1))
    if len(late):
        raise refuse(
            late,
            f"user {user[late[0]]}",
            "support is not strictly before query",
            "order the pairs by time, then session",
        )
    gaps = np.flatnonzero((np.diff(at, axis=1) != 1).any(axis=1))
    if len(gaps):
        raise refuse(
            gaps,
            f"user {user[gaps[0]]}",
            "the pairs are not consecutive pairs of the user, and prepared data holds no others",
            "write episodes of consecutive pairs: K support, then Q query",
        )
    return np.sort(at[:, 0])


def _stride(path: Path, rows: _Rows, windows: np.ndarray, n_support: int, n_query: int) -> int:
    """The stride with which ``windows`` are all sliding windows of the training users."""
    users = np.flatnonzero(rows.user_split == 0)
    begin, end = rows.bounds[:-1][users], rows.bounds[1:][users]
    owner = rows.user[windows]
    steps = np.diff(windows)[owner[1:] == owner[:-1]]
    slack = int((end - begin).max() - n_support - n_query)  # one window each: any stride beyond the spare pairs
    stride = int(steps.min()) if len(steps) else max(1, slack + 1)
    expected = _starts(sliding_windows(users, begin, end, n_support=n_support, n_query=n_query, stride=max(1, stride)))
    odd = np.setxor1d(expected, windows)
    if stride < 1 or len(odd) or len(expected) != len(windows):
        user = rows.user_ids[rows.user[odd[0]]] if len(odd) else rows.user_ids[owner[0]]
        raise DataError(
            path,
            f"user {user}",
            f"the training episodes are not all sliding windows with one stride ({len(windows):,} "
            f"here, {len(expected):,} with stride {stride}), and prepared data holds no others",
            "write every window, or prepare the log itself",
        )
    return stride


def _starts(ranges: EpisodeRanges) -> np.ndarray:
    inside = np.arange(ranges.n_episodes) - np.repeat(ranges.windows_up_to - ranges.n_windows, ranges.n_windows)
    starts: np.ndarray = np.repeat(ranges.first_pair, ranges.n_windows) + inside * ranges.stride
    return starts


def _last_windows(path: Path, rows: _Rows, code: int, windows: np.ndarray, size: int) -> np.ndarray:
    """Which pairs to keep, bool [P], so that the episode of each user is made of the last ``size`` pairs kept."""
    owner = rows.user[windows]
    twice = np.flatnonzero(owner[1:] == owner[:-1])
    if len(twice):
        raise DataError(
            path,
            f"user {rows.user_ids[owner[twice[0]]]}",
            "has more than one episode",
            "a validation or test user has one",
        )
    users = np.flatnonzero(rows.user_split == code)
    enough = users[np.diff(rows.bounds)[users] >= size]
    left_out = np.setdiff1d(enough, owner)
    if len(left_out):
        raise DataError(
            path,
            f"user {rows.user_ids[left_out[0]]}",
            f"has {size} pairs and no episode ({len(left_out)} such users), which prepared data cannot hold",
            "leave these users out of the pair table",
        )
    keep = np.ones(len(rows.order), bool)
    for start, user in zip(windows, owner, strict=True):
        keep[start + size : rows.bounds[user + 1]] = False
    return keep


def _arrays(rows: _Rows, item: np.ndarray, keep: np.ndarray, has_clock: bool) -> dict[str, np.ndarray]:
    target = rows.begin + rows.length
    labelled = np.full(len(item), len(target), np.int64)
    labelled[target] = np.arange(len(target))
    # an event without a label of its own (the first of a session) takes the time of the next label
    time = rows.ts[np.minimum.accumulate(labelled[::-1])[::-1]] * (1_000_000 if has_clock else 1)
    n_users = len(rows.user_ids)
    user_sessions = np.searchsorted(rows.session_user, np.arange(n_users + 1))
    events = rows.offsets[user_sessions]
    return {
        "item": item,
        "time": time,
        "session_offsets": rows.offsets,
        "user_sessions": user_sessions,
        "pair_event": target[keep],
        "pair_begin": rows.begin[keep],
        "user_pairs": np.searchsorted(rows.user[keep], np.arange(n_users + 1)),
        "user_split": rows.user_split,
        "train_event_end": np.where(rows.user_split == 0, events[1:], events[:-1]),
    }


def _never_trained(arrays: dict[str, np.ndarray], n_items: int) -> int:
    """Items of the vocabulary that no training event holds."""
    events = arrays["session_offsets"][arrays["user_sessions"]]
    train = np.repeat(arrays["user_split"] == 0, np.diff(events))
    seen = np.unique(arrays["item"][train])
    return n_items - int((seen > 0).sum())
