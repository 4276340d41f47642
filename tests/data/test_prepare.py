"""Preparation against a slow second version, its funnel, its refusals, its cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.prepare_reference import Row
from reference.small_logs import (
    SPLIT,
    assert_as_reference,
    columns_of_log,
    example_log,
    logs,
    prepare_or_none,
    quick,
    shape,
    write_log,
)

from metarec.data import pipeline, sql, store
from metarec.data.prepare import prepare
from metarec.data.spec import Core, DatasetSpec, EpisodeShape, Sessions, Split, WorldSpec
from metarec.errors import ConfigError, DataError


@st.composite
def specs(draw: st.DrawFn) -> tuple[DatasetSpec, str, str]:
    """(spec, session rule, split rule)."""
    rule = draw(st.sampled_from(["gap", "user", "column"]))
    by = draw(st.sampled_from(["user_time", "user_disjoint", "leave_one_out", "column"]))
    spec = shape(
        draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)), by=by,
        sessions=Sessions(by=rule, min_events=draw(st.integers(2, 3)), drop_repeats=draw(st.booleans()),
                          order=draw(st.sampled_from(["real", "shuffled"])), shuffle_seed=draw(st.integers(0, 2))),
        ties=draw(st.sampled_from(["item", "row", "order"])), duplicates=draw(st.sampled_from(["drop", "keep"])),
        columns=columns_of_log(), core=draw(st.sampled_from([Core(), Core(5, 0), Core(0, 8), Core(6, 9)])),
    )  # fmt: skip
    return spec, rule, by


@quick
@given(logs(), specs())
def test_as_the_slow_reference(rows: list[Row], options: tuple[DatasetSpec, str, str]) -> None:
    spec, rule, by = options
    assert_as_reference(prepare_or_none(rows, spec), rows, spec, rule, by)


def test_one_user_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for by in ("user_time", "user_disjoint", "column"):
        spec = shape(by=by, core=Core(2, 2))
        whole = prepare_or_none(example_log(), spec)
        monkeypatch.setattr(pipeline, "PART_ROWS", 1)
        monkeypatch.setattr(pipeline, "BATCH_ROWS", 7)
        parts = prepare_or_none(example_log(), spec)
        monkeypatch.undo()
        assert whole is not None
        assert parts is not None
        for name in store.ARRAYS:
            np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
        assert whole.funnel == parts.funnel


@pytest.mark.parametrize(
    ("step", "right", "wrong"),
    [
        ("flagged", "> 1800000000", ">= 1800000000"),  # a gap of exactly 30 minutes
        ("long_sessions", "n_events >= 2", "n_events > 2"),
        ("changes", "opens = 1 OR same_item = 0", "same_item = 0"),  # the same item after a pause
        ("in_order", "ORDER BY u, t", "ORDER BY u, -t"),
        ("without_repeats", "copy = 1", "copy <= 2"),
        ("in_time", "split = 0 AND part.t <", "split = 0 AND part.t <="),
        ("event_time_at", "n_up_to >", "n_up_to > 1 +"),
        ("numbered", "ORDER BY t", "ORDER BY -t"),
        ("split_codes", "WHEN 'test' THEN 2", "WHEN 'test' THEN 0"),
        ("split_codes", "ORDER BY user_code.code", "ORDER BY user_code.code DESC"),
    ],
)
def test_reference_finds_faults_planted_in_the_sql(
    monkeypatch: pytest.MonkeyPatch, step: str, right: str, wrong: str
) -> None:
    original = getattr(sql, step)

    def planted(*arguments: object, **options: object) -> str:
        text: str = original(*arguments, **options)
        assert right in text
        return text.replace(right, wrong)

    monkeypatch.setattr(sql, step, planted)
    with pytest.raises((AssertionError, DataError)):
        fault_shows()


def fault_shows() -> None:
    """Logs in which each planted fault must show."""
    for by, shift in (("user_disjoint", 0), ("user_time", 0), ("user_time", 600), ("column", 0)):
        rows = example_log()
        for user in range(9):  # a gap of exactly 30 minutes, the same item on both sides of a long pause, a duplicate
            last = max(row.time for row in rows if row.user == user)
            later = [(1, 1_800), (3, 1_801), (3, 60), (2, 60), (2, 1_900), (1, 60)]
            for item, gap in later:
                last += gap * 1_000_000
                rows.append(Row(user, item, last, split=SPLIT[user]))
            rows.append(Row(user, 1, last, split=SPLIT[user]))
        for place, row in enumerate(rows):
            row.place = place
            row.time -= row.user * shift * 1_000_000  # 600: all users at the same times, so some train at the cut
        spec = shape(by=by)
        assert_as_reference(prepare_or_none(rows, spec), rows, spec, "gap", by)


def test_the_same_logs_without_a_fault() -> None:
    fault_shows()


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(rows: list[Row], spec: DatasetSpec, tmp_path: Path, kind: type[Exception] = DataError) -> str:
    write_log(rows, tmp_path / "log.parquet")
    spec.path = str(tmp_path / "log.parquet")
    with pytest.raises(kind) as caught:
        prepare(spec, data_dir=None, cache_dir=tmp_path / "cache")
    text = str(caught.value)
    assert "\n" not in text
    # nothing half-written: only the lock remains
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    return text


def test_duplicates_name_the_row(tmp_path: Path) -> None:
    rows = example_log()
    rows += [rows[17], rows[30]]
    text = refused(rows, shape(duplicates="error"), tmp_path)
    assert "log.parquet: row 218: user 1, item 2: repeats row 31" in text  # the earliest
    assert "dataset.duplicates=drop drops the 2 repeats" in text


def test_k_above_what_users_have(tmp_path: Path) -> None:
    text = refused(example_log(), shape(k=30, q=2), tmp_path)
    assert text.startswith("dataset.episodes.n_support: 30: no user of split train has the 30+2 pairs")
    assert "the longest of 3 users there has 18 (user " in text
    assert text.endswith("say dataset.episodes.n_support=16 or less")
    assert "lower dataset.episodes.n_support and n_query" in refused(example_log(), shape(k=3, q=40), tmp_path)


def test_nobody_left_names_the_filter(tmp_path: Path) -> None:
    text = refused(example_log(), shape(core=Core(25, 0)), tmp_path)
    assert "0 events left: of 216 rows k-core dropped 216 (users of fewer than 25 events" in text
    text = refused(example_log(), shape(sessions=Sessions(min_events=9)), tmp_path)
    assert "short sessions dropped 216 (sessions of fewer than 9 events)" in text


def test_split_left_empty(tmp_path: Path) -> None:
    rows = [row for row in example_log() if row.user < 2]
    assert "split train" in refused(rows, shape(), tmp_path)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (DatasetSpec(episodes=EpisodeShape(n_support=0)), "dataset.episodes.n_support: 0"),
        (DatasetSpec(episodes=EpisodeShape(n_query=-1)), "dataset.episodes.n_query: -1"),
        (DatasetSpec(episodes=EpisodeShape(stride=0)), "dataset.episodes.stride: 0"),
        (DatasetSpec(split=Split(fractions=[0.5, 0.1, 0.3])), "the shares sum to 0.9, not to 1"),
        (DatasetSpec(split=Split(fractions=[0.5, 0.5])), "needs three shares"),
        (DatasetSpec(split=Split(time_quantiles=[0.8, 0.7])), "dataset.split.time_quantiles"),
        (DatasetSpec(split=Split(by="user-time")), "did you mean user_time?"),
        (DatasetSpec(sessions=Sessions(min_events=1)), "dataset.sessions.min_events: 1"),
        (DatasetSpec(sessions=Sessions(gap_minutes=0)), "dataset.sessions.gap_minutes: 0"),
        (DatasetSpec(sessions=Sessions(by="column")), "dataset.columns.session=NAME"),
        (
            DatasetSpec(split=Split(by="column")),
            "dataset.split.by: column: no split column is named -- say dataset.columns",
        ),
        (DatasetSpec(core=Core(-1, 0)), "dataset.core.min_user_events: -1"),
        (DatasetSpec(duplicates="dorp"), "did you mean drop?"),
        (DatasetSpec(memory_limit="much"), "dataset.memory_limit: much"),
    ],
)
def test_options_out_of_range(spec: DatasetSpec, key: str, tmp_path: Path) -> None:
    assert key in refused(example_log(), spec, tmp_path, ConfigError)


def test_order_without_a_clock(tmp_path: Path) -> None:
    orders = [Row(row.user, row.item, row.order * 1_000_000, row.order, 0, row.place) for row in example_log()]
    asked = {"time_unit": "order"}
    assert "no clock, so no time to cut at" in refused(orders, shape(by="user_time", **asked), tmp_path, ConfigError)
    spec = shape(sessions=Sessions(by="gap"), **asked)
    assert "no clock, so no gap in minutes" in refused(orders, spec, tmp_path, ConfigError)
    prepared = prepare_or_none(orders, shape(by="auto", **asked))
    assert prepared is not None
    assert (prepared.split_by, prepared.has_clock, prepared.leaky) == ("user_disjoint", False, False)
    assert "order only: no time cut possible" in prepared.split_note
    assert len(prepared.session_offsets) == prepared.n_users + 1  # one sequence per user


def test_leak_is_counted(tmp_path: Path) -> None:
    prepared = prepare_or_none(example_log(), shape(by="user_disjoint"))
    assert prepared is not None
    ranges = prepared.episodes("test")
    earliest = min(prepared.time[prepared.pair_event[p + ranges.n_support]] for p in ranges.first_pair)
    ends = zip(prepared.user_sessions[:-1], prepared.train_event_end, strict=True)
    late = sum(int((prepared.time[prepared.session_offsets[s] : end] > earliest).sum()) for s, end in ends)
    assert late > 0
    assert prepared.leaky
    assert f"{late:,} training events are later than the earliest test target" in prepared.split_note
    cut = prepare_or_none(example_log(), shape(k=1, by="user_time"))
    assert cut is not None
    assert not cut.leaky
    left = prepare_or_none(example_log(), shape(by="leave_one_out"))
    assert left is not None
    assert left.leaky


# --- kinds of input --------------------------------------------------------------------------------------------------


def test_ids_that_look_like_numbers_sort_as_numbers(tmp_path: Path) -> None:
    big, rows = 2**70, []
    for row in example_log():
        rows.append(Row(str((row.user - 4) * big), str((row.item - 2) * 10**row.item), row.time, 0, 0, len(rows)))
    prepared = prepare_or_none(rows, shape())
    assert prepared is not None
    assert [int(user) for user in prepared.user_ids] == [(n - 4) * big for n in range(9)]
    assert [int(item) for item in prepared.item_ids] == sorted(int(item) for item in prepared.item_ids)
    for row in rows:
        row.user = f"0{row.user}"  # no canonical number any more
    prepared = prepare_or_none(rows, shape())
    assert prepared is not None
    assert prepared.user_ids.tolist() == sorted(prepared.user_ids.tolist())


def test_csv_and_parquet_agree(tmp_path: Path) -> None:
    write_log(example_log(), tmp_path / "log.parquet")
    pq.read_table(tmp_path / "log.parquet").to_pandas().to_csv(tmp_path / "log.csv", index=False)
    found = [
        prepare(shape(path=str(tmp_path / name)), data_dir=None, cache_dir=tmp_path)
        for name in ("log.csv", "log.parquet")
    ]
    for name in store.ARRAYS:
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert found[0].vocabulary_sha256 == found[1].vocabulary_sha256


def test_embedded_world(tmp_path: Path) -> None:
    spec = DatasetSpec(name="synthetic", source="synthetic", world=WorldSpec(n_users=300))
    prepared = prepare(spec, data_dir=None, cache_dir=tmp_path)
    assert prepared.split_by == "user_disjoint"
    assert (prepared.root / "world.npz").is_file()
    assert min(np.diff(prepared.session_offsets)) >= 2
    assert max(np.diff(prepared.session_offsets)) <= 4
    assert "world.npz" in json.loads((prepared.root / "manifest.json").read_text())["files"]


def test_one_long_session(tmp_path: Path) -> None:
    n = 200_000
    time = np.arange(n) + 1_600_000_000
    table = {"user_id": np.arange(n) % 4, "item_id": np.arange(n) // 4 % 7, "timestamp": time}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    prepared = prepare(shape(path=str(tmp_path / "log.parquet")), data_dir=None, cache_dir=tmp_path)
    assert np.diff(prepared.session_offsets).tolist() == [n // 4] * 4
