"""Packed batches against plain Python: which events each pair reads, and which targets each session gives."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.small_episodes import Pair, SmallLog, small_log

from metarec.core.batch import PairBatch
from metarec.data import batches
from metarec.data.batches import Batcher, cut_long

quick = settings(max_examples=80, deadline=None)
logs = st.builds(
    small_log,
    st.integers(0, 10**6),
    n_users=st.integers(1, 4),
    n_pairs=st.integers(1, 12),
    longest=st.integers(2, 14),
    max_len=st.sampled_from([1, 2, 3, 5, 50]),
    unknown=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
)


def read_back(batch: PairBatch) -> list[Pair]:
    """What each pair of a batch sees: walk its states back to the start of the sequence."""
    items, starts = batch.sequences.items.tolist(), batch.sequences.starts.tolist()
    seen: list[list[int]] = [[]]  # state number -> prefix
    for own_items, own_starts, own_lengths in zip(items, starts, batch.sequences.lengths.tolist(), strict=True):
        for start, length in zip(own_starts, own_lengths, strict=True):
            seen += [own_items[start : start + end] for end in range(1, length + 1)]
    at, target = batch.at.flatten().tolist(), batch.target.flatten().tolist()
    return [(seen[place], item) for place, item in zip(at, target, strict=True)]


def check_pairs(log: SmallLog) -> None:
    pairs = np.arange(log.n_users * log.n_pairs).reshape(log.n_users, log.n_pairs)
    batch = log.batcher.pairs(pairs)
    assert read_back(batch) == log.expand(pairs.ravel())
    assert batch.at.shape == batch.target.shape == pairs.shape
    lengths = batch.sequences.lengths
    assert (lengths.diff(dim=1) <= 0).all()  # longest first
    assert (batch.sequences.items >= 0).all()  # no unknown item is ever looked up


@given(logs)
@quick
def test_pairs_equal_the_slow_expansion(log: SmallLog) -> None:
    check_pairs(log)


@given(logs, st.data())
@quick
def test_episodes_are_support_then_query(log: SmallLog, data: st.DataObject) -> None:
    n_support = data.draw(st.integers(0, log.n_pairs))
    skip = data.draw(st.integers(0, n_support))
    users = np.array(data.draw(st.permutations(range(log.n_users))))
    first = users * log.n_pairs
    got = log.batcher.episodes(users, first, n_support - skip, log.n_pairs - n_support, skip)
    assert got.user.tolist() == users.tolist()
    for batch, begin, end in ((got.support, skip, n_support), (got.query, n_support, log.n_pairs)):
        wanted = [first[:, None] + np.arange(begin, end)]
        assert read_back(batch) == log.expand(np.concatenate(wanted).ravel())


def test_prefixes_that_overlap_read_the_same_events() -> None:
    item = np.arange(1, 101, dtype=np.int32)
    batcher = Batcher(item, np.zeros(99, np.int64), np.arange(1, 100), 10)
    batch = batcher.pairs(np.arange(40, 50)[None])  # ten prefixes of ten events, each one further
    assert batch.sequences.items.tolist() == [list(range(32, 51))]
    assert batch.sequences.lengths.tolist() == [[10] * 10]
    assert batch.sequences.starts.tolist() == [list(range(10))]


def test_prefixes_that_grow_are_one_sequence() -> None:
    item = np.arange(1, 21, dtype=np.int32)
    batch = Batcher(item, np.zeros(19, np.int64), np.arange(1, 20), 50).pairs(np.arange(3, 9)[None])
    assert batch.sequences.lengths.tolist() == [[9]]
    assert batch.at.tolist() == [[4, 5, 6, 7, 8, 9]]


def slow_sessions(log: SmallLog) -> dict[int, list[int]]:
    """Event of each target -> its whole prefix, known items only."""
    return {
        event: [int(i) for i in log.batcher.item[begin:event] if i > 0]
        for begin, end in log.sessions
        for event in range(begin + 1, end)
    }


def check_sessions(log: SmallLog, order: list[int]) -> None:
    begin, end = np.array([log.sessions[i] for i in order]).T
    max_len = log.batcher.max_len
    first, last, start = cut_long(begin, end, max_len)
    events = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    wanted = slow_sessions(log)
    assert [e for i in order for e in range(log.sessions[i][0] + 1, log.sessions[i][1])] == events.tolist()  # each once
    batch = log.batcher.sessions(begin, end)
    assert batch.n_tasks == 1
    reads = np.repeat(start, last - first)
    bound = {event: session[0] for session in log.sessions for event in range(session[0] + 1, session[1])}
    for event, begins, (prefix, target) in zip(events.tolist(), reads.tolist(), read_back(batch), strict=True):
        assert target == log.batcher.item[event]
        known = [int(i) for i in log.batcher.item[begins:event] if i > 0]
        assert prefix == known  # the latest events of the session, from where the piece begins
        context, whole = event - begins, event - bound[event]
        assert bound[event] <= begins
        assert context <= max_len
        assert context >= min(whole, max_len // 2)
        if whole <= max_len:
            assert prefix == wanted[event]


@given(logs, st.randoms(use_true_random=False))
@quick
def test_sessions_give_each_target_once_behind_enough_context(log: SmallLog, random: object) -> None:
    order = list(range(len(log.sessions)))
    random.shuffle(order)  # type: ignore[attr-defined]
    check_sessions(log, order)


@given(st.integers(1, 60), st.integers(2, 400))
@quick
def test_cut_long(max_len: int, length: int) -> None:
    first, last, start = cut_long(np.array([7]), np.array([7 + length]), max_len)
    targets = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    assert targets.tolist() == list(range(8, 7 + length))
    assert (last > first).all()
    assert (last - 1 - start <= max_len).all()
    assert (first - start >= np.minimum(first - 7, max_len // 2)).all()
    assert len(first) == 1 + max(0, -(-(length - 1 - max_len) // max(max_len // 2, 1)))


def test_no_pairs_and_no_known_item() -> None:
    batcher = Batcher(np.array([-1, -1, 3], np.int32), np.zeros(2, np.int64), np.array([1, 2]), 50)
    empty = batcher.pairs(np.zeros((2, 0), np.int64))
    assert empty.at.shape == (2, 0)
    assert empty.sequences.plan.blocks == []
    assert read_back(batcher.pairs(np.array([[0, 1]]))) == [([], -1), ([], 3)]


def test_the_earliest_events_kept_are_seen() -> None:
    log = small_log(5, longest=12, n_pairs=12, max_len=4)
    check_pairs(log)
    pairs = np.arange(log.n_users * log.n_pairs).reshape(log.n_users, log.n_pairs)
    assert read_back(replace(log.batcher, max_len=50).pairs(pairs)) != log.expand(pairs.ravel())


@given(st.integers(0, 10_000), st.integers(0, 11), st.sampled_from([3, 50]))
@settings(max_examples=60, deadline=None)
def test_what_is_not_read_is_a_target_and_no_input(seed: int, n_read: int, max_len: int) -> None:
    """As if its events were unknown, but for the targets: on every way into a batch."""
    log = small_log(seed, longest=12, n_pairs=12, max_len=max_len)
    n_read = min(n_read, int(log.batcher.item.max()))
    unread = replace(log.batcher, n_read=n_read)
    unknown = replace(log.batcher, item=np.where(log.batcher.item > n_read, -1, log.batcher.item).astype(np.int32))
    pairs = np.arange(log.n_users * log.n_pairs).reshape(log.n_users, log.n_pairs)
    begin, end = np.array(log.sessions).T
    for make in (
        lambda batcher: batcher.pairs(pairs),
        lambda batcher: batcher.behind(pairs[:, :5], pairs[:, 5:], breaks=True)[0],
        lambda batcher: batcher.behind(pairs[:, :5], pairs[:, 5:], breaks=False)[1],
        lambda batcher: batcher.sessions(begin, end),
    ):
        one, other, whole = make(unread), make(unknown), make(log.batcher)
        assert torch.equal(one.target, whole.target)
        assert torch.equal(one.at, other.at)
        for name in ("items", "starts", "lengths"):
            assert torch.equal(getattr(one.sequences, name), getattr(other.sequences, name))


@given(st.integers(0, 10_000), st.sampled_from([3, 50]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_support_in_front_adds_nothing_where_a_user_is_one_sequence(seed: int, max_len: int, breaks: bool) -> None:
    """Why the in-context rows are left out there: they read what the plain prefix reads."""
    rng = np.random.default_rng(seed)
    n_users, length = 3, 13
    item = rng.integers(1, 9, n_users * length).astype(np.int32)
    event = np.arange(n_users * length).reshape(n_users, length)[:, 1:]
    batcher = Batcher(item, np.repeat(event[:, 0] - 1, length - 1), event.ravel(), max_len)
    pairs = np.arange(n_users * (length - 1)).reshape(n_users, -1)
    plain = batcher.pairs(pairs[:, 5:])
    behind = batcher.behind(pairs[:, :5], pairs[:, 5:], breaks=breaks)[1]
    assert read_back(behind) == read_back(plain)


@pytest.mark.gpu
def test_a_batch_made_on_a_gpu_is_the_same() -> None:
    log = small_log(5, longest=12, n_pairs=12, max_len=4, unknown=0.2)
    first = np.arange(log.n_users) * log.n_pairs
    for there in (log.batcher, replace(log.batcher, device=torch.device("cuda"))):
        batch = there.episodes(np.arange(log.n_users), first, 5, 7)
        assert batch.support.sequences.items.device.type == there.device.type
        assert read_back(batch.query.to(torch.device("cpu"))) == read_back(
            log.batcher.episodes(np.arange(log.n_users), first, 5, 7).query
        )


def test_unknown_items_kept_are_seen() -> None:
    log, kept = (small_log(5, longest=12, n_pairs=12, unknown=0.3) for _ in range(2))
    kept.batcher.item[kept.batcher.item < 0] = 11
    pairs = np.arange(12)[None]
    assert read_back(log.batcher.pairs(pairs)) == log.expand(pairs[0])
    assert read_back(kept.batcher.pairs(pairs)) != log.expand(pairs[0])


def test_a_target_lost_between_pieces_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    log = small_log(5, longest=14, n_pairs=12, max_len=3)
    check_sessions(log, list(range(len(log.sessions))))
    true_cut = cut_long

    def short(begin: np.ndarray, end: np.ndarray, max_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last, start = true_cut(begin, end, max_len)
        return first, last - (last - first > 1), start

    for place in (batches, sys.modules[__name__]):
        monkeypatch.setattr(place, "cut_long", short)
    with pytest.raises(AssertionError):
        check_sessions(log, list(range(len(log.sessions))))
