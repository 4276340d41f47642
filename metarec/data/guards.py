"""The guards: what must hold of prepared data whatever made it, checked on the finished arrays before they are used.

Nothing here is shared with the code that makes the arrays. A guard that fails raises DataError naming row or user:

    layout    sessions inside users, pairs inside their session, every range rising and whole
    time      never falls within a user; no (user, time, item) twice unless duplicates=keep (in the real order)
    order     sessions.order=shuffled: each session, and each side of the split in it, has the items of the real order
    split     a user stands once, hence in one split; training before T1, validation in [T1, T2), test from T2 on;
              split.by=column: where the log puts him, except that training users validate if the log has nobody do it
    episodes  K + Q pairs of one user of that split; support strictly before query; no event in two roles
    items     the vocabulary is exactly the items of the training events, so none first seen after T1; no index 0.
              (Episode tables bring a vocabulary of their own, which may hold more: there only the first half is asked
              for.)

The checks walk the events in blocks and give each block's pages back, so that they cost no memory.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from metarec.data.episodes import EpisodeRanges
from metarec.data.store import SPLITS, Prepared, blocks, give_back
from metarec.errors import DataError

FIX = "this is a fault of the preparation or of tables made elsewhere: report it, and do not use the data"


def check(prepared: Prepared) -> None:
    """Run all guards; DataError of the first that fails."""
    check_layout(prepared)
    check_pairs(prepared)
    check_time(prepared)
    check_split(prepared)
    check_order(prepared)
    check_given_split(prepared)
    check_items(prepared)
    for split in SPLITS:
        check_episodes(prepared, split, prepared.episodes(split))


def _fault(prepared: Prepared, guard: str, place: str, what: str) -> DataError:
    return DataError(f"{prepared.name}: guard {guard}", place, what, FIX)


def _user_of_event(prepared: Prepared, event: int) -> str:
    session = int(np.searchsorted(prepared.session_offsets, event, side="right")) - 1
    user = int(np.searchsorted(prepared.user_sessions, session, side="right")) - 1
    return f"event row {event}, user {prepared.user_ids[user]}"


def _event_begin(prepared: Prepared) -> np.ndarray:
    """First event of each user and the end of the last, int64 [U+1]."""
    begin: np.ndarray = np.asarray(prepared.session_offsets)[np.asarray(prepared.user_sessions)]
    return begin


def check_layout(prepared: Prepared) -> None:
    """Offsets start at 0, end at the length of what they cut up, and never fall; a session has two events at least."""
    n_sessions, n_users = len(prepared.session_offsets) - 1, prepared.n_users
    for name, offsets, parts, total in (
        ("session_offsets", prepared.session_offsets, n_sessions, len(prepared.item)),
        ("user_sessions", prepared.user_sessions, n_users, n_sessions),
        ("user_pairs", prepared.user_pairs, n_users, len(prepared.pair_event)),
    ):
        if len(offsets) != parts + 1 or offsets[0] != 0 or offsets[-1] != total:
            raise _fault(
                prepared, "layout", name, f"{len(offsets)} offsets do not cut up {total} entries into {parts} ranges"
            )
        least = 2 if name == "session_offsets" else 0
        for first, part in blocks(offsets, overlap=1):
            short = np.flatnonzero(np.diff(part) < least)
            if len(short):
                raise _fault(
                    prepared, "layout", f"{name} row {first + int(short[0])}", f"a range of fewer than {least} entries"
                )
    for name, array, length in (
        ("time", prepared.time, len(prepared.item)), ("pair_begin", prepared.pair_begin, len(prepared.pair_event)),
        ("user_split", prepared.user_split, n_users), ("train_event_end", prepared.train_event_end, n_users),
    ):  # fmt: skip
        if len(array) != length:
            raise _fault(prepared, "layout", name, f"has {len(array)} entries instead of {length}")


def check_pairs(prepared: Prepared) -> None:
    """A pair lies inside its session with an event before its target; targets rise strictly and are their user's."""
    offsets = np.asarray(prepared.session_offsets)
    user_begin = _event_begin(prepared)
    begins = blocks(prepared.pair_begin, overlap=1)
    for (first, event), (_, begin) in zip(blocks(prepared.pair_event, overlap=1), begins, strict=True):
        if event.min() < 0 or event.max() >= len(prepared.item):
            row = first + int(np.flatnonzero((event < 0) | (event >= len(prepared.item)))[0])
            raise _fault(prepared, "layout", f"pair row {row}", "its target is no event")
        session = np.searchsorted(offsets, event, side="right") - 1
        wrong = np.flatnonzero((begin != offsets[session]) | (event <= begin))
        if len(wrong):
            row = int(wrong[0])
            place = f"pair row {first + row}, {_user_of_event(prepared, int(event[row]))}"
            raise _fault(
                prepared, "layout", place, f"the pair [{begin[row]}, {event[row]}] does not lie inside one session"
            )
        wrong = np.flatnonzero(np.diff(event) <= 0)
        if len(wrong):
            row = int(wrong[0]) + 1
            place = f"pair row {first + row}, {_user_of_event(prepared, int(event[row]))}"
            raise _fault(prepared, "total order", place, "its target does not come strictly after the one before it")
        pairs = np.arange(first, first + len(event))
        user = np.searchsorted(prepared.user_pairs, pairs, side="right") - 1
        wrong = np.flatnonzero((event < user_begin[user]) | (event >= user_begin[user + 1]))
        if len(wrong):
            row = int(wrong[0])
            raise _fault(
                prepared,
                "layout",
                f"pair row {first + row}",
                f"its target is no event of user {prepared.user_ids[user[row]]}",
            )


