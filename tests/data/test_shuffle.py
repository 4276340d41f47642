"""Sessions in shuffled order: nothing but items changes hands, and only inside a session and a side of the split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import shuffle_reference
from reference.prepare_reference import Row
from reference.small_logs import example_log, shape, write_log

from metarec.data import bayes, cache, guards, pipeline, shuffle, store
from metarec.data.export import export_tables
from metarec.data.prepare import prepare
from metarec.data.spec import DatasetSpec, Sessions, WorldSpec
from metarec.data.store import Prepared
from metarec.data.synthetic import World
from metarec.errors import ConfigError, DataError

RULES = ["user_time", "user_disjoint", "leave_one_out", "column"]
SHUFFLED = Sessions(order="shuffled")


def prepared(rows: list[Row], place: Path, **options: Any) -> Prepared:
    place.mkdir(exist_ok=True)
    write_log(rows, place / "log.parquet")
    return prepare(shape(path=str(place / "log.parquet"), **options), data_dir=None, cache_dir=place)


def both(tmp_path: Path, **options: Any) -> tuple[Prepared, Prepared]:
    sessions = options.pop("sessions", Sessions())
    real = prepared(example_log(), tmp_path, sessions=sessions, **options)
    return real, prepared(example_log(), tmp_path, sessions=replace(sessions, order="shuffled"), **options)


def sides(one: Prepared) -> Iterator[list[int]]:
    """The events of every session, those for training apart from those that are judged, by loops."""
    for user in range(one.n_users):
        for session in range(*one.user_sessions[[user, user + 1]].tolist()):
            events = list(range(*one.session_offsets[[session, session + 1]].tolist()))
            yield [e for e in events if e < one.train_event_end[user]]
            yield [e for e in events if e >= one.train_event_end[user]]


@pytest.mark.parametrize("by", RULES)
@pytest.mark.parametrize("sessions", [Sessions(), Sessions(by="user", drop_repeats=False)], ids=["gap", "user"])
def test_nothing_but_items_changes_hands(by: str, sessions: Sessions, tmp_path: Path) -> None:
    real, other = both(tmp_path, by=by, sessions=sessions)
    for name in store.ARRAYS:
        assert (name == "item") != np.array_equal(getattr(real, name), getattr(other, name)), name
    assert real.item_ids.tolist() == other.item_ids.tolist()
    assert real.vocabulary_sha256 == other.vocabulary_sha256
    assert real.counts.keys() == other.counts.keys()
    for split in store.SPLITS:
        assert real.episodes(split).sha256 == other.episodes(split).sha256
    for events in sides(real):
        assert sorted(real.item[events]) == sorted(other.item[events])
    assert np.array_equal(other.real_item, real.item)
    assert (real.order, other.order) == ("real", "shuffled")


def test_held_out_targets_of_leave_one_out_stay(tmp_path: Path) -> None:
    real, other = both(tmp_path, by="leave_one_out", sessions=Sessions(by="user"))
    last = real.user_pairs[1:]
    for pair in (last - 1, last - 2):
        assert np.array_equal(real.item[real.pair_event[pair]], other.item[real.pair_event[pair]])
    assert not np.array_equal(real.item[real.pair_event[last - 3]], other.item[real.pair_event[last - 3]])


def test_a_planted_crossing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permuted over the whole session, a held out target would be trained on; the guard sees it."""
    monkeypatch.setattr(shuffle, "_cuts", lambda *_: np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"guard order: event row \d+, user .* on another side of the split"):
        both(tmp_path, by="leave_one_out", sessions=Sessions(by="user"))


