"""Bad event logs as a table: how the file is made, the words, and what the one line must say. Driven by `inputs`.

The kinds are those of the promise: files, CSV, ids, times, events. `make` writes into an empty folder and returns what
`dataset.path` is to be; the command is `metarec prepare dataset=events dataset.path=<that> WORDS...`.
"""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

HEAD = "user_id,item_id,timestamp\n"
WHOLE = "dataset.sessions.by=user"
START = 1_600_000_000


@dataclass(frozen=True)
class Log:
    """A log that is to be refused with exit code 3 and a line that holds all of `parts`."""

    kind: str
    name: str
    make: Callable[[Path], str]
    parts: tuple[str, ...]
    words: tuple[str, ...] = ()
    dataset: str = "events"


def rows(n_users: int = 30, n_events: int = 24, line: str = "{user},{item},{time}") -> str:
    """Users who walk through 20 items, one event an hour."""
    return "".join(
        line.format(user=f"u{user}", item=f"i{(user + 3 * n) % 20}", time=START + 3600 * n + user) + "\n"
        for user in range(n_users)
        for n in range(n_events)
    )


def text(content: str | bytes, name: str = "log.csv") -> Callable[[Path], str]:
    """A file of this content."""

    def make(folder: Path) -> str:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return make


def table(**columns: Any) -> pa.Table:
    """The good log of `rows` with columns put in place of its own; None leaves one out."""
    n, users = 24, 30
    own = {
        "user_id": [f"u{user}" for user in range(users) for _ in range(n)],
        "item_id": [f"i{(user + 3 * k) % 20}" for user in range(users) for k in range(n)],
        "timestamp": [START + 3600 * k + user for user in range(users) for k in range(n)],
    }
    return pa.table({name: value for name, value in {**own, **columns}.items() if value is not None})


def parquet(found: Callable[[], pa.Table], name: str = "log.parquet", **options: Any) -> Callable[[Path], str]:
    """The table as a Parquet file."""

    def make(folder: Path) -> str:
        pq.write_table(found(), folder / name, **options)
        return name

    return make


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "log.csv")
    return "log.csv"


def _nearby(folder: Path) -> str:
    (folder / "logs.csv").write_text(HEAD + rows())
    return "log.csv"


def _directory(folder: Path) -> str:
    (folder / "log.csv").mkdir()
    (folder / "log.csv" / "x.csv").write_text(HEAD + rows())
    return "log.csv"


def _empty_directory(folder: Path) -> str:
    (folder / "log").mkdir()
    return "log"


def _loop(folder: Path) -> str:
    (folder / "a.csv").symlink_to("b.csv")
    (folder / "b.csv").symlink_to("a.csv")
    return "a.csv"


def _nowhere(folder: Path) -> str:
    (folder / "log.csv").symlink_to("nowhere.csv")
    return "log.csv"


def _feather(folder: Path) -> str:
    pyarrow.feather.write_feather(table(), folder / "log.feather")
    return "log.feather"


def _xlsx(folder: Path) -> str:
    with zipfile.ZipFile(folder / "log.xlsx", "w") as file:
        file.writestr("xl/workbook.xml", "<x/>")
    return "log.xlsx"


def _cut(make: Callable[[Path], str], share: float) -> Callable[[Path], str]:
    def cut(folder: Path) -> str:
        name = make(folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])
        return name

    return cut


def _flipped(folder: Path) -> str:
    name = parquet(table, write_page_checksum=True, compression="none")(folder)
    whole = bytearray((folder / name).read_bytes())
    whole[len(whole) // 4] ^= 16
    (folder / name).write_bytes(whole)
    return name


def _two(one: pa.Table, other: pa.Table) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "log").mkdir()
        pq.write_table(one, folder / "log" / "a.parquet")
        pq.write_table(other, folder / "log" / "b.parquet")
        return "log"

    return make


