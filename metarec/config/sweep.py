"""The record that every job of a sweep leaves in its directory, and the one summary made of them.

Records are files because a launcher may run jobs in other processes; the summary is the only thing that needs them all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

RECORD = "job.json"
SUMMARY = "sweep.json"


@dataclass
class Record:
    """How one job ended. `status`: ok | failed | interrupted | not run."""

    number: int
    overrides: list[str]
    status: str
    exit_code: int = 0
    directory: str | None = None
    headline: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def write_json(path: Path, value: object) -> None:
    """A whole file or none: temporary file, flush to disk, rename; NaN is refused (ValueError)."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / RECORD, asdict(record))


def collect(sweep_dir: Path, planned: Sequence[Sequence[str]]) -> list[Record]:
    """One record for each planned job, in order; one that left none was not run. A sampler's unplanned ones follow."""
    found = {}
    for path in sorted(sweep_dir.rglob(RECORD)):
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        found[record.number] = record
    records = [found.pop(number, Record(number, list(words), "not run")) for number, words in enumerate(planned)]
    return records + [found[number] for number in sorted(found)]


def exit_code(records: Sequence[Record]) -> int:
    """The code of the first job that failed; 0 when none did."""
    return next((record.exit_code or 1 for record in records if record.status != "ok"), 0)


def write_summary(sweep_dir: Path, records: Sequence[Record]) -> None:
    counts = {status: sum(r.status == status for r in records) for status in ("ok", "failed", "interrupted", "not run")}
    write_json(sweep_dir / SUMMARY, {"jobs": [asdict(record) for record in records], "counts": counts})


def print_summary(sweep_dir: Path, records: Sequence[Record]) -> None:
    """One row a job with the options that differ between jobs, then the reason of each failure on a line of its own."""
    console = _console()
    shared = set.intersection(*(set(record.overrides) for record in records)) if len(records) > 1 else set()
    names = list(dict.fromkeys(name for record in records for name in record.headline))
    table = Table(title=f"sweep {sweep_dir}", title_justify="left", box=SIMPLE)
    for heading in ("#", "overrides", "status", *names, "directory"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("#", *names) else "left")
    for record in records:
        figures = [_figure(record.headline.get(name)) for name in names]
        where = Path(record.directory).name if record.directory else ""
        table.add_row(
            str(record.number),
            " ".join(word for word in record.overrides if word not in shared),
            record.status,
            *figures,
            where,
        )
    console.print(table)
    for record in records:
        if record.error:
            console.print(f"job {record.number}: {record.error}", markup=False, highlight=False, soft_wrap=True)
    done = sum(record.status == "ok" for record in records)
    console.print(f"{done} of {len(records)} jobs ok", markup=False, highlight=False)


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe nothing is folded and nothing coloured."""
    return Console() if sys.stdout.isatty() else Console(width=2000, color_system=None)


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