def test_a_planted_exchange_between_sessions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that sort all events of a piece at once carry items into other sessions and other users."""
    monkeypatch.setattr(guards, "check", lambda one: None)  # the arrays alone tell
    with monkeypatch.context() as patch:
        patch.setattr(shuffle.np, "lexsort", lambda keys: np.argsort(keys[0]))
        real, other = both(tmp_path)
    assert any(sorted(real.item[events]) != sorted(other.item[events]) for events in sides(real))


@pytest.mark.parametrize("fault", ["another item", "two sessions", "shorter"])
def test_the_guard_finds_planted_faults(fault: str, tmp_path: Path) -> None:
    _, other = both(tmp_path)
    guards.check(other)
    item = np.array(other.item)
    at = int(other.session_offsets[3])
    if fault == "another item":
        item[at] = item[at] % other.n_items + 1
    if fault == "two sessions":
        before = next(e for e in range(at) if item[e] != item[at])
        item[[at, before]] = item[[before, at]]
    wrong = replace(other, item=item)
    wrong.__dict__["real_item"] = other.real_item[:-1] if fault == "shorter" else other.real_item
    with pytest.raises(DataError, match="guard order"):
        guards.check_order(wrong)


def test_equal_items_may_meet_and_repeats_are_judged_in_the_real_order(tmp_path: Path) -> None:
    """An item at two times may come to stand twice at one of them: the guard of repeats reads the order of the log."""
    rows = [
        Row(user, item, (1_600_000_000 + minute * 60) * 1_000_000)
        for user in range(30)
        for item, minute in ((1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1))
    ]
    other = prepared(rows, tmp_path, k=1, sessions=Sessions(order="shuffled"))
    guards.check(other)
    seen = [(e // 6, int(other.time[e]), int(other.item[e])) for e in range(len(other.item))]
    assert len(set(seen)) < len(seen)
    assert len(other.item) == len(rows)  # none is dropped
    met = int((other.item[1:] == other.item[:-1])[np.arange(len(rows) - 1) % 6 != 5].sum())
    assert met > 0
    assert f" {met} the item of the one before them" in other.funnel[-1]["why"]


# --- the permutation ----------------------------------------------------------------------------------------------------


def test_the_published_numbers_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert shuffle.event_keys(np.array([1234567], np.uint64), np.array([4])).tolist() == published
    assert [shuffle_reference.splitmix(1234567, n) for n in (1, 2, 3, 4)] == published


def directory(place: Path, n_users: int, lengths: list[int]) -> Path:
    """Sessions of these lengths for every user; an item is its place in the session, from 1."""
    place.mkdir()
    sessions = np.tile(lengths, n_users)
    arrays = {
        "item": np.tile(np.concatenate([np.arange(length) + 1 for length in lengths]), n_users),
        "session_offsets": np.concatenate([[0], np.cumsum(sessions)]),
        "user_sessions": np.arange(n_users + 1) * len(lengths),
    }
    store.write_arrays(place, arrays)
    np.save(place / "numbers.npy", np.tile(np.arange(len(lengths), dtype=np.int32) + 1, n_users))
    return place


def items(place: Path, names: list[str], lengths: list[int], seed: int = 0) -> np.ndarray:
    """int32 [users, events of each] after the shuffle."""
    root = directory(place, len(names), lengths)
    done = shuffle.shuffle_items(root, root / "numbers.npy", names, seed, "user_disjoint")
    new = np.load(root / "item.npy")
    assert done.moved == int((new != np.load(root / "real_item.npy")).sum())
    return new.reshape(len(names), -1)


def test_as_the_slow_reference_and_in_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, lengths = ["u1", "2", "é", ""], [2, 7, 1, 4]
    expected = [
        [
            place + 1
            for s, length in enumerate(lengths)
            for place in shuffle_reference.order(name, s + 1, 5, range(length))
        ]
        for name in names
    ]
    assert items(tmp_path / "whole", names, lengths, 5).tolist() == expected
    for size in (1, 8, 15):
        monkeypatch.setattr(shuffle, "CHUNK_EVENTS", size)
        assert items(tmp_path / str(size), names, lengths, 5).tolist() == expected


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def places(drawn: np.ndarray) -> np.ndarray:
    """Which of the permutations of three each row [N, 3] is, int64 [N]."""
    known = {one: n for n, one in enumerate(itertools.permutations((1, 2, 3)))}
    return np.array([known[tuple(row)] for row in drawn.tolist()])


def test_all_permutations_are_equally_likely_and_sessions_independent(tmp_path: Path) -> None:
    """Users by number, as logs have them: the hash of the text must do the mixing."""
    n = 6000
    drawn = items(tmp_path / "a", [str(u) for u in range(n)], [3, 3])
    first, second = places(drawn[:, :3]), places(drawn[:, 3:])
    beyond_one_in_ten_thousand = {5: 25.7, 35: 76.0}  # of chi-square by its degrees of freedom
    for counts in (np.bincount(first, minlength=6), np.bincount(second, minlength=6)):
        assert chi_square(counts) < beyond_one_in_ten_thousand[5]
    for one, other in ((first, second), (first[1:], first[:-1])):  # the same user's next session; the next user's
        assert chi_square(np.bincount(6 * one + other, minlength=36)) < beyond_one_in_ten_thousand[35]
    seeds = places(items(tmp_path / "b", [str(u) for u in range(n)], [3, 3], seed=1)[:, :3])
    assert chi_square(np.bincount(6 * first + seeds, minlength=36)) < beyond_one_in_ten_thousand[35]
    # planted faults: no user in the key, no session in the key, one transposition in a hundred too few
    assert chi_square(np.bincount(np.repeat(first[:1], n), minlength=6)) > 1000
    assert chi_square(np.bincount(6 * first + first, minlength=36)) > 1000
    lazy = np.where(np.arange(n) % 20 == 0, 0, first)
    assert chi_square(np.bincount(lazy, minlength=6)) > beyond_one_in_ten_thousand[5]


def test_users_sessions_and_seeds_differ_without_a_clock(tmp_path: Path) -> None:
    rows = [Row(user, n, n * 1_000_000, n) for user in range(9) for n in range(24)]  # the same for everybody
    options: dict[str, Any] = {"by": "auto", "time_unit": "order"}
    one = prepared(rows, tmp_path, sessions=SHUFFLED, **options)
    other = prepared(rows, tmp_path, sessions=Sessions(order="shuffled", shuffle_seed=1), **options)
    drawn = [tuple(part) for one in (one, other) for part in one.item.reshape(9, 24).tolist()]
    assert len({*drawn, tuple(range(1, 25))}) == 19
    assert "order only" in one.split_note


def test_a_user_and_his_session_are_all_that_decides(tmp_path: Path) -> None:
    """Without some of the others, in other company of rows and in other parts: the same items at the same places."""
    rows = example_log()
    whole = prepared(rows, tmp_path / "a", by="leave_one_out", sessions=SHUFFLED)
    fewer = prepared([row for row in rows if row.user % 3][::-1], tmp_path / "b", by="leave_one_out", sessions=SHUFFLED)

    def of(one: Prepared, user: str) -> list[str]:
        at = one.user_ids.tolist().index(user)
        begin, end = one.session_offsets[one.user_sessions[[at, at + 1]]]
        return one.item_ids[one.item[begin:end] - 1].tolist()  # type: ignore[no-any-return]

    for user in fewer.user_ids.tolist():
        assert of(whole, user) == of(fewer, user)
    assert len(fewer.user_ids) == 6


def test_a_session_keeps_its_number_when_an_earlier_one_is_dropped(tmp_path: Path) -> None:
    rows = example_log()
    first = {user: min(row.time for row in rows if row.user == user) for user in range(9)}
    lead = [
        Row(user, 1, first[user] - 86_400_000_000) for user in range(9)
    ]  # a session of one event, too short to keep
    one, two = (prepared([*lead, *some], tmp_path / name, by="user_disjoint", sessions=SHUFFLED)
                for name, some in (("a", rows), ("b", rows)))  # fmt: skip
    without = prepared(rows, tmp_path / "c", by="user_disjoint", sessions=SHUFFLED)
    assert np.array_equal(one.item, two.item)
    assert np.array_equal(one.session_offsets, without.session_offsets)
    assert not np.array_equal(one.item, without.item)  # every session is one later


def test_reruns_and_parts_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(example_log(), tmp_path / "a", sessions=SHUFFLED)
    monkeypatch.setattr(pipeline, "PART_ROWS", 1)
    monkeypatch.setattr(pipeline, "BATCH_ROWS", 7)
    monkeypatch.setattr(shuffle, "CHUNK_EVENTS", 5)
    two = prepared(example_log(), tmp_path / "b", sessions=SHUFFLED)
    assert one.contents == two.contents
    assert one.funnel == two.funnel


# --- what is said of it -------------------------------------------------------------------------------------------------


def test_note_and_funnel_say_it(tmp_path: Path) -> None:
    real, other = both(tmp_path)
    said = "; ORDER SHUFFLED: items permuted inside their sessions (seed 20260107), not as they came"
    assert other.split_note == real.split_note + said
    assert [step["step"] for step in other.funnel] == [*(step["step"] for step in real.funnel), "shuffled order"]
    assert other.funnel[:-1] == real.funnel
    last, before = other.funnel[-1], other.funnel[-2]
    assert {key: last[key] for key in ("rows", "users", "items", "sessions", "dropped")} == {
        **{key: before[key] for key in ("rows", "users", "items", "sessions")}, "dropped": 0,
    }  # fmt: skip


def test_real_is_what_it_was_before_there_was_another(tmp_path: Path) -> None:
    """Fingerprint of a release without the option; another seed of what is not shuffled is the same data."""
    spec = DatasetSpec(name="synthetic", source="synthetic", time_unit="order")
    spec.columns.session = "session_id"
    origin = {"world": asdict(spec.world)}
    known = "60075cc4d1fd6a3af3075dd9f73050a7"
    assert cache.fingerprint(spec, origin) == known
    assert cache.fingerprint(replace(spec, sessions=Sessions(shuffle_seed=3)), origin) == known
    found = [cache.fingerprint(replace(spec, sessions=replace(SHUFFLED, shuffle_seed=n)), origin) for n in (1, 2)]
    assert len({known, *found}) == 3
    real, other = both(tmp_path)
    assert "order" not in json.loads((real.root / "meta.json").read_text())
    assert not (real.root / "real_item.npy").exists()
    assert json.loads((other.root / "meta.json").read_text())["order"] == "shuffled"
    assert "real_item.npy" in json.loads((other.root / "manifest.json").read_text())["files"]


def test_no_bayes_and_no_tables_of_a_shuffled_log(tmp_path: Path) -> None:
    spec = DatasetSpec(name="synthetic", source="synthetic", world=WorldSpec(n_users=300), sessions=SHUFFLED)
    other = prepare(spec, data_dir=None, cache_dir=tmp_path)
    world = World.load(other.root / "world.npz")
    with pytest.raises(DataError, match=r"order=shuffled: has sessions in another order.*sessions.order=real"):
        bayes.bayes_scores(world, other, "test", [0])
    with pytest.raises(ConfigError, match=r"^export: .*dataset.sessions.order=shuffled.* -- export with"):
        export_tables(other, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            DatasetSpec(sessions=Sessions(order="shufled")),
            "dataset.sessions.order: shufled: no such choice -- did you mean",
        ),
        (DatasetSpec(sessions=Sessions(shuffle_seed=-1)), "dataset.sessions.shuffle_seed: -1: must lie in"),
        (
            DatasetSpec(source="episode_tables", sessions=SHUFFLED),
            "dataset.sessions.order: shuffled: source=episode_tables",
        ),
    ],
)
def test_refused(spec: DatasetSpec, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(spec, data_dir=None, cache_dir=tmp_path)
    assert str(caught.value).startswith(text)