def _long_session(folder: Path) -> str:
    n = 1_000_000
    pq.write_table(
        pa.table({"user_id": ["u"] * n, "item_id": np.arange(n) % 50, "timestamp": START + np.arange(n)}),
        folder / "log.parquet",
    )
    return "log.parquet"


def _times(values: Any) -> Callable[[Path], str]:
    return parquet(lambda: table(timestamp=values))


N = 24 * 30
FILES = [
    Log("files", "missing", lambda folder: "no/log.csv", ("there is no such file", "check dataset.path")),
    Log("files", "missing, another near", _nearby, ("log.csv", "did you mean", "logs.csv")),
    Log("files", "empty", text(""), ("0 bytes", "the file is empty")),
    Log("files", "header only", text(HEAD), ("the log has no rows",)),
    Log("files", "blank lines", text("\n\n\n"), ("the file is empty",)),
    Log("files", "a directory of CSV", _directory, ("the directory holds no Parquet file",)),
    Log("files", "an empty directory", _empty_directory, ("nothing: the directory holds no Parquet file",)),
    Log("files", "a FIFO", _fifo, ("a FIFO", "write it to a file first")),
    Log("files", "a device", lambda folder: "/dev/zero", ("a device or socket",)),
    Log("files", "a loop of links", _loop, ("cannot be read",)),
    Log("files", "Parquet called CSV", parquet(table, "log.csv"), ("taken for csv by its name", "format=parquet")),
    Log("files", "CSV called Parquet", text(HEAD + rows(), "log.parquet"), ("taken for parquet by its name",)),
    Log("files", "no suffix", text(HEAD + rows(), "log"), ("the name does not say what the file is",)),
    Log("files", "gzip not called so", text(gzip.compress((HEAD + rows()).encode())), ("rename it to log.csv.gz",)),
    Log("files", "not gzip but called so", text(HEAD + rows(), "log.csv.gz"), ("the file is not gzip",)),
    Log("files", "gzip cut off", _cut(text(gzip.compress((HEAD + rows()).encode()), "log.csv.gz"), 0.5),
        ("the gzip stream is cut off", "gzip -t")),
    Log("files", "gzip of a gzip", text(gzip.compress(gzip.compress((HEAD + rows()).encode())), "log.csv.gz"),
        ("gzip", "inside the gzip stream is no CSV")),
    Log("files", "Parquet cut off", _cut(parquet(table), 0.6), ("log.parquet", "get a fresh copy")),
    Log("files", "Parquet, only the magic", text(b"PAR1PAR1", "log.parquet"), ("log.parquet", "get a fresh copy")),
    Log("files", "Parquet, a bit flipped under checksums", _flipped, ("log.parquet", "get a fresh copy")),
    Log("files", "Parquet, a list column", parquet(lambda: table(item_id=[[1]] * N)),
        ("column item_id", "whole numbers")),
    Log("files", "Parquet, a struct column", parquet(lambda: table(user_id=[{"a": 1}] * N)), ("column user_id",)),
    Log("files", "Parquet, a binary column", parquet(lambda: table(item_id=[b"x"] * N)), ("column item_id",)),
    Log("files", "Parquet, columns equal but for case", parquet(lambda: table(USER_ID=["x"] * N)),
        ("equal but for case",)),
    Log("files", "Feather", _feather, ("Feather", "CSV, CSV.gz or Parquet")),
    Log("files", "a pickle", text(pickle.dumps({"a": 1}), "log.pkl"), ("a Python pickle",)),
    Log("files", "a pickle called CSV", text(pickle.dumps([1, 2])), ("a Python pickle",)),
    Log("files", "xlsx", _xlsx, ("a zip or xlsx file",)),
    Log("files", "an HTML page", text("<!DOCTYPE html><html>404</html>"), ("an HTML page",)),
    Log("files", "files of one log disagree", _two(table(), table(user_id=list(range(N)))),
        ("b.parquet: column user_id",)),
    Log("files", "files of one log, a column gone", _two(table(), table(item_id=None)), ("b.parquet", "item_id")),
    Log("files", "a link to nowhere", _nowhere, ("log.csv: not found", "check dataset.path")),
    Log("files", "JSON lines nested without end", text(
        '{"user_id":"a","item_id":"b","timestamp":1600000000,"x":' + "[" * 5000 + "]" * 5000 + "}\n", "log.jsonl"),
        ("log.jsonl: line 1", "deep in each other")),
    Log("files", "JSON lines of no object", text("[1,2]\n[3]\n", "log.jsonl"), ("log.jsonl",)),
    Log("files", "JSON lines, one broken", text('{"user_id":"a","item_id":"b","timestamp":1}\n{"user', "log.jsonl"),
        ("log.jsonl", "line 2")),
    Log("files", "JSON lines, lists within lists", text(f'{{"user_id":"a","x":{"[" * 900}{"]" * 900}}}\n', "log.jsonl"),
        ("log.jsonl: line 1", "deep in each other")),
]  # fmt: skip
CSV = [
    Log("csv", "UTF-16", text((HEAD + rows()).encode("utf-16")), ("UTF-16 text", "iconv")),
    Log("csv", "UTF-16 without a mark", text((HEAD + rows()).encode("utf-16-le")), ("UTF-16 text",)),
    Log("csv", "Latin-1", text((HEAD + rows()).encode() + b"u\xe9,i1,1600000000\n"),
        ("line 722", "not UTF-8", "iconv")),
    Log("csv", "semicolons", text((HEAD + rows()).replace(",", ";")), ("separated by ';'", "dataset.delimiter")),
    Log("csv", "tabs", text((HEAD + rows()).replace(",", "\t")), ("separated by tab", "dataset.delimiter=tab")),
    Log("csv", "an extra field in every row", text(HEAD + rows(line="{user},{item},{time},5")),
        ("line 2", "names 3 columns, this row has 4")),
    Log("csv", "a field too few", text(HEAD + rows() + "u1,i1\n"), ("line 722", "this row has 2 fields")),
    Log("csv", "a quote never closed", text(HEAD + 'u1,"i1,1\n' + rows()),
        ("line 2", "a quote is opened and never closed")),
    Log("csv", "a NUL byte", text(HEAD + rows() + "u1,i\0,1600000000\n"), ("NUL", "UTF-8 CSV")),
    Log("csv", "cut in mid-line", text((HEAD + rows())[:-14]), ("line 721", "fields")),
    Log("csv", "a name twice in the header", text(HEAD.replace("item_id", "user_id") + rows()),
        ("line 1: user_id", "stands twice")),
    Log("csv", "a misspelt name in the header", text(HEAD.replace("item_id", "itme_id") + rows()),
        ("item_id", "did you mean itme_id?", "dataset.columns.item=itme_id")),
    Log("csv", "no header", text(rows()), ("no such column", "dataset.columns.user=NAME")),
    Log("csv", "no header, numbers alone", text("1,2,1600000000\n" * 9), ("is there a header line?",)),
    Log("csv", "mixed line ends", text(HEAD + "u1,a,1600000000\r\nu1,b,1600000001\n"), ("line ends are mixed",)),
    Log("csv", "a row of 3 MB", text(HEAD + rows() + "u1," + "x" * 3_000_000 + ",1600000000\n"), ("log.csv",)),
    Log("csv", "JSON", text('[{"user_id": 1}]'), ("JSON", "not CSV")),
]  # fmt: skip
IDS = [
    Log("ids", "column missing", text("user_id,timestamp\nu1,1600000000\n"), ("item_id: no such column",)),
    Log("ids", "empty user", text(HEAD + rows() + ",i1,1600000000\n"), ("row 721: column user_id", "is empty")),
    Log("ids", "empty item", text(HEAD + rows() + "u1,,1600000000\n"), ("row 721: column item_id", "is empty")),
    Log("ids", "null user", parquet(lambda: table(user_id=["u", None] * (N // 2))),
        ("row 2: column user_id", "missing")),
    Log("ids", "a column of nulls", parquet(lambda: table(user_id=[None] * N)), ("column user_id: null", "of a type")),
    Log("ids", "a trailing space", text(HEAD + rows() + "u1 ,i1,1600000000\n"), ("row 721", "'u1 '", "white space")),
    Log("ids", "a no-break space", text(HEAD + rows() + "u1,\u00a0i1,1600000000\n"), ("white space",)),
    Log("ids", "NFC beside NFD", text(HEAD + rows() + "caf\u00e9,i1,1600000000\ncafe\u0301,i1,1600000001\n"),
        ("two Unicode forms (NFC and NFD)",)),
    Log("ids", "halves", parquet(lambda: table(user_id=[1.5] * N)), ("column user_id: 1.5",)),
    Log("ids", "NaN", parquet(lambda: table(item_id=[float("nan")] * N)), ("column item_id: nan",)),
    Log("ids", "1e300", parquet(lambda: table(item_id=[1e300] * N)), ("1e+300",)),
    Log("ids", "booleans", parquet(lambda: table(item_id=[True] * N)), ("column item_id", "bool")),
    Log("ids", "times for items", parquet(lambda: table(item_id=pa.array([1] * N, pa.timestamp("s")))),
        ("column item_id",)),
    Log("ids", "a NUL in an id", parquet(lambda: table(item_id=["a\0"] * N)), ("NUL",)),
    Log("ids", "user and item are one column", text(HEAD + rows()), ("the same column",),
        ("dataset.columns.item=user_id",)),
    Log("ids", "JSON lines, an item that is a list",
        text('{"user_id":"a","item_id":[1],"timestamp":1600000000}\n', "log.jsonl"),
        ("item_id",)),
]  # fmt: skip
TIMES = [
    Log("times", "a negative time", text(HEAD + rows() + "u1,i1,-5\n"), ("timestamp", "-5")),
    Log("times", "ms among s", text(HEAD + rows() + rows(line="{user},{item},{time}000")), ("timestamp",)),
    Log("times", "ms declared s", text(HEAD + rows(line="{user},{item},{time}000")),
        ("timestamp", "not seconds"), (WHOLE, "dataset.time_unit=s")),
    Log("times", "ns declared s", text(HEAD + rows(line="{user},{item},{time}000000000")), ("timestamp",),
        ("dataset.time_unit=s",)),
    Log("times", "mixed units over files",
        _two(table(), table(user_id=["v"] * N, timestamp=[(START + 3600 * k) * 1000 for k in range(N)])), ("timestamp",)),
    Log("times", "empty", text(HEAD + rows() + "u1,i1,\n"), ("timestamp",)),
    Log("times", "null", _times([None] * N), ("timestamp",)),
    Log("times", "NaT", _times(pa.array([None, *[1] * (N - 1)], pa.timestamp("s"))), ("timestamp",)),
    Log("times", "inf", _times([float("inf")] * N), ("timestamp", "inf")),
    Log("times", "words", text(HEAD + rows() + "u1,i1,yesterday\n"), ("timestamp", "yesterday")),
    Log("times", "ISO among numbers", text(HEAD + rows() + "u1,i1,2020-01-01T00:00:00\n"), ("timestamp", "2020-01-01")),
    Log("times", "the 31st of February", text(HEAD + "u1,a,2020-02-01\nu1,b,2020-02-31\n"),
        ("timestamp", "2020-02-31")),
    Log("times", "ISO declared us", text(HEAD + "u1,a,2020-02-01\nu1,b,2020-02-03\n"), ("timestamp",),
        ("dataset.time_unit=us",)),
    Log("times", "booleans", _times([True] * N), ("timestamp", "bool")),
    Log("times", "all equal, one session of ties each", text(HEAD + rows(line="{user},{item},1600000000")),
        ("dataset",)),
    Log("times", "32-bit floats", _times(pa.array([1.6e9] * N, pa.float32())), ("timestamp",)),
    Log("times", "beyond 2^63", text(HEAD + rows() + f"u1,i1,{2**64}\n"), ("timestamp",)),
]  # fmt: skip
EVENTS = [
    Log("events", "exact duplicates", text(HEAD + rows() + rows()), ("dataset.duplicates",)),
    Log("events", "one user", text(HEAD + rows(1)), ("0 events left", "short sessions dropped 24")),
    Log("events", "one user, of one session", text(HEAD + rows(1)), ("user",), (WHOLE,)),
    Log("events", "two users", text(HEAD + rows(2)), ("user",), (WHOLE,)),
    Log("events", "one item", text(HEAD + rows(line="{user},i1,{time}")), ("item",),
        (WHOLE, "dataset.core.min_item_events=999")),
    Log("events", "one event a user", text(HEAD + rows(30, 1)), ("events",)),
    Log("events", "nobody left after the core", text(HEAD + rows()),
        ("0 events left", "k-core dropped 720", "fewer than 1000 events"),
        ("dataset.core.min_user_events=1000",)),
    Log("events", "no item left after the core", text(HEAD + rows()),
        ("0 events left", "k-core dropped 720", "items of fewer than 1000"),
        ("dataset.core.min_item_events=1000",)),
    Log("events", "no session long enough", text(HEAD + rows()), ("0 events left", "fewer than 50 events"),
        ("dataset.sessions.min_events=50",)),
    Log("events", "K above what users have", text(HEAD + rows()), ("n_support", "40"),
        (WHOLE, "dataset.episodes.n_support=40")),
    Log("events", "Q above what users have", text(HEAD + rows()), ("episodes.n_",),
        (WHOLE, "dataset.episodes.n_query=40")),
    Log("events", "one session of a million events", _long_session, ("user",)),
    Log("events", "a split left empty", text(HEAD + rows(3)), ("split",), (WHOLE, "dataset.split.by=user_disjoint",
        "dataset.split.fractions=[0.98,0.01,0.01]")),
    Log("events", "a split column of other words",
        text(HEAD.strip() + ",p\n" + rows(line="{user},{item},{time},maybe")),
        ("maybe",), ("dataset.columns.split=p", "dataset.split.by=column")),
    Log("events", "a user in two splits", text(HEAD.strip() + ",p\n" + rows(line="{user},{item},{time},train") +
        rows(line="{user},{item},{time}9,test")), ("p",), ("dataset.columns.split=p", "dataset.split.by=column")),
    Log("events", "an order that is no number", text(HEAD.strip() + ",o\n" + rows(line="{user},{item},{time},1.5")),
        ("row 1: column o", "not a whole number"), ("dataset.ties=order", "dataset.columns.order=o")),
]  # fmt: skip
OTHERS = [
    Log("other files", "prompts from a FIFO", _fifo, ("log.csv: a FIFO, no plain file", "give a JSONL file"),
        dataset="prompts"),
    Log("other files", "prompts without end", lambda folder: "/dev/zero", ("/dev/zero: a device", "no plain file"),
        dataset="prompts"),
    Log("other files", "prompts that are a log", text(HEAD + rows()), ("line 1", "not JSON"), dataset="prompts"),
    Log("other files", "a FIFO for tables", _fifo, ("log.csv: not a directory",), dataset="episode_tables"),
    Log("other files", "no tables", _empty_directory, ("pairs_train.parquet", "a table is missing"),
        dataset="episode_tables"),
    Log("other files", "running text from a FIFO", _fifo, ("log.csv: ", "a FIFO, no plain file"), dataset="wikitext2"),
]  # fmt: skip
LOGS = [*FILES, *CSV, *IDS, *TIMES, *EVENTS, *OTHERS]