def check_time(prepared: Prepared) -> None:
    """Time never falls within a user; no event twice."""
    user_begin = _event_begin(prepared)
    for first, time in blocks(prepared.time, overlap=1):
        opens = np.zeros(len(time), dtype=bool)
        inside = user_begin[(user_begin >= first) & (user_begin < first + len(time))] - first
        opens[inside] = True
        falls = np.flatnonzero((np.diff(time) < 0) & ~opens[1:])
        if len(falls):
            raise _fault(
                prepared,
                "time",
                _user_of_event(prepared, first + int(falls[0]) + 1),
                "is earlier than the event before it",
            )
    if not prepared.repeated_events:
        _check_repeats(prepared, user_begin)


def _check_repeats(prepared: Prepared, user_begin: np.ndarray) -> None:
    """No (user, time, item) twice; items outside the vocabulary share the index -1 and cannot be told apart."""
    carried: list[tuple[int, int, int, int]] = []
    for (first, time), (_, item) in zip(
        blocks(prepared.time, overlap=1), blocks(prepared.real_item, overlap=1), strict=True
    ):
        user = np.searchsorted(user_begin, np.arange(first, first + len(time)), side="right") - 1
        tied = np.zeros(len(time), dtype=bool)
        tied[1:] = (time[1:] == time[:-1]) & (user[1:] == user[:-1])
        tied[:-1] |= tied[1:]
        rows = np.flatnonzero(tied & (item > 0))
        events = [
            *carried,
            *zip(user[rows].tolist(), time[rows].tolist(), item[rows].tolist(), (first + rows).tolist(), strict=True),
        ]
        events = sorted(set(events))
        for before, after in pairwise(events):
            if before[:3] == after[:3]:
                raise _fault(
                    prepared,
                    "repeats",
                    _user_of_event(prepared, after[3]),
                    f"repeats event row {before[3]}: same user, time and item",
                )
        # a run of equal times may go on in the next block
        carried = [event for event in events if event[:2] == (int(user[-1]), int(time[-1]))]


