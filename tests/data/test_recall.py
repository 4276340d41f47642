"""What is known ahead of a pair: by hand, and against a walk over events; whose states the keys are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.memory_cases import LOGS, K, Q, log_of, pairs_of
from reference.memory_reference import SlowMemory
from reference.small_episodes import SmallLog

from metarec.core.batch import EpisodeBatch, PairBatch, Recall
from metarec.data.batches import Batcher
from metarec.data.history import Stream


def recalls(batch: EpisodeBatch) -> tuple[tuple[PairBatch, Recall], tuple[PairBatch, Recall]]:
    found = []
    for part in (batch.support, batch.query):
        assert isinstance(part, PairBatch)
        assert part.recall is not None
        found.append((part, part.recall))
    return found[0], found[1]


def entries(recall: Recall, task: int, n: int) -> list[tuple[int, int, bool, int]]:
    """(item, age, own, key) of a pair."""
    item, age, own, key = (part[task, n].tolist() for part in (recall.item, recall.age, recall.own, recall.key))
    assert all(a == (0, 0, False, -1) for a in zip(item, age, own, key, strict=True) if a[0] == 0)
    return [a for a in zip(item, age, own, key, strict=True) if a[0]]


def test_two_sessions_by_hand() -> None:
    """Sessions (3, 1, 4) and (1, 5, 9, 2): K = 3 support pairs, 3>1, 31>4, 1>5, then the queries 15>9 and 159>2."""
    item = np.array([3, 1, 4, 1, 5, 9, 2], np.int32)
    batcher = Batcher(item, np.array([0, 0, 3, 3, 3]), np.array([1, 2, 4, 5, 6]), 50, recall=True)
    batch = batcher.episodes(np.array([0]), np.array([0]), 3, 2)
    (_, support), (_, query) = recalls(batch)
    # states of the support, counted from 1: of (3, 1) first, then of (1)
    assert entries(support, 0, 0) == [(3, 0, True, 0)]
    assert entries(support, 0, 1) == [(3, 1, True, 0), (1, 0, True, 1)]
    assert entries(support, 0, 2) == [(3, 3, False, 0), (1, 2, False, 1), (4, 1, False, 2), (1, 0, True, 0)]
    # the query's task has three states, those of (1, 5, 9): a key of the support is three further on
    earlier = [(3, 4, False, 0), (1, 3, False, 3 + 1), (4, 2, False, 3 + 2)]
    assert entries(query, 0, 0) == [*earlier, (1, 1, True, 0), (5, 0, True, 1)]
    older = [(item, age + 1, own, key) for item, age, own, key in earlier]
    assert entries(query, 0, 1) == [*older, (1, 2, True, 0), (5, 1, True, 1), (9, 0, True, 2)]
    assert query.support is not None
    assert query.support.recall is None


def test_the_latest_support_pairs_may_begin_in_the_middle_of_a_session() -> None:
    """What of that session no pair that is left holds is known all the same: it stands in the prefix of one."""
    item = np.array([3, 1, 4, 1, 5], np.int32)
    batcher = Batcher(item, np.zeros(4, np.int64), np.arange(1, 5), 50, recall=True)
    _, (_, query) = recalls(batcher.episodes(np.array([0]), np.array([0]), 1, 1, skip=2))
    assert [a[:3] for a in entries(query, 0, 0)] == [(3, 3, True), (1, 2, True), (4, 1, True), (1, 0, True)]


@pytest.mark.parametrize("n_support", [K, 2, 0])
@pytest.mark.parametrize("name", LOGS)
def test_entries_are_those_of_a_walk_over_events(name: str, n_support: int) -> None:
    log = log_of(name)
    batch = log.episodes(n_support, Q)
    for user in range(log.n_users):
        first = user * log.n_pairs
        support, query = list(range(first, first + n_support)), list(range(first + n_support, first + n_support + Q))
        slow = SlowMemory(log, support)
        for (_, recall), pairs in zip(recalls(batch), (support, query), strict=True):
            for n, pair in enumerate(pairs):
                wanted = slow.entries(pair)
                ages = range(len(wanted) - 1, -1, -1)
                assert [a[:3] for a in entries(recall, user, n)] == [
                    (item, age, own) for (_, item, own), age in zip(wanted, ages, strict=True)
                ]


@pytest.mark.parametrize("name", LOGS)
def test_a_key_is_behind_what_the_model_has_read_before_the_event(name: str) -> None:
    """By the items that lead to a state: the number of a state says which sequence, and how far into it."""
    log = log_of(name, n_read=8)
    (support, of_support), (query, of_query) = recalls(log.episodes(K, Q))
    for batch, recall, part in ((support, of_support, 0), (query, of_query, 1)):
        for user in range(log.n_users):
            pairs = pairs_of(log, user)
            slow = SlowMemory(log, pairs[0])
            for n, pair in enumerate(pairs[part]):
                found = [read_by(batch, recall, user, key) for *_, key in entries(recall, user, n)]
                assert found == [slow.key(pair, event, own) for event, _, own in slow.entries(pair)]


def read_by(batch: PairBatch, recall: Recall, task: int, key: int) -> list[int] | None:
    """The items of the sequence up to the state of a key; None where there is no state."""
    if key <= 0:
        return None if key < 0 else []
    width = int(batch.sequences.lengths.sum(1).max())
    if recall.support is not None and key > width:
        batch, key = recall.support, key - width
    s = batch.sequences
    state = int(s.places[task, 0]) + key - 1
    assert int(s.task[state]) == task
    begin = int(s.starts.flatten()[s.row[state]])
    return s.items[task, begin : begin + int(s.step[state]) + 1].tolist()


def test_a_copy_on_a_device_has_it_all() -> None:
    batch = log_of("cut").episodes(K, Q).to(torch.device("cpu"))
    (_, _), (query, recall) = recalls(batch)
    assert recall.support is not None
    alone = query.without_support().recall
    assert alone is not None
    assert alone.support is None
    assert not (alone.item > 0)[~alone.own].any()
    assert torch.equal(alone.item[alone.own], recall.item[recall.own])


def test_without_being_asked_for_there_is_none() -> None:
    log = replace(log_of("cut"), batcher=replace(log_of("cut").batcher, recall=False))
    batch = log.episodes(K, Q)
    for part in (batch.support, batch.query):
        assert isinstance(part, PairBatch)
        assert part.recall is None
        assert part.without_support() is part


def test_prefixes_that_hold_the_support_are_refused() -> None:
    log: SmallLog = log_of("cut")
    stream = Stream(np.zeros(0, np.int32), np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="no recall with a stream"):
        replace(log, batcher=replace(log.batcher, stream=stream)).episodes(K, Q)
