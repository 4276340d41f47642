"""Failures of the engines that read and sort (DuckDB, Arrow), said in one line without their traceback.

`engine_faults(where)` wraps any call into DuckDB or Arrow: what they raise leaves it as a `DataError` (a file that
cannot be read) or an `EnvironmentFault` (disk or memory gone). What the engine says of a broken row is put in words by
the reader of the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from metarec.errors import DataError, EnvironmentFault, MetarecError

Fault = Callable[[str, object], DataError | None]  # an engine's message and where -> what it means; None: unknown


@contextmanager
def engine_faults(where: object, fault: Fault | None = None) -> Iterator[None]:
    """Turn every DuckDB or Arrow error raised inside into one line that starts with ``where`` (a file or directory)."""
    try:
        yield
    except MetarecError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise translate(error, where, fault) from None


def translate(error: BaseException, where: object, fault: Fault | None = None) -> MetarecError:
    """The one-line form of an engine's ``error`` met while reading or sorting ``where``."""
    text = str(error)
    if isinstance(error, duckdb.InvalidInputException) and fault and (found := fault(text, where)):
        return found  # first: the message holds the row, whose text may say anything, also "No space left"
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
    return (fault and fault(text, where)) or DataError(
        where,
        first_line(text),
        "the file is damaged or not what its name says",
        "get a fresh copy and compare its size and checksum with the source's",
    )


def first_line(text: str) -> str:
    """The first line of an engine's message, without its class name, at most 160 characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    line = re.sub(r"^(?:[A-Z][A-Za-z-]* )*(?:Error|Exception): ", "", line)
    return line if len(line) <= 160 else line[:157] + "..."


def shown(value: str) -> str:
    """A row of the file as it can be printed: no control characters, at most 80 characters."""
    clean = "".join(c if c.isprintable() else "?" for c in value)
    return (clean if len(clean) <= 80 else clean[:77] + "...") or "(empty)"