def check_split(prepared: Prepared) -> None:
    """Users stand once; a user's events lie in the time of the split."""
    ids, counts = np.unique(prepared.user_ids, return_counts=True)
    if len(prepared.user_ids) != prepared.n_users or counts.max(initial=1) > 1:
        raise _fault(
            prepared, "split", f"user {ids[int(counts.argmax())]}", "stands more than once, so possibly in two splits"
        )
    user_begin = _event_begin(prepared)
    begin, end, split = user_begin[:-1], user_begin[1:], np.asarray(prepared.user_split)
    wrong = np.flatnonzero((split < -1) | (split > 2) | ((split == -1) != (begin == end)))
    if len(wrong):
        raise _fault(
            prepared,
            "split",
            f"user {prepared.user_ids[wrong[0]]}",
            f"split {split[wrong[0]]} does not fit {end[wrong[0]] - begin[wrong[0]]} events",
        )
    train_end = np.asarray(prepared.train_event_end)
    expected = np.where(split == 0, end, begin)
    if prepared.split_by == "leave_one_out":
        wrong = np.flatnonzero((split != -1) & ((split != 0) | (train_end < begin) | (train_end > end)))
    else:
        wrong = np.flatnonzero(train_end != expected)
    if len(wrong):
        raise _fault(
            prepared,
            "split",
            f"user {prepared.user_ids[wrong[0]]}",
            "the events for training are not those of the split",
        )
    if prepared.split_by != "user_time":
        return
    if prepared.time_cuts is None:
        raise _fault(prepared, "time cut", "meta.json", "a split in time names no time cuts")
    first_cut, second_cut = prepared.time_cuts
    some = np.flatnonzero(end > begin)
    # time never falls within a user (checked before), so a user's first and last event bound the others
    earliest, latest = prepared.time[begin[some]], prepared.time[end[some] - 1]
    which = split[some]
    wrong = np.flatnonzero(
        ((which == 0) & (latest >= first_cut)) | ((which == 1) & ((earliest < first_cut) | (latest >= second_cut)))
        | ((which == 2) & (earliest < second_cut))
    )  # fmt: skip
    if len(wrong):
        row = int(wrong[0])
        raise _fault(prepared, "time cut", f"user {prepared.user_ids[some[row]]}",
                     f"of split {SPLITS[which[row]]} has events from {earliest[row]} to {latest[row]}; "
                     f"the cuts are {first_cut} and {second_cut}")  # fmt: skip


def check_order(prepared: Prepared) -> None:
    """sessions.order=shuffled: nothing but a permutation inside a session, and none across the sides of the split.

    A side is what is for training, what comes behind it, and under leave_one_out the last event of a user.
    """
    if prepared.order == "real":
        return
    if len(prepared.real_item) != len(prepared.item):
        raise _fault(prepared, "order", "real_item", f"has {len(prepared.real_item)} entries, not {len(prepared.item)}")
    user_begin, train_end = _event_begin(prepared), np.asarray(prepared.train_event_end)
    offsets = np.asarray(prepared.session_offsets)
    first = 0
    while first < len(prepared.item):
        # whole sessions, a million events or the next one session
        at = int(np.searchsorted(offsets, first + 1_000_000, side="right")) - 1
        last = int(offsets[max(at, int(np.searchsorted(offsets, first, side="right")))])
        event = np.arange(first, last)
        user = np.searchsorted(user_begin, event, side="right") - 1
        side = (event >= train_end[user]).astype(np.int64)
        if prepared.split_by == "leave_one_out":
            side += (side > 0) & (event == user_begin[user + 1] - 1)
        place = 3 * np.searchsorted(offsets, event, side="right") + side
        real, other = (np.array(array[first:last]) for array in (prepared.real_item, prepared.item))
        wrong = np.flatnonzero(real[np.lexsort((real, place))] != other[np.lexsort((other, place))])
        if len(wrong):  # both are sorted by place, and places stand in the order of events
            what = "its session has not the items of the real order, or has them on another side of the split"
            raise _fault(prepared, "order", _user_of_event(prepared, first + int(wrong[0])), what)
        give_back(prepared.real_item)
        give_back(prepared.item)
        first = last


def check_given_split(prepared: Prepared) -> None:
    """split.by=column: every user stands in the split that the log names; drawn validation comes from training only."""
    if prepared.given_split is None:
        return
    ids, words = prepared.given_split
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], prepared.user_ids), len(ids) - 1)
    missing = np.flatnonzero(ids[order][place] != prepared.user_ids)
    if len(missing):
        raise _fault(
            prepared, "split", f"user {prepared.user_ids[missing[0]]}", "the log's split column does not know him"
        )
    word = words[order][place]
    given = np.select([word == "train", word == "test"], [0, 2], 1)
    split = np.asarray(prepared.user_split)
    drawn = (given == 0) & (split == 1) & bool(np.isin(words, ("train", "test")).all())
    wrong = np.flatnonzero((split != given) & (split != -1) & ~drawn)
    if len(wrong):
        user = wrong[0]
        what = f"stands in split {SPLITS[split[user]]}, and the log's column says {word[user]}"
        raise _fault(prepared, "split", f"user {prepared.user_ids[user]}", what)


