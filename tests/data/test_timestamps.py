"""Time units: every spelling of one instant is read as that instant, and mixes are refused with row and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metarec.data.source import SourceInfo, open_log
from metarec.data.spec import DatasetSpec
from metarec.errors import DataError

SECONDS = 1_600_000_000  # 2020-09-13 12:26:40 UTC
US = SECONDS * 10**6


def times(path: Path, **options: Any) -> tuple[SourceInfo, list[int]]:
    con = duckdb.connect()
    info = open_log(con, DatasetSpec(path=str(path), **options), None)
    return info, [t for (t,) in con.execute("SELECT t FROM log ORDER BY row").fetchall()]


def csv(tmp_path: Path, *values: object) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i,{v}\n" for v in values), encoding="utf-8")
    return path


def parquet(tmp_path: Path, column: pa.Array, name: str = "log") -> Path:
    path = tmp_path / f"{name}.parquet"
    pq.write_table(pa.table({"user_id": [1] * len(column), "item_id": [2] * len(column), "timestamp": column}), path)
    return path


@pytest.mark.parametrize(
    ("text", "us"),
    [
        (SECONDS, US),
        (f"{SECONDS}.0", US),
        (f"{SECONDS}.25", US + 250_000),
        (f"{SECONDS}.123456", US + 123_456),
        ("1.6e9", US),
        (SECONDS * 10**3 + 7, US + 7_000),
        (US + 7, US + 7),
        (US * 1000 + 7_999, US + 7),
        ("2020-09-13", US - 44_800 * 10**6),
        ("2020-09-13 12:26:40", US),
        ("2020-09-13T12:26:40Z", US),
        ("2020-09-13T14:26:40+02:00", US),
        ("2020-09-13T14:26:40+0200", US),
        ("2020-09-13T09:26:40-03", US),
        ("2020-09-13T12:26:40.5Z", US + 500_000),
        ("2020-09-13 14:26:40 Europe/Paris", US),
    ],
)
def test_one_instant_in_text(tmp_path: Path, text: object, us: int) -> None:
    info, found = times(csv(tmp_path, text))
    assert found == [us]
    assert info.has_clock


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_parquet_types_say_their_unit(tmp_path: Path, unit: str, zone: str | None) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    info, found = times(parquet(tmp_path, pa.array([SECONDS * scale, 5 * scale], pa.timestamp(unit, tz=zone))))
    assert found == [US, 5 * 10**6]  # five seconds after 1970 is no order number when the type says otherwise
    assert info.has_clock
    assert "timestamp[" in info.time_note


@pytest.mark.parametrize(
    ("factor", "word"), [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.uint64(), pa.decimal128(20, 0)])
def test_integers_by_size(tmp_path: Path, factor: int, word: str, kind: pa.DataType) -> None:
    info, found = times(parquet(tmp_path, pa.array([SECONDS * factor, (SECONDS + 1) * factor]).cast(kind, safe=False)))
    assert found == [US, US + 10**6]
    assert info.time_note == f"timestamp: {word} since 1970 UTC (by their size), 2020-09-13 to 2020-09-13"


def test_dates(tmp_path: Path) -> None:
    for kind in (pa.date32(), pa.date64()):
        assert times(parquet(tmp_path, pa.array([18262], pa.int32()).cast(pa.date32()).cast(kind)))[1] == [
            18262 * 86_400 * 10**6
        ]


def test_small_numbers_are_an_order_and_the_note_says_how_to_have_a_clock(tmp_path: Path) -> None:
    info, found = times(csv(tmp_path, 0, 1, 99_999_999))
    assert found == [0, 1, 99_999_999]
    assert not info.has_clock
    assert "positions in a sequence, no clock" in info.time_note
    assert "dataset.time_unit=s" in info.time_note


def test_unit_by_hand_allows_small_values(tmp_path: Path) -> None:
    for unit, factor in (("s", 10**6), ("ms", 10**3), ("us", 1)):
        info, found = times(csv(tmp_path, 0, 5, 4_000_000), time_unit=unit)
        assert found == [0, 5 * factor, 4_000_000 * factor]
        assert info.has_clock
    assert times(csv(tmp_path, SECONDS), time_unit="order")[1] == [SECONDS]
    assert times(csv(tmp_path, 1500), time_unit="ns")[1] == [1]


def test_a_clock_from_zero_passes_all_sizes(tmp_path: Path) -> None:
    # milliseconds since the start of the log: 0, 20 minutes, 12 days, 32 years
    assert times(csv(tmp_path, 0, 1_200_000, 1_036_800_000, 10**12), time_unit="ms")[1][-1] == 10**15


@pytest.mark.parametrize(
    ("values", "options", "place", "what"),
    [
        (
            [SECONDS, SECONDS, SECONDS * 1000],
            {},
            "row 3",
            "mixed time units: 1 value of this size (milliseconds), 2 of another (seconds)",
        ),
        ([0, SECONDS, SECONDS], {}, "row 1", "mixed time units: 1 value of this size (too small for a clock time)"),
        ([SECONDS, SECONDS * 1000], {"time_unit": "ms"}, "row 1", "mixed time units"),
        ([SECONDS, SECONDS * 10**6], {"time_unit": "s"}, "row 2", "mixed time units or not seconds"),
        ([SECONDS, "2020-09-13"], {}, "row 2", "not a time (the first value is a number)"),
        (["2020-09-13", SECONDS], {}, "row 2", "not a time (the first value is no number)"),
        (["2020-09-13", "13/09/2020"], {}, "row 2", "not a time"),
        (["2020-02-30"], {}, "row 1", "not a time"),
        (["infinity"], {}, "row 1", "not a time"),
        (["epoch"], {}, "row 1", "not a time"),
        ([SECONDS, "inf"], {}, "row 2", "not a time"),
        ([SECONDS, "NaT"], {}, "row 2", "not a time"),
        (["NaN"], {}, "row 1", "not a time"),
        ([SECONDS, ""], {}, "row 2", "not a time"),
        ([SECONDS, -5], {}, "row 2", "a time before 1970"),
        (["1969-12-31"], {}, "row 1", "a time before 1970"),
        ([10**19], {}, "row 1", "beyond any time"),
        ([0.5, 1], {}, "row 1", "a position in a sequence must be a whole number"),
        ([SECONDS], {"time_unit": "iso"}, "row 1", "dataset.time_unit=iso promises ISO 8601"),
        (["2020-09-13"], {"time_unit": "ms"}, "column timestamp", "contradicts"),
    ],
)
def test_bad_times_name_row_and_value(
    tmp_path: Path, values: list[object], options: dict[str, str], place: str, what: str
) -> None:
    path = csv(tmp_path, *values)
    with pytest.raises(DataError) as caught:
        times(path, **options)
    line = str(caught.value)
    assert f"{path}: {place}" in line
    assert what in line
    assert "column timestamp" in line
    if place.startswith("row") and (shown := str(values[int(place[4:]) - 1])):
        assert f": {shown}: " in line


def test_files_of_one_directory_must_agree(tmp_path: Path) -> None:
    parquet(tmp_path, pa.array([SECONDS, SECONDS]), "a")
    parquet(tmp_path, pa.array([SECONDS * 1000]), "b")
    with pytest.raises(DataError, match=r"b\.parquet: row 1: column timestamp: 1600000000000: mixed time units"):
        times(tmp_path)
    parquet(tmp_path, pa.array([SECONDS], pa.timestamp("s")), "b")
    with pytest.raises(DataError, match=r"b\.parquet: column timestamp: timestamp\[ms\]: .* a\.parquet has integer"):
        times(tmp_path)
    parquet(tmp_path, pa.array([SECONDS], pa.timestamp("us")), "a")
    with pytest.raises(DataError, match=r"timestamp\[ms\]: .* a\.parquet has timestamp\[us\]"):
        times(tmp_path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([SECONDS, None]),
        pa.array([float(SECONDS), float("nan")]),
        pa.array([float(SECONDS), float("inf")]),
        pa.array([0, None], pa.timestamp("ns")),
        pa.array([str(SECONDS), None]),
    ],
)
def test_missing_times_in_parquet(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(DataError, match=r"log\.parquet: row 2: column timestamp: (null|nan|inf): not a time"):
        times(parquet(tmp_path, column))


def test_columns_that_are_no_times(tmp_path: Path) -> None:
    for column in (pa.array([1.5e9], pa.float32()), pa.array([True]), pa.array([[1]]), pa.array([b"x"])):
        with pytest.raises(DataError, match=r"log\.parquet: column timestamp: .*cannot be read as a time"):
            times(parquet(tmp_path, column))


def test_the_machine_zone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    con = duckdb.connect()
    con.execute("SET TimeZone = 'America/New_York'")
    open_log(con, DatasetSpec(path=str(csv(tmp_path, "2020-09-13 12:26:40"))), None)
    assert con.execute("SELECT t FROM log").fetchone() == (US,)
