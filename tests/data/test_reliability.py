"""Reliability of support pairs: hand values, a slow second version, no look ahead, percentiles of training alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.prepare_reference import Row
from reference.reliability_reference import known_events, percentiles, score, scores
from reference.small_logs import (
    columns_of_log,
    example_log,
    logs,
    prepare_or_none,
    prepare_rows,
    quick,
    shape,
    write_log,
)

from metarec.data import reliability as module
from metarec.data.batches import Batcher
from metarec.data.prepare import prepare
from metarec.data.reliability import Reliability, reliability_of
from metarec.data.spec import DatasetSpec, EpisodeShape, Sessions, WorldSpec
from metarec.data.store import Prepared

SECOND = 1_000_000


def every_pair(prepared: Prepared) -> np.ndarray:
    return np.arange(len(prepared.pair_event))


def one_session(item: list[int], seconds: list[int] | None, p95_events: float, p95_duration: float) -> Reliability:
    n = len(item)
    time = None if seconds is None else np.array(seconds) * SECOND
    pairs = np.zeros(n - 1, np.int64), np.arange(1, n)
    return Reliability(np.array(item, np.int32), time, *pairs, p95_events, p95_duration * SECOND)


def random_log(seed: int, unknown: float) -> Reliability:
    """40 sessions of 2 to 15 events: few items, so that they repeat, and times that tie."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(2, 16, 40)
    ends = np.cumsum(sizes)
    item = draw.integers(1, 6, ends[-1]).astype(np.int32)
    item[draw.random(ends[-1]) < unknown] = -1
    begin = np.repeat(ends - sizes, sizes - 1)
    event = np.concatenate([np.arange(end - size + 1, end) for size, end in zip(sizes, ends, strict=True)])
    return Reliability(item, np.cumsum(draw.integers(0, 3, ends[-1])), begin, event, 9.5, 11.25)


def slow(of: Reliability) -> list[float]:
    item = of.item.tolist()
    time = [0] * len(item) if of.time is None else of.time.tolist()
    p95_duration = None if of.time is None else of.p95_duration
    bounds = zip(of.pair_begin.tolist(), of.pair_event.tolist(), strict=True)
    return [score(known_events(item, time, b, e + 1), of.p95_events, p95_duration) for b, e in bounds]


# -- the score ------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Items 5, 5, 7, 9 at 0, 10, 40 and 100 s; p95: 4 events, 80 seconds."""
    found = one_session([5, 5, 7, 9], [0, 10, 40, 100], 4, 80)(np.array([[0, 1, 2]]))
    wanted = [(2 / 4 + 10 / 80 + 1 / 2) / 3, (3 / 4 + 40 / 80 + 2 / 3) / 3, (1 + 1 + 3 / 4) / 3]
    np.testing.assert_allclose(found, [wanted], rtol=1e-15)


def test_without_a_clock_by_hand() -> None:
    found = one_session([5, 5, 7, 9], None, 4, 80)(np.array([[0, 1, 2]]))
    np.testing.assert_allclose(found, [[(2 / 4 + 1 / 2) / 2, (3 / 4 + 2 / 3) / 2, (1 + 3 / 4) / 2]], rtol=1e-15)


def test_a_percentile_of_no_duration_is_1_for_all() -> None:
    found = one_session([5, 6, 7], [0, 0, 30], 3, 0)(np.array([[0, 1]]))
    np.testing.assert_allclose(found, [[(2 / 3 + 1 + 1) / 3, (1 + 1 + 1) / 3]], rtol=1e-15)