def check_items(prepared: Prepared) -> None:
    """Indices are -1 or 1..n_items; the items of the training events are exactly 1..n_items."""
    if len(prepared.item_ids) != prepared.n_items or len(np.unique(prepared.item_ids)) != prepared.n_items:
        raise _fault(prepared, "vocabulary", "item ids", f"are not {prepared.n_items} different ids")
    user_begin = _event_begin(prepared)[:-1]
    train_end = np.asarray(prepared.train_event_end)
    seen = np.zeros(prepared.n_items + 1, dtype=bool)
    for first, item in blocks(prepared.item):
        wrong = np.flatnonzero((item == 0) | (item < -1) | (item > prepared.n_items))
        if len(wrong):
            raise _fault(
                prepared, "vocabulary", _user_of_event(prepared, first + int(wrong[0])), f"item index {item[wrong[0]]}"
            )
        events = np.arange(first, first + len(item))
        user = np.searchsorted(user_begin, events, side="right") - 1
        training = events < train_end[user]
        if (item[training] < 0).any():
            row = int(np.flatnonzero(training & (item < 0))[0])
            raise _fault(
                prepared,
                "vocabulary",
                _user_of_event(prepared, first + row),
                "an item of a training event is not in the vocabulary",
            )
        seen[item[training]] = True
    missing = np.flatnonzero(~seen[1:])
    if len(missing) and not prepared.given_vocabulary:
        late = " (first seen after T1)" if prepared.time_cuts else ""
        raise _fault(
            prepared,
            "vocabulary",
            f"item {prepared.item_ids[missing[0]]}",
            f"is in the vocabulary and in no training event{late}",
        )


def check_episodes(prepared: Prepared, split: str, ranges: EpisodeRanges) -> None:
    """Every window: K + Q pairs of one user of the split; support strictly before query; no event in two roles."""
    size = ranges.n_support + ranges.n_query
    if len(np.unique(ranges.user)) != len(ranges.user):
        raise _fault(prepared, "episodes", f"split {split}", "a user has two rows")
    code = 0 if prepared.split_by == "leave_one_out" else SPLITS.index(split)
    last_end = ranges.first_pair + (ranges.n_windows - 1) * ranges.stride + size
    wrong = np.flatnonzero(
        (prepared.user_split[ranges.user] != code) | (ranges.n_windows < 1)
        | (ranges.first_pair < prepared.user_pairs[ranges.user]) | (last_end > prepared.user_pairs[ranges.user + 1])
    )  # fmt: skip
    if len(wrong):
        user = prepared.user_ids[ranges.user[wrong[0]]]
        raise _fault(prepared, "episodes", f"user {user}", f"its {split} episodes are not pairs of this user and split")
    for row in range(0, len(ranges.user), 100_000):
        rows = slice(row, row + 100_000)
        # the first and the last window bound the others: targets rise strictly from pair to pair (checked before)
        for start in (ranges.first_pair[rows], last_end[rows] - size):
            event = prepared.pair_event[start[:, None] + np.arange(size)]
            support, query = event[:, : ranges.n_support], event[:, ranges.n_support :]
            wrong = np.flatnonzero(
                (support.max(axis=1) >= query.min(axis=1)) | (np.diff(np.sort(event, axis=1), axis=1) == 0).any(axis=1)
            )
            if len(wrong):
                user = prepared.user_ids[ranges.user[row + int(wrong[0])]]
                raise _fault(
                    prepared,
                    "episodes",
                    f"user {user}",
                    f"a {split} episode has support not strictly before query, or an event in two roles",
                )
    if split == "train":
        last_target = prepared.pair_event[last_end - 1]
        late = np.flatnonzero(last_target >= prepared.train_event_end[ranges.user])
        if len(late):
            raise _fault(
                prepared,
                "episodes",
                f"user {prepared.user_ids[ranges.user[late[0]]]}",
                "a training episode reaches past the events for training",
            )
