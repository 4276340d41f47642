"""JSON lines: the same events as the CSV of the same log, columns as dotted paths, and a corpus of bad lines.

Each bad file is one DataError of one line that names file, line, field and value, and gives a way out.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from metarec.data.prepare import prepare
from metarec.data.source import SourceInfo, open_log
from metarec.data.spec import Columns, DatasetSpec, EpisodeShape, Split
from metarec.data.store import ARRAYS
from metarec.errors import DataError

PATHS = Columns(user="user.id", item="event.product.sku", time="event.at")


def line(user: Any, item: Any, at: Any, **more: Any) -> str:
    return json.dumps({"user": {"id": user}, "event": {"product": {"sku": item}, "at": at, **more}})


GOOD = line("u1", "a", 1) + "\n" + line("u1", "b", 2) + "\n"


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def opened(path: Path, **options: Any) -> tuple[SourceInfo, list[tuple[Any, ...]]]:
    # as the pipeline opens it: more threads than one, and no order that is not asked for
    con = duckdb.connect(config={"preserve_insertion_order": False, "threads": 2})
    info = open_log(con, DatasetSpec(path=str(path), **{"columns": PATHS} | options), None)
    return info, con.execute("SELECT user_id, item_id, t, row, ord, session, split FROM log ORDER BY row").fetchall()


def refused(path: Path, *parts: str, **options: Any) -> str:
    """The message of the refusal of `path`; checks class, form and the `parts` it must hold."""
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    message = str(caught.value)
    assert type(caught.value) is DataError
    assert "\n" not in message
    assert len(message) < 700
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "an engine's error shines through"
    place, _, way_out = message.partition(" -- ")
    assert way_out, "no way out is given"
    assert path.name in place or place.startswith("dataset.")
    assert not re.search(r"\b(row \d|column\b)", place.replace("the same column", ""))
    for part in parts:
        assert part in message, f"{part!r} not in {message!r}"
    return message


# --- the same as CSV ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".ndjson"])
def test_the_same_rows_as_csv(tmp_path: Path, suffix: str) -> None:
    users = ["NA", "007", "u1", 5, 2**60, 2**64, 10**30, "null", 'say "x"', "é", "a,b", "-0"]
    times = [1_600_000_000 + n for n in range(len(users))]
    quoted = ['"' + str(u).replace('"', '""') + '"' for u in users]
    csv = "user_id,item_id,timestamp\n" + "".join(
        f"{q},{n},{t}\n" for n, (q, t) in enumerate(zip(quoted, times, strict=True))
    )
    text = "".join(
        line(u, n, t, other=[1, {"x": None}]) + "\n" for n, (u, t) in enumerate(zip(users, times, strict=True))
    )
    info, rows = opened(write(tmp_path / f"log{suffix}", text))
    assert (info.n_rows, info.has_clock) == (len(users), True)
    assert rows == opened(write(tmp_path / "log.csv", csv), columns=Columns())[1]
    assert info.time_note.startswith("event.at: seconds since 1970 UTC")


@pytest.mark.parametrize(
    "times",
    [
        [1_600_000_000.5, 1_600_000_001.25],
        ["1600000000", "1600000001.5"],
        ["2024-05-31T12:00:00Z", "2024-05-31T12:00:00+02:00"],
        [1_600_000_000_123, 1_600_000_000_124],
        [1_600_000_000_123_456_789, 1_600_000_001_123_456_789],
        [1, 2],
    ],
)
def test_times_are_those_of_csv(tmp_path: Path, times: list[Any]) -> None:
    csv = "user_id,item_id,timestamp\n" + "".join(f"u,i,{t}\n" for t in times)
    found = opened(write(tmp_path / "log.jsonl", "\n".join(line("u", "i", t) for t in times)))
    expected = opened(write(tmp_path / "log.csv", csv), columns=Columns())
    assert found[1] == expected[1]
    assert found[0].has_clock == expected[0].has_clock


def test_prepared_data_equal_those_of_csv(tmp_path: Path) -> None:
    events = [(f"u{u}", (u + 3 * t) % 20, 1_600_000_000 + 600 * t + u) for t in range(30) for u in range(40)]
    csv = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events)
    log = write(tmp_path / "log.csv", csv)
    lines = write(tmp_path / "log.jsonl.gz", "".join(line(*event) + "\n" for event in events))
    options: dict[str, Any] = {"episodes": EpisodeShape(2, 3), "split": Split(by="user_disjoint"), "ties": "row"}
    ours, theirs = (
        prepare(DatasetSpec(path=str(path), columns=columns, **options), data_dir=None, cache_dir=tmp_path / "cache")
        for path, columns in ((lines, PATHS), (log, Columns()))
    )
    assert ours.root != theirs.root
    assert ours.vocabulary_sha256 == theirs.vocabulary_sha256
    for name in ARRAYS:
        assert np.array_equal(np.load(ours.root / f"{name}.npy"), np.load(theirs.root / f"{name}.npy")), name


def test_order_session_and_split(tmp_path: Path) -> None:
    text = (
        line("u", "a", 5, place=12, visit="s1", part="train")
        + "\n"
        + line("w", "b", 5, place=3, visit="s2", part="test")
    )
    columns = Columns("user.id", "event.product.sku", "event.at", "event.visit", "event.place", "event.part")
    rows = opened(write(tmp_path / "log.jsonl", text), columns=columns, ties="order")[1]
    assert [r[4:] for r in rows] == [(12, "s1", "train"), (3, "s2", "test")]


def test_what_passes(tmp_path: Path) -> None:
    """Line ends of either kind, a BOM, blank lines (which count), no end of the last line, keys with odd characters."""
    one, two = GOOD.splitlines()
    for end in ("\n", "\r\n"):
        info, rows = opened(write(tmp_path / "x.jsonl", f"\ufeff{end}{one}{end}{end}  {end}{two}"))
        assert info.n_rows == 2
        assert [r[3] for r in rows] == [1, 4]
    odd = Columns(user="a b/c~.it's", item='say "x"', time="t.0")
    text = json.dumps({"a b/c~": {"it's": "u"}, 'say "x"': "i", "t": {"0": 7}})
    assert opened(write(tmp_path / "y.jsonl", text), columns=odd)[1][0][:3] == ("u", "i", 7)
    flat = '{"user.id": "u", "event.product.sku": "i", "event.at": 1}'  # flattened by another program
    assert opened(write(tmp_path / "z.jsonl", flat))[1][0][:3] == ("u", "i", 1)


def test_named_by_format(tmp_path: Path) -> None:
    assert opened(write(tmp_path / "x.json", GOOD), format="jsonl")[0].n_rows == 2
    refused(tmp_path / "x.json", "it looks like JSON", "say dataset.format=jsonl")
    refused(write(tmp_path / "x.csv", GOOD), "JSON: not CSV", "dataset.format=jsonl", columns=Columns())
    refused(tmp_path, "JSON lines are read from one file", format="jsonl")
    refused(write(tmp_path / "y.jsonl", "PAR1" + "x" * 40), "parquet: taken for jsonl by its name")


def test_rows_keep_their_order_in_a_large_file(tmp_path: Path) -> None:
    n = 150_000
    rows = [line(f"u{i % 99}", "a", i) for i in range(n)]
    assert [r[2] for r in opened(write(tmp_path / "x.jsonl", "\n".join(rows)))[1]] == list(range(n))
    rows[123_456] = line(None, "a", 5)
    refused(write(tmp_path / "x.jsonl", "\n".join(rows)), "line 123457: field user.id: null")
    rows[123_456] = "{"
    refused(write(tmp_path / "x.jsonl", "\n".join(rows)), "line 123457: {: broken JSON")


# --- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["the file is empty"]),
        (b"\n \n", ["blank: the file is empty", "one JSON object a line"]),
        (GOOD + '{"user": {"id": "u1"}, "event"', ["line 3: {", "broken JSON, byte 30: unexpected end", "mend or remove"]),
        (GOOD + '{"user": "\\ud800"}', ["line 3", "no low surrogate in string"]),
        (GOOD + GOOD.replace("\n", ""), ["line 3", "unexpected content after document"]),
        (GOOD + "[1, 2]\n", ["line 3: [1, 2]: not an object"]),
        (GOOD + "\n\n7\n", ["line 5: 7: not an object"]),
        (f"[{','.join(GOOD.splitlines())}]", ["line 1: [{", "not an object", "jq -c '.[]' FILE"]),
        (json.dumps(json.loads(GOOD.splitlines()[0]), indent=1), ["line 1: {: broken JSON", "jq -c . FILE"]),
        ("user_id,item_id,timestamp\nu,a,1\n", ["line 1: user_id,item_id", "broken JSON", "dataset.format=csv"]),
        (GOOD.replace("a", "\1", 1), ["line 1: ", "control character"]),
        (GOOD + line("u", "b", 3).replace("b", "\t"), ["line 3", "unexpected control character"]),
        (GOOD + line("u", "b", 3).replace("b", "\0"), ["NUL", "write the file again as UTF-8 JSON lines"]),
        (GOOD.encode() * 9_000 + b'{"a": "\xe9"}\n', ["line 18001", "bytes that are not UTF-8", "iconv"]),
        (GOOD.replace("\n", "\r\n", 1), ["mixed line ends", "dos2unix FILE"]),
        (GOOD.encode("utf-16"), ["UTF-16 text: JSON lines are read as UTF-8"]),
        (GOOD + '{"a": "' + "x" * 3_000_000 + '"}', ["line 3", "a line of more than 2 MB"]),
    ],
)  # fmt: skip
def test_bad_lines(tmp_path: Path, content: str | bytes, parts: list[str], zipped: bool) -> None:
    refused(write(tmp_path / ("x.jsonl.gz" if zipped else "x.jsonl"), content), *parts)


@pytest.mark.parametrize(
    ("last", "parts"),
    [
        ('{"user": {"uid": 1}}', ["field user.id: missing: user holds 'uid'", "did you mean user.uid?"]),
        ('{"user": null}', ["field user.id: missing: user is null, not an object", "write the field in every line"]),
        ('{"user": "u1"}', ["field user.id: missing: user is text"]),
        ("{}", ["field user.id: missing: the line holds nothing"]),
        (line({"a": 1}, "b", 3), ['field user.id: {"a":1}: an object', "dataset.columns.user=user.id.NAME"]),
        (line("u", [1, 2], 3), ["field event.product.sku: [1,2]: a list, where a whole number or text is needed"]),
        (line("u", True, 3), ["field event.product.sku: true: true or false"]),
        (line("u", "a", [3]), ["field event.at: [3]: a list, where a time"]),
        (line("u", "a", False), ["field event.at: false: true or false, where a time"]),
        (line("u", 1.5, 3), ["field event.product.sku: 1.5: an id with a fraction or exponent"]),
        (line(None, "a", 3), ["field user.id: null: the user id is missing"]),
        (line("", "a", 3), ["field user.id: '': the user id is empty"]),
        (line("u1 ", "a", 3), ["field user.id: 'u1 ': white space"]),
        (line("u1\0", "a", 3), ["field user.id: 'u1\\x00': white space or NUL"]),
        (line("u1", "a", None), ["field event.at: null: not a time"]),
        (line("u1", "a", "soon"), ["field event.at: soon: not a time"]),
        (line("u1", "a", 1_600_000_000), ["field event.at: 1600000000: mixed time units"]),
        ('{"user": {"id": 1, "id": 2}, "event": {"product": {"sku": 1}, "at": 3}}', ["field user.id", "stands twice"]),
        (line("u1", "b", 2), ["line 3: user u1, item b: repeats line 2"]),
    ],
)
def test_bad_fields(tmp_path: Path, last: str, parts: list[str]) -> None:
    path = write(tmp_path / "x.jsonl", GOOD + last + "\n")
    if "repeats" in parts[0]:
        with pytest.raises(DataError, match=r"x\.jsonl: line 3: user u1, item b: repeats line 2"):
            prepare(DatasetSpec(path=str(path), columns=PATHS), data_dir=None, cache_dir=tmp_path / "cache")
        return
    refused(path, "x.jsonl: line 3: ", *parts)


def test_faults_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", GOOD + '{"user": 1}\n' * 3)
    refused(path, "line 3: field user.id: missing: user is a number, not an object (and in 2 more lines)")


def test_one_id_in_two_forms(tmp_path: Path) -> None:
    mixed = line("u", 5, 1) + "\n" + line("u", "a5", 2) + "\n"
    assert [r[1] for r in opened(write(tmp_path / "x.jsonl", mixed))[1]] == ["5", "a5"]
    path = write(tmp_path / "x.jsonl", mixed + line("u", "5", 3))
    refused(path, 'line 3: field event.product.sku: "5": the same id is a number in line 1', "one id is not two")
    refused(write(tmp_path / "x.jsonl", line("caf\u00e9", 1, 1) + "\n" + line("cafe\u0301", 1, 2)), "two Unicode forms")


def test_bad_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "\n" + GOOD)
    refused(
        path,
        "line 2: user.uid: no such field; the line has 'user.id', 'event.product.sku', 'event.at'",
        "did you mean user.id? say dataset.columns.user=user.id",
        columns=Columns("user.uid", "event.product.sku", "event.at"),
    )
    refused(
        path, "no such field", "dataset.columns.user=user.id", columns=Columns("user", "event.product.sku", "event.at")
    )
    refused(path, "the same column", columns=Columns("user.id", "user.id", "event.at"))
    clash = '{"user": {"id": 1}, "user.id": 2}'
    refused(write(tmp_path / "y.jsonl", clash), "line 1: user.id: two fields have this dotted name")


def test_broken_gzip(tmp_path: Path) -> None:
    whole = gzip.compress("".join(line(f"u{i}", "a", i) + "\n" for i in range(20_000)).encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "the gzip stream is cut off", "gzip -t FILE")
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    refused(path, "the gzip stream is damaged")
    path.write_bytes(GOOD.encode())
    refused(path, "JSON: the name ends in .gz but the file is not gzip")
