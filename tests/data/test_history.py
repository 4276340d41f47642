"""The support in front of a prefix, and whole histories, against lists made one event at a time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from reference.history_reference import prefix_behind, read_back, whole_history
from reference.small_episodes import SmallLog, small_log

from metarec.data.batches import cut_long
from metarec.data.history import Stream, shown


def stream_of(log: SmallLog) -> Stream:
    """Sessions of users as `prepared` has them."""
    starts = [begin for begin, _ in log.sessions]
    users, first = [0], 0
    for _ in range(log.n_users):
        pairs = 0
        while pairs < log.n_pairs:
            begin, end = log.sessions[first]
            pairs, first = pairs + end - begin - 1, first + 1
        users.append(first)
    prepared = SimpleNamespace(
        session_offsets=np.array([*starts, log.sessions[-1][1]]), user_sessions=np.array(users), item=log.batcher.item
    )
    return Stream.of(prepared)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_len", [3, 50])
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize(("k", "q"), [(0, 3), (1, 4), (3, 5), (5, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_support_in_front_is_what_one_pair_at_a_time_reads(
    seed: int, k: int, q: int, breaks: bool, max_len: int
) -> None:
    log = small_log(seed, n_users=5, max_len=max_len, longest=4 + seed)
    pairs = np.arange(log.n_users * log.n_pairs).reshape(log.n_users, -1)[:, : k + q]
    support, query = log.batcher.behind(pairs[:, :k], pairs[:, k:], breaks=breaks)
    for user, own in enumerate(pairs.tolist()):
        for batch, numbers, is_support in ((support, own[:k], True), (query, own[k:], False)):
            found = read_back(batch)[user] if numbers else []
            for (tokens, target), pair in zip(found, numbers, strict=True):
                assert tokens == prefix_behind(log.batcher, own[:k], pair, breaks=breaks, is_support=is_support)
                assert target == log.batcher.item[log.batcher.pair_event[pair]]


@pytest.mark.parametrize("seed", range(4))
def test_episodes_of_a_stream_read_the_support_and_nothing_else(seed: int) -> None:
    """Removing all that lies between support and query, or before the support, changes nothing."""
    log = small_log(seed, n_users=3, n_pairs=12)
    batcher = replace(log.batcher, stream=stream_of(log))
    pairs = np.arange(36).reshape(3, 12)
    whole = batcher.episodes(np.arange(3), pairs[:, 2], 3, 4, skip=0)
    kept = set()
    for own in pairs:
        for pair in own[2:9]:
            kept.update(range(int(batcher.pair_begin[pair]), int(batcher.pair_event[pair]) + 1))
    poisoned = batcher.item.copy()
    for event in set(range(len(poisoned))) - kept:
        poisoned[event] = 1 + (poisoned[event] % 11)
    again = replace(batcher, item=poisoned, stream=None)
    found = again.behind(pairs[:, 2:5], pairs[:, 5:9], breaks=True)
    assert read_back(whole.support) == read_back(found[0])
    assert read_back(whole.query) == read_back(found[1])


@pytest.mark.parametrize("max_len", [4, 50])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_holds_the_whole_history(seed: int, max_len: int) -> None:
    log = small_log(seed, n_users=4, max_len=max_len)
    stream = stream_of(log)
    batcher = replace(log.batcher, stream=stream)
    user_begin = [int(log.batcher.pair_begin[u * log.n_pairs]) for u in range(log.n_users)]
    pairs = np.arange(log.n_users * log.n_pairs).reshape(log.n_users, -1)
    for user, rows in enumerate(read_back(batcher.pairs(pairs))):
        own = [s for s in log.sessions if user + 1 >= log.n_users or s[0] < user_begin[user + 1]]
        for pair, (tokens, target) in zip(pairs[user], rows, strict=True):
            assert tokens == whole_history(log.batcher, own, user_begin[user], int(pair))
            assert target == log.batcher.item[log.batcher.pair_event[pair]]


def test_pieces_of_a_stream_ask_for_every_event_but_the_first_and_for_no_break() -> None:
    log = small_log(2, n_users=4, max_len=5, unknown=0.0)
    stream = stream_of(log)
    batcher = replace(log.batcher, stream=stream)
    ends = np.array([*(log.batcher.pair_begin[u * log.n_pairs] for u in range(1, 4)), len(log.batcher.item)])
    begin, end = stream.users(ends, np.arange(4))
    batch = batcher.pieces(*cut_long(begin, end, 5))
    asked = [target for row in read_back(batch) for _, target in row]
    breaks = sum(1 for item in stream.item if item == 0)
    assert asked.count(0) == breaks  # places that are no pair
    assert len(asked) - breaks == len(log.batcher.item) - 4
    assert len(stream.item) == len(log.batcher.item) + len(log.sessions) - 4


def test_shown_by_hand() -> None:
    begin = np.array([[0, 0, 4, 4]])  # session 0..3 up to its event 2, session 4.. up to event 6
    event = np.array([[1, 2, 5, 6]])
    events, ends = shown(begin, event, False)
    assert events.tolist() == [0, 1, 2, 4, 5, 6]
    assert ends.tolist() == [[2, 3, 5, 6]]
    events, ends = shown(begin, event, True)
    assert events.tolist() == [0, 1, 2, -1, 4, 5, 6]
    assert ends.tolist() == [[2, 3, 6, 7]]
