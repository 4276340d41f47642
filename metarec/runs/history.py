"""history.jsonl: one JSON object a line, in order of steps; a resumed run's file equals the uninterrupted one's.

Every record has ``step`` (int). A training record has ``kind: "train"`` with ``loss`` and whatever else was measured, a
validation record ``kind: "val"`` with one dict of metrics for each method; ``report.plots`` draws every number in them.
Keep wall-clock times out: they would make two equal runs differ.

Records reach the file at ``append``, the disk at ``sync``; a listener (an experiment tracker) hears of both. Save a
checkpoint of step s after the last record of step s; a resume from it then calls ``truncate_after(s)`` and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from metarec.contained import parse_json
from metarec.errors import DataError, EnvironmentFault
from metarec.runs import atomic


class Listener(Protocol):
    """What is told of every record, once it is in the file."""

    def append(self, record: Mapping[str, Any]) -> None:
        """A record, not yet on the disk."""

    def sync(self) -> None:
        """All records so far are on the disk: a checkpoint may follow."""


class History:
    """Append-only writer of ``path``; a context manager that syncs when it is left.

    >>> with History(run_dir / "history.jsonl") as history:       # doctest: +SKIP
    ...     history.append({"step": 1, "kind": "train", "loss": 5.1})
    """

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path, self.listener = path, listener
        try:
            # unbuffered: what a full disk did not take is not tried again behind our back when the file is closed
            self._file: BinaryIO = path.open("ab", buffering=0)
        except OSError as error:
            raise atomic.fault(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. Raises DivergedError naming the key for NaN or infinity."""
        if type(record.get("step")) is not int:
            raise ValueError(f"a record needs an int step: {record!r}")
        line = atomic.json_bytes(dict(record), self.path.name, indent=None)
        try:
            view = memoryview(line)
            while view:  # a write may be partial, on a nearly full disk for one
                view = view[self._file.write(view) :]
        except OSError as error:
            raise atomic.fault(self.path, error) from error
        if self.listener is not None:
            self.listener.append(record)

    def sync(self) -> None:
        """Make every record so far durable; to be called just before a checkpoint is saved."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise atomic.fault(self.path, error) from error
        if self.listener is not None:
            self.listener.sync()

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except EnvironmentFault:
            if error is None:  # else the first failure is the one to tell, and this one follows from it
                raise


def read_history(path: Path) -> list[dict[str, Any]]:
    """Every record of ``path``. Raises DataError naming the line; a torn last line (a kill) counts as not written."""
    return [record for record, _ in _lines(path)]


def numbers(record: Mapping[str, Any], separator: str) -> dict[str, float]:
    """``<kind>.<key>[.<key>]`` (joined by ``separator``) -> value, for every number of a record but ``step``."""
    out: dict[str, float] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{separator}{key}")
            elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
                out[f"{prefix}{separator}{key}"] = float(value)

    walk(record, str(record.get("kind", "run")))
    return out


def truncate_after(path: Path, step: int) -> int:
    """Keep the records of ``path`` up to and including ``step``, atomically; returns how many were dropped.

    Kept lines keep their bytes. A missing file is left missing.
    """
    if not path.exists():
        return 0
    lines = _lines(path)
    kept = b"".join(line for record, line in lines if record["step"] <= step)
    if kept != path.read_bytes():
        atomic.write_bytes(path, kept)
    return sum(record["step"] > step for record, _ in lines)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")  # json.loads would take NaN, which nothing of ours writes


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    out = []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise atomic.fault(path, error) from error
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # torn by a kill, so never synced: it belongs to a step after the last checkpoint
        try:
            record = parse_json(line, parse_constant=_no_number)
            usable = type(record["step"]) is int
        except (ValueError, TypeError, KeyError):
            usable = False
        if not usable:
            where = f"{path}: line {number}"
            raise DataError(where, line[:80], "no record of a step", "the file is damaged; start a new run")
        out.append((record, line))
    return out
