"""What a format tells of itself, and what opening a file of it leaves: the contract of a file in this folder.

`metarec.data.source` finds the format, calls `open`, and checks every row of what comes back in the same way whatever
the format is; nothing outside this folder knows one by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from metarec.data.faults import Fault
from metarec.data.spec import DatasetSpec, split_column
from metarec.errors import DataError, nearest

FILE_SHIFT = 40  # row = file number << 40 | row in the file, both from 0


@dataclass(frozen=True)
class Words:
    """What a format calls its parts, in messages."""

    row: str = "row"
    column: str = "column"
    header: str = "header"  # where the names of the columns stand
    holder: str = "the file"  # of those names


@dataclass(frozen=True)
class Column:
    """One mapped column: its role in `log`, the user's name for it, its class, and where its values are."""

    role: str  # u, i, t, s, o, p: user, item, time, session, order, split
    name: str
    kind: str  # integer | text | big (whole numbers read as text) | float; of a time `timestamps.reading`'s kinds
    key: str  # of the configuration: user, item, time, session, order, split
    sql: str  # its value in a row of `Opened.relation`

    @property
    def id_sql(self) -> str:
        """The column as an id: BIGINT where it is of whole numbers, else VARCHAR."""
        return {"float": f"CAST({self.role} AS BIGINT)", "big": f"CAST({self.role} AS VARCHAR)"}.get(
            self.kind, self.role
        )

    @property
    def order_sql(self) -> str:
        """The column as the position that breaks ties: BIGINT."""
        return f"TRY_CAST({self.role} AS BIGINT)"


@dataclass(frozen=True)
class Opened:
    """A log as the engine can read it."""

    columns: list[Column]
    relation: str  # SQL behind FROM
    row: str = "row"  # SQL of the place of a row of it: file number << FILE_SHIFT | row in the file, both from 0


def _cannot_tell(head: bytes) -> str | None:
    return None


def _nothing(text: str, where: object) -> DataError | None:
    return None


@dataclass(frozen=True)
class Reader:
    """A format. ``open(con, files, spec, zipped)`` checks what the rows of a log are not checked for later (that names
    are there and stand once, that bytes are whole), as cheaply as can be, and copies nothing."""

    noun: str  # "CSV", "JSON lines"
    example: str  # what to give, behind "give": "a CSV file with a header line"
    suffixes: tuple[str, ...]  # of file names, each of this format only
    open: Callable[[duckdb.DuckDBPyConnection, list[Path], DatasetSpec, bool], Opened]
    words: Words = Words()
    plural: bool = False  # the noun: JSON lines *are* read
    listed: tuple[str, ...] = ()  # in a list of all that is read; empty: the noun
    text: bool = True  # UTF-8, and maybe compressed by gzip; a binary format is known by its first bytes
    directory: bool = False  # whether a directory of such files is one log
    delimiter: bool = False  # whether it reads dataset.delimiter
    kind: Callable[[bytes], str | None] = _cannot_tell  # first bytes -> what to call such a file; None: not like mine
    fault: Fault = _nothing  # the engine's message on a broken row, in words (text.LineFaults)

    @property
    def is_(self) -> str:
        """The beginning of a message: "CSV is", "JSON lines are"."""
        return f"{self.noun} {'are' if self.plural else 'is'}"

    @property
    def has(self) -> str:
        """The beginning of a message: "a CSV file has", "JSON lines have"."""
        return f"{self.noun} have" if self.plural else f"a {self.noun} file has"


def mapped(spec: DatasetSpec, names: list[str], path: Path, words: Words, hint: str = "") -> list[tuple[str, str, str]]:
    """(role, column name, configuration key) of every mapped column; a missing one is refused with the nearest name."""
    wanted = [("u", spec.columns.user, "user"), ("i", spec.columns.item, "item"), ("t", spec.columns.time, "time")]
    if spec.columns.session is not None:
        wanted.append(("s", spec.columns.session, "session"))
    if spec.ties == "order":
        if spec.columns.order is None:
            raise DataError(
                "dataset.columns.order",
                "null",
                "dataset.ties=order needs the column that breaks ties",
                "say dataset.columns.order=NAME, or dataset.ties=item|row",
            )
        wanted.append(("o", spec.columns.order, "order"))
    if (split := split_column(spec)) is not None:
        wanted.append(("p", split, "split"))
    for _, name, key in wanted:
        if name not in names:
            near = nearest(name, names)
            raise DataError(
                f"{path}: {words.header}",
                name,
                f"no such {words.column}{hint}; {words.holder} has {', '.join(map(repr, names))}",
                (f"did you mean {near}? " if near else "") + f"say dataset.columns.{key}={near or 'NAME'}",
            )
    if wanted[0][1] == wanted[1][1]:
        raise DataError("dataset.columns.item", wanted[1][1], "user and item are the same column", "name two columns")
    return wanted
