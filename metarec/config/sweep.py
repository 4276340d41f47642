"""The record that every job of a sweep or trial of a search leaves in its directory, and a sweep's one summary.

Records are files because jobs may run in other processes; the summary is the only thing that needs them all.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from metarec.contained import parse_json
from metarec.durable import replace_file
from metarec.errors import INTERRUPTED, TERMINATED, MetarecError, Pruned, Stopped

RECORD = "job.json"
SUMMARY = "sweep.json"


@dataclass
class Record:
    """How one job ended. `status`: ok | failed | interrupted | not run, and in a search pruned."""

    number: int
    overrides: list[str]
    status: str
    exit_code: int = 0
    directory: str | None = None
    headline: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float | None = None  # of the process; of a resumed trial, its last part
    start: int = 0  # of a sweep: the command had been given so many times when the job last ran


def recorded(number: int, words: list[str], run_dir: Path, action: Callable[[], dict[str, Any]], start: int = 0) -> int:
    """Run one job and leave its record, whatever happens; only a signal goes on to end the whole. Returns its exit code.

    `action` returns {"headline": {name: value}}.
    """
    print(f"job {number}: {' '.join(words)}", flush=True)
    record, began = Record(number, words, "interrupted", directory=str(run_dir), start=start), time.monotonic()
    try:
        record.headline = dict(action().get("headline", {}))
        record.status = "ok"
    except Pruned as end:
        record.status, record.error = "pruned", str(end)
    except Stopped as end:  # a signal ends the sweep, not this job alone
        record.exit_code = end.exit_code
        raise SystemExit(end.exit_code) from end
    except MetarecError as error:
        record.status, record.exit_code = "failed", error.exit_code
        record.error = f"error: {'; '.join(str(error).splitlines())}"
    except KeyboardInterrupt:
        record.exit_code = INTERRUPTED
        raise
    except SystemExit as end:
        record.exit_code = end.code if isinstance(end.code, int) else 1
        if record.exit_code in (INTERRUPTED, TERMINATED):
            raise
        record.status, record.error = "failed", f"error: the run called sys.exit({end.code})"
    except Exception as bug:
        traceback.print_exc()
        record.status, record.exit_code = "failed", 1
        record.error = f"error: a bug in metarec: {type(bug).__name__}: {bug}"
    finally:
        record.seconds = round(time.monotonic() - began, 1)
        write_record(run_dir, record)
    if record.error:
        print(record.error, file=sys.stderr, flush=True)
    return record.exit_code


def read_record(directory: Path) -> Record | None:
    """The record in a job's directory; None where there is none that can be read."""
    try:
        return Record(**parse_json((directory / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        print(f"note: {directory / RECORD}: damaged, so its job counts as not run", file=sys.stderr, flush=True)
        return None


def write_json(path: Path, value: object) -> None:
    """A whole file or none: temporary file, flush to disk, rename; NaN is refused (ValueError)."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_record(directory: Path, record: Record) -> None:
    """job.json in the directory of the job; one that is there already is replaced."""
    write_json(directory / RECORD, asdict(record))


def collect(sweep_dir: Path, planned: Sequence[Sequence[str]]) -> list[Record]:
    """One record for each planned job, in order; one that left none was not run. A sampler's unplanned ones follow."""
    found = {}
    for path in sorted(sweep_dir.rglob(RECORD)):
        if record := read_record(path.parent):
            found[record.number] = record
    records = [found.pop(number, Record(number, list(words), "not run")) for number, words in enumerate(planned)]
    return records + [found[number] for number in sorted(found)]


def exit_code(records: Sequence[Record]) -> int:
    """The code of the first job that failed; 0 when none did."""
    return next((record.exit_code or 1 for record in records if record.status != "ok"), 0)


def write_summary(sweep_dir: Path, records: Sequence[Record]) -> None:
    """sweep.json: the records in order of jobs, and how many ended in which way, zeros included."""
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
