"""A corpus of bad files: each is one DataError of one line that names the place and gives a way out, and leaves
nothing behind.

The kinds follow the list of bad input that the project promises to meet; bad times are in test_timestamps.py.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from metarec.data.source import open_log
from metarec.data.spec import Columns, DatasetSpec
from metarec.errors import DataError

HEAD = "user_id,item_id,timestamp\n"
GOOD = HEAD + "u1,a,1\nu1,b,2\n"
TABLE = pa.table({"user_id": [1, 1], "item_id": [5, 6], "timestamp": [1, 2]})


def refused(path: Path, *parts: str, **options: Any) -> str:
    """The message of the refusal of `path`; checks class, form and the `parts` it must hold."""
    with pytest.raises(DataError) as caught:
        open_log(duckdb.connect(), DatasetSpec(path=str(path), **options), None)
    line = str(caught.value)
    assert type(caught.value) is DataError
    assert "\n" not in line
    assert len(line) < 700
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "an engine's error shines through"
    place, _, way_out = line.partition(" -- ")
    assert way_out, "no way out is given"
    assert str(path.name) in place or place.startswith(("dataset.", "data_dir"))
    for part in parts:
        assert part in line, f"{part!r} not in {line!r}"
    return line


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_good_file_passes(tmp_path: Path) -> None:
    assert open_log(duckdb.connect(), DatasetSpec(path=str(text(tmp_path / "x.csv", GOOD))), None).n_rows == 2


def test_no_path_at_all() -> None:
    with pytest.raises(DataError, match=r"dataset\.path: null: no file is given -- say dataset\.path=FILE"):
        open_log(duckdb.connect(), DatasetSpec(), None)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    text(tmp_path / "events.csv", GOOD)
    refused(tmp_path / "event.csv", "there is no such file", f"did you mean {tmp_path / 'events.csv'}?")
    refused(tmp_path / "no" / "event.csv", "there is no such file", "check dataset.path")
    text(tmp_path / "plain", "x")
    refused(tmp_path / "plain" / "event.csv", "the file cannot be read")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "0 bytes: the file is empty"),
        (b"\n\n", "blank: the file is empty"),
        (HEAD, "0 rows: the log has no rows"),
        (HEAD.strip(), "0 rows: the log has no rows"),
        (b"\xef\xbb\xbf", "the file is empty"),
    ],
)
def test_empty_csv(tmp_path: Path, content: str | bytes, part: str) -> None:
    refused(text(tmp_path / "x.csv", content), part)


def test_empty_gzip_and_parquet(tmp_path: Path) -> None:
    refused(text(tmp_path / "x.csv.gz", gzip.compress(b"")), "the file is empty")
    refused(text(tmp_path / "x.csv.gz", gzip.compress(HEAD.encode())), "the log has no rows")
    pq.write_table(TABLE.slice(0, 0), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "the log has no rows")


def test_directories(tmp_path: Path) -> None:
    refused(tmp_path, "nothing: the directory holds no Parquet file")
    text(tmp_path / "x.csv", GOOD)
    refused(tmp_path, "x.csv: the directory holds no Parquet file")
    refused(tmp_path, "CSV is read from one file", format="csv")
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(DataError, match=r"x\.parquet: a directory: Parquet files are read from one level only"):
        open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path)), None)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.csv.gz"])
def test_a_fifo_does_not_hang(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "a FIFO", "write it to a file first")


def test_devices_loops_and_dangling_links(tmp_path: Path) -> None:
    refused(Path("/dev/null"), "a device or socket")
    (tmp_path / "a.csv").symlink_to(tmp_path / "b.csv")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "cannot be read")
    (tmp_path / "c.csv").symlink_to(tmp_path / "gone.csv")
    refused(tmp_path / "c.csv", "there is no such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = text(tmp_path / "x.csv", GOOD)
    path.chmod(0)
    refused(path, "Permission denied", "check its permissions")


def test_unreadable_file_for_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text(tmp_path / "x.csv", GOOD)

    def deny(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)
    refused(path, "Permission denied", "check its permissions")


def _feather(path: Path) -> None:
    pyarrow.feather.write_feather(TABLE, path)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps([1, 2]))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xl/workbook.xml", "<x/>")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (_feather, "Feather"),
        (_pickle, "a Python pickle"),
        (_zip, "a zip or xlsx file"),
        (lambda p: np.save(p.open("wb"), np.ones(3)), "a NumPy .npy file"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + b"\1" * 50), "an SQLite"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>not found</html>"), "an HTML page"),
        (lambda p: p.write_bytes(b"(\xb5/\xfd" + b"x" * 40), "zstd"),
        (lambda p: p.write_bytes(b"BZh9" + b"x" * 40), "bzip2"),
        (lambda p: p.write_bytes(b"\x01\x02\x00\x03" * 20), "a binary file"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather", ".xlsx", ""])
def test_foreign_formats_are_named(tmp_path: Path, make: Callable[[Path], Any], part: str, suffix: str) -> None:
    make(tmp_path / f"x{suffix}")
    refused(tmp_path / f"x{suffix}", part, "CSV, CSV.gz or Parquet")


def test_wrong_suffix(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "x.csv")
    refused(tmp_path / "x.csv", "parquet: taken for csv by its name", "dataset.format=parquet")
    assert open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path / "x.csv"), format="parquet"), None).n_rows == 2
    refused(text(tmp_path / "x.parquet", GOOD), "text: taken for parquet by its name", "dataset.format=csv")
    refused(text(tmp_path / "x.data", GOOD), "it looks like text", "dataset.format=csv")
    refused(text(tmp_path / "y.csv", gzip.compress(GOOD.encode())), "gzip", "rename it to y.csv.gz")
    refused(text(tmp_path / "y.csv.gz", GOOD), "the file is not gzip")
    refused(text(tmp_path / "z.csv", json.dumps([{"user_id": 1}])), "JSON: not CSV")
    refused(text(tmp_path / "z.csv.gz", gzip.compress(b"PK\x03\x04" + b"x" * 40)), "zip")


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress((HEAD + "".join(f"u{i},a,{i}\n" for i in range(50_000))).encode())
    for share in (0.3, 0.9, 0.9999):
        refused(
            text(tmp_path / "x.csv.gz", whole[: int(len(whole) * share)]), "the gzip stream is cut off", "gzip -t FILE"
        )
    refused(text(tmp_path / "x.csv.gz", whole[:11]), "gzip")


def test_flipped_bits_in_gzip_are_all_found(tmp_path: Path) -> None:
    # the engine alone reads on where only the checksum tells (planted: the last bytes are the checksum)
    whole = gzip.compress((HEAD + "".join(f"u{i},a,{i}\n" for i in range(9_000))).encode())
    rng = np.random.default_rng(1)
    for at in [len(whole) - 6, len(whole) - 2, *rng.integers(12, len(whole), 30)]:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        refused(text(tmp_path / "x.csv.gz", bytes(broken)), "x.csv.gz")


def refusal(path: Path) -> str | None:
    try:
        open_log(duckdb.connect(), DatasetSpec(path=str(path)), None)
    except DataError as error:
        return str(error)
    return None


def _log(n: int = 20_000) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "user_id": rng.integers(0, 999, n),
            "item_id": [f"i{k}" for k in rng.integers(0, 999, n)],
            "timestamp": np.arange(n) + 10**9,
        }
    )


def test_truncated_parquet(tmp_path: Path) -> None:
    pq.write_table(_log(), tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    for end in (5, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        refused(text(tmp_path / "x.parquet", whole[:end]), "x.parquet", "get a fresh copy")


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_flipped_bits_in_parquet_with_page_checksums_are_all_found(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(_log(), path, compression=compression, write_page_checksum=True)
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    silent = 0
    for at in rng.integers(4, len(whole) - footer, 40):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        silent += refusal(path) is None and not pq.read_table(path).equals(_log())
    assert silent == 0


def test_any_damage_of_parquet_is_one_line_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(_log(2_000), path)
    whole, rng = path.read_bytes(), np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(whole)
        at = int(rng.integers(4, len(whole)))
        broken[at : at + 16] = bytes(len(broken[at : at + 16]))
        path.write_bytes(broken)
        line = refusal(path)
        assert line is None or (" -- " in line and "\n" not in line)


# --- CSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (GOOD + "u2,c,3,4\n", ["line 4: u2,c,3,4: the header names 3 columns, this row has 4 fields"]),
        (HEAD + "u1,a,1,9\nu1,b,2,9\n", ["line 2", "this row has 4 fields"]),
        (GOOD + "u2,c\n", ["line 4: u2,c: the header names 3 columns, this row has 2 fields"]),
        (GOOD + "u2,c", ["line 4", "this row has 2 fields"]),  # cut in mid-line
        (HEAD + 'u1,"a,1\nu1,b,2\n', ["line 2", "a quote is opened and never closed"]),
        (GOOD.replace("u1,b", "u\0,b"), ["NUL", "write the file again as UTF-8 CSV"]),
        (HEAD + "u1,a,1\n" * 200_000 + "u1,b\0,2\n", ["line 200002: NUL byte"]),
        (GOOD.encode("utf-16"), ["UTF-16 text: CSV is read as UTF-8", "iconv"]),
        (GOOD.encode("utf-16-le"), ["UTF-16 text"]),
        (GOOD.encode() + b"u\xe9,c,3\n", ["line 4", "bytes that are not UTF-8", "iconv"]),
        (HEAD.encode() + b"u,a,1\n" * 20_000 + b"u\xe9,c,3\n", ["line 20002", "not UTF-8"]),
        (GOOD.replace(",", ";"), ["separated by ';'", "'dataset.delimiter=\";\"'"]),
        (GOOD.replace(",", "\t"), ["separated by tab", "dataset.delimiter=tab"]),
        (GOOD.replace(",", "|"), ["separated by '|'"]),
        (HEAD + "u1,a,1\r\nu1,b,2\n", ["line ends are mixed"]),
        (HEAD.replace("item_id", "user_id") + "a,b,1\n", ["line 1: user_id: a column name stands twice"]),
        (
            HEAD.replace("item_id", "itemid") + "a,b,1\n",
            [
                "header: item_id: no such column",
                "'user_id', 'itemid', 'timestamp'",
                "did you mean itemid?",
                "dataset.columns.item=itemid",
            ],
        ),
        (HEAD.upper() + "a,b,1\n", ["did you mean USER_ID?"]),
        (HEAD.replace(",", ", ") + "a,b,1\n", ["did you mean item_id?"]),
        ("1,2,3\n1,2,4\n", ["is there a header line?", "dataset.columns.user=NAME"]),
        ("user_id\n1\n", ["item_id: no such column"]),
        ("user_id,note,item_id,timestamp\nu,,a,1\nu,,,2\n", ["row 2: column item_id: '': the item id is empty"]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_csv(tmp_path: Path, content: str | bytes, parts: list[str], zipped: bool) -> None:
    raw = content.encode() if isinstance(content, str) else content
    refused(text(tmp_path / ("x.csv.gz" if zipped else "x.csv"), gzip.compress(raw) if zipped else raw), *parts)


def test_bad_mapping(tmp_path: Path) -> None:
    path = text(tmp_path / "x.csv", GOOD)
    refused(path, "header: visit", "dataset.columns.session=NAME", columns=Columns(session="visit"))
    refused(path, "user and item are the same column", columns=Columns(item="user_id"))
    refused(path, "dataset.columns.order: null", "dataset.ties=item|row", ties="order")
    refused(path, "dataset.delimiter: ;;: not one character", delimiter=";;")
    refused(
        text(tmp_path / "y.csv", "user_id,item_id,timestamp,p\nu,a,1,1.5\n"),
        "row 1: column p: 1.5: not a whole number",
        ties="order",
        columns=Columns(order="p"),
    )


def test_bad_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE.rename_columns(["uid", "item_id", "timestamp"]), path)
    refused(path, "header: user_id: no such column", "dataset.columns.user=")
    for column in (
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"x", b"y"]),
        pa.array([True, False]),
        pa.array([0, 1], pa.timestamp("s")),
    ):
        pq.write_table(TABLE.set_column(1, "item_id", column), path)
        refused(path, "column item_id", "cannot be read as whole numbers or text")
    pq.write_table(TABLE.append_column("User_ID", pa.array([1, 2])), path)
    refused(path, "user_id", "equal but for case")


def test_files_that_disagree(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.set_column(0, "user_id", pa.array(["1", "2"])), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column user_id: text: .* a\.parquet has integer"):
        open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path)), None)
    pq.write_table(TABLE.drop_columns("item_id"), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: header: item_id: no such column"):
        open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path)), None)
    text(tmp_path / "b.parquet", GOOD)
    with pytest.raises(DataError, match=r"b\.parquet: text: taken for parquet"):
        open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path)), None)


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("u1,a,1\n,b,2\n,c,3\n", ["row 2: column user_id: '': the user id is empty (and in 1 more rows)"]),
        ("u1,,1\n", ["row 1: column item_id: '': the item id is empty"]),
        ('u1,"",1\n', ["row 1: column item_id", "is empty"]),
        ("u1,a,1\nu1 ,b,2\n", ["row 2: column user_id: 'u1 ': white space"]),
        ("u1,\ta,1\n", ["row 1: column item_id", "white space"]),
        ("u1,\u00a0a,1\n", ["white space"]),
        ("caf\u00e9,a,1\ncafe\u0301,b,2\n", ["column user_id", "two Unicode forms (NFC and NFD)"]),
    ],
)
def test_bad_ids_in_csv(tmp_path: Path, rows: str, parts: list[str]) -> None:
    refused(text(tmp_path / "x.csv", HEAD + rows), *parts)


@pytest.mark.parametrize(
    ("column", "part"),
    [
        (pa.array([1, None]), "row 2: column user_id: null: the user id is missing"),
        (pa.array(["a", None]), "null: the user id is missing"),
        (pa.array([1.0, float("nan")]), "row 2: column user_id: nan: the user id is a float and not a whole number"),
        (pa.array([1.0, 1.5]), "row 2: column user_id: 1.5"),
        (pa.array([1.0, 1e300]), "1e+300"),
        (pa.array([1.0, None]), "row 2"),
        (pa.array(["a", "b\0"]), "white space or NUL"),
    ],
)
def test_bad_ids_in_parquet(tmp_path: Path, column: pa.Array, part: str) -> None:
    pq.write_table(TABLE.set_column(0, "user_id", column), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", part)


def test_the_row_is_right_in_a_large_file_and_in_the_second_file(tmp_path: Path) -> None:
    lines = [f"u{i},a,{i}" for i in range(150_000)]
    lines[123_456] = ",a,5"
    refused(text(tmp_path / "x.csv", HEAD + "\n".join(lines)), "row 123457: column user_id")
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.set_column(1, "item_id", pa.array([7, None])), tmp_path / "b.parquet", row_group_size=1)
    with pytest.raises(DataError, match=r"b\.parquet: row 2: column item_id: null"):
        open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path)), None)


def test_pandas_files_of_every_day_pass(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"user_id": [3, 1], "item_id": ["x", "y"], "timestamp": pd.to_datetime([1, 2], unit="s", utc=True)}
    )
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_csv(tmp_path / "x.csv")  # with its unnamed index column
    for name in ("x.parquet", "x.csv"):
        assert open_log(duckdb.connect(), DatasetSpec(path=str(tmp_path / name)), None).has_clock