@pytest.mark.parametrize("unknown", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("clock", [True, False])
def test_a_random_log_equals_the_slow_version(clock: bool, unknown: float) -> None:
    of = random_log(3, unknown)
    of = of if clock else replace(of, time=None)
    pairs = np.random.default_rng(4).integers(0, len(of.pair_event), (30, 7))  # in any order, some twice
    found = of(pairs)
    np.testing.assert_allclose(found, np.array(slow(of))[pairs], rtol=1e-14)
    assert (found > 0).all()
    assert (found <= 1).all()


@given(logs(), st.sampled_from(["user_disjoint", "user_time", "leave_one_out"]), st.booleans(), st.booleans())
@quick
def test_a_prepared_log_equals_the_slow_version(rows: list[Row], by: str, clock: bool, whole: bool) -> None:
    """Percentiles and scores; `whole`: all events of a user are one session, so that items repeat in it."""
    prepared = prepare_or_none(rows, shape(by=by, sessions=Sessions(by="user" if whole else "gap")))
    if prepared is None:
        return
    prepared = replace(prepared, has_clock=clock)
    found = reliability_of(prepared)
    assert (found.p95_events, found.p95_duration) == pytest.approx((percentiles(prepared)[0], percentiles(prepared)[1]
                                                                    if clock else 0))  # fmt: skip
    np.testing.assert_allclose(found(every_pair(prepared)[None])[0], scores(prepared), rtol=1e-14)


def test_the_embedded_world_has_no_clock(tmp_path: Path) -> None:
    """Nothing but length and variety."""
    world = WorldSpec(n_users=60, n_items=20, n_topics=4)
    spec = DatasetSpec(source="synthetic", world=world, episodes=EpisodeShape(3, 2))
    prepared = prepare(spec, data_dir=None, cache_dir=tmp_path)
    assert reliability_of(prepared).time is None
    np.testing.assert_allclose(reliability_of(prepared)(every_pair(prepared)[None])[0], scores(prepared), rtol=1e-14)


def test_episode_tables(tmp_path: Path) -> None:
    """Written and read back: the number of events and the variety are as in the log; durations are counted from the first
    label on, whose time the first event has."""
    rows, options = example_log(), shape(columns=columns_of_log())
    for row in rows:
        row.item = row.item if row.user < 6 else row.item + row.order % 2 * 50  # some unknown, if not in training
    write_log(rows, tmp_path / "log.parquet")
    options.path = str(tmp_path / "log.parquet")
    log = prepare(options, data_dir=None, cache_dir=tmp_path / "cache", export_dir=tmp_path / "tables")
    tables = DatasetSpec(source="episode_tables", path=str(tmp_path / "tables"), episodes=options.episodes)
    read = prepare(tables, data_dir=None, cache_dir=tmp_path / "cache")
    assert read.has_clock
    np.testing.assert_allclose(reliability_of(read)(every_pair(read)[None])[0], scores(read), rtol=1e-14)
    timeless = [reliability_of(replace(prepared, has_clock=False)) for prepared in (log, read)]
    assert timeless[0].p95_events == timeless[1].p95_events
    both = [of(every_pair(log)[None]) for of in timeless]
    np.testing.assert_array_equal(*both)
    assert (read.time[read.pair_begin] == read.time[read.pair_begin + 1]).all()


# -- items outside the vocabulary -----------------------------------------------------------------------------------


def test_masking_equals_removing() -> None:
    """A log without its unknown events gives every pair that counts (its target is known) the same score, bit for bit."""
    of = random_log(5, 0.4)
    kept = of.item > 0
    assert of.time is not None
    place = np.cumsum(kept) - kept  # of an event in the shorter log; of a removed one, where the next stands
    counts = kept[of.pair_event]
    shorter = Reliability(
        of.item[kept], of.time[kept], place[of.pair_begin[counts]], place[of.pair_event[counts]],
        of.p95_events, of.p95_duration,
    )  # fmt: skip
    pairs = np.flatnonzero(counts)
    assert 0.2 < counts.mean() < 0.8
    np.testing.assert_array_equal(of(pairs[None]), shorter(np.arange(len(pairs))[None]))


def test_unknown_items_counted_are_seen() -> None:
    """Planted: unknown items are one more item."""
    of = random_log(5, 0.4)
    counted = replace(of, item=np.where(of.item < 0, 99, of.item).astype(np.int32))
    pairs = np.arange(len(of.pair_event))[None]
    assert np.abs(counted(pairs)[0] - slow(of)).max() > 0.1


# -- no look ahead --------------------------------------------------------------------------------------------------


def with_later_events(rows: list[Row], user: int) -> list[Row]:
    """Six more events in the last session of a user: known items, new items and repeats, each a minute later."""
    last = max((row for row in rows if row.user == user), key=lambda row: row.time)
    more = [0, 77, 1, 77, 0, 2]
    return rows + [
        Row(user, item, last.time + (n + 1) * 60 * SECOND, last.order + n + 1, last.session, len(rows) + n)
        for n, item in enumerate(more)
    ]


def scores_of_user(prepared: Prepared, user: int, make: Callable[[Prepared], Reliability]) -> np.ndarray:
    row = prepared.user_ids.tolist().index(str(user))
    return make(prepared)(np.arange(prepared.user_pairs[row], prepared.user_pairs[row + 1])[None])[0]


def check_no_look_ahead(make: Callable[[Prepared], Reliability]) -> None:
    """Appending events to the session of a test user changes no score of the pairs that were there."""
    rows = example_log()
    before = prepare_rows(rows, shape(columns=columns_of_log()))
    (user, *_) = before.user_ids[before.user_split == 2].tolist()
    after = prepare_rows(with_later_events(rows, int(user)), shape(columns=columns_of_log()))
    old, new = (scores_of_user(prepared, int(user), make) for prepared in (before, after))
    assert len(new) == len(old) + 6
    np.testing.assert_array_equal(new[: len(old)], old)


def test_no_score_looks_ahead_of_its_target() -> None:
    check_no_look_ahead(reliability_of)


def test_a_score_of_the_whole_session_is_seen() -> None:
    """Planted: the score as it was published, of the session to its end."""

    def of_whole_sessions(prepared: Prepared) -> Reliability:
        session = np.searchsorted(prepared.session_offsets, prepared.pair_event, side="right")
        return replace(reliability_of(prepared), pair_event=prepared.session_offsets[session] - 1)

    with pytest.raises(AssertionError, match="not equal"):
        check_no_look_ahead(of_whole_sessions)


# -- percentiles ----------------------------------------------------------------------------------------------------


def check_training_alone(make: Callable[[Prepared], Reliability]) -> None:
    """Slower sessions of the users of validation and test change no percentile; those of training users do."""
    prepared = prepare_rows(example_log(), shape(columns=columns_of_log()))
    owner = np.repeat(np.arange(prepared.n_users), np.diff(prepared.session_offsets[prepared.user_sessions]))
    training = prepared.user_split[owner] == 0
    assert 0 < training.mean() < 1
    plain = make(prepared)
    for slower, factor in ((~training, 1), (training, 3)):
        other = make(replace(prepared, time=np.where(slower, 3 * prepared.time, prepared.time)))
        assert other.p95_events == plain.p95_events
        assert other.p95_duration == pytest.approx(factor * plain.p95_duration)


def test_percentiles_are_of_the_training_users_alone() -> None:
    check_training_alone(reliability_of)


def test_percentiles_of_all_users_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "train_sessions", lambda prepared: (prepared.session_offsets[:-1], prepared.session_offsets[1:])
    )
    with pytest.raises(AssertionError):
        check_training_alone(reliability_of)


def test_pieces_give_the_same_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_rows(example_log(), shape(columns=columns_of_log()))
    whole = reliability_of(prepared)
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 5)
    parts = reliability_of(prepared)
    assert (parts.p95_events, parts.p95_duration) == (whole.p95_events, whole.p95_duration)


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_carries_the_scores_of_its_support() -> None:
    """Fewer support pairs: the same scores of those that are left. None where nothing asked for them."""
    of = random_log(7, 0.2)
    batcher = Batcher(of.item, of.pair_begin, of.pair_event, 4, of)
    user, first = np.arange(3), np.array([0, 50, 90])
    whole = batcher.episodes(user, first, 6, 2).reliability
    assert whole is not None
    np.testing.assert_array_equal(whole, of(first[:, None] + np.arange(6)).astype(np.float32))
    for n_support in (0, 1, 4):
        fewer = batcher.episodes(user, first, n_support, 2, 6 - n_support).reliability
        np.testing.assert_array_equal(fewer, whole[:, 6 - n_support :])
    assert replace(batcher, reliability=None).episodes(user, first, 6, 2).reliability is None
