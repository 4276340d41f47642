"""Failures of the engines that read and sort (DuckDB, Arrow), said in one line without their traceback.

`engine_faults(where)` wraps any call into DuckDB or Arrow: what they raise leaves it as a `DataError` (a file that
cannot be read) or an `EnvironmentFault` (disk or memory gone). The engine names the line of a broken CSV row; that
line is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from metarec.errors import DataError, EnvironmentFault, MetarecError


@contextmanager
def engine_faults(where: object) -> Iterator[None]:
    """Turn every DuckDB or Arrow error raised inside into one line that starts with ``where`` (a file or directory)."""
    try:
        yield
    except MetarecError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise translate(error, where) from None


def translate(error: BaseException, where: object) -> MetarecError:
    """The one-line form of an engine's ``error`` met while reading or sorting ``where``."""
    text = str(error)
    if "No space left" in text or "ENOSPC" in text:
        return EnvironmentFault(
            where,
            "no space left",
            "the disk filled up while working on it",
            "free some space or set cache_dir=DIR to another disk",
        )
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError)):
        return EnvironmentFault(
            where,
            "out of memory",
            first_line(text) or "the memory limit was reached",
            "raise dataset.memory_limit or make room on the disk of cache_dir",
        )
    if isinstance(error, PermissionError):
        return DataError(where, "permission denied", "the file cannot be read", "give this user read permission")
    return _csv_fault(text, where) or DataError(
        where,
        first_line(text),
        "the file is damaged or not what its name says",
        "get a fresh copy and compare its size and checksum with the source's",
    )


def _csv_fault(text: str, where: object) -> DataError | None:
    """A fault of a CSV row, from the engine's message; None when ``text`` speaks of something else."""
    if "invalid state" in text and "CSV" in text:
        return DataError(
            where,
            "not plain CSV",
            "line ends are mixed (\\r\\n and \\n) or a quote stands out of place",
            'write it again with one kind of line end (dos2unix FILE) and quoted fields as "..."',
        )
    if "Unexpected end of GZIP" in text:
        return DataError(
            where, "end of file", "the gzip stream is cut off", "get a complete copy: gzip -t FILE must pass"
        )
    found = re.search(r"CSV Error on Line: (\d+)(?:\nOriginal Line: ?([^\n]*))?", text)
    if found is None:
        return None
    place, row = f"{where}: line {found[1]}", shown(found[2] or "")
    columns = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text)
    if columns:
        return DataError(
            place,
            row,
            f"the header names {columns[1]} columns, this row has {columns[2]} fields",
            'mend the row; a field that holds the delimiter must be in quotes ("a,b")',
        )
    if "unterminated quote" in text:
        return DataError(
            place, row, "a quote is opened and never closed", 'close it, or write a quote inside a field as ""'
        )
    if "utf-8" in text.lower() or "unicode" in text.lower():
        return DataError(
            place, row, "bytes that are not UTF-8", "convert the file: iconv -f LATIN1 -t UTF-8 FILE > NEW"
        )
    if "Maximum line size" in text:
        return DataError(place, row, "a row of more than 2 MB", "look for a quote that is never closed")
    return DataError(place, row, first_line(text.partition("\nPossible")[0]), "mend the row")


def first_line(text: str) -> str:
    """The first line of an engine's message, without its class name, at most 160 characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    line = re.sub(r"^(?:[A-Z][A-Za-z-]* )*(?:Error|Exception): ", "", line)
    return line if len(line) <= 160 else line[:157] + "..."


def shown(value: str) -> str:
    """A row of the file as it can be printed: no control characters, at most 80 characters."""
    clean = "".join(c if c.isprintable() else "?" for c in value)
    return (clean if len(clean) <= 80 else clean[:77] + "...") or "(empty)"
