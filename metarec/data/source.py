"""An event log as one relation `log` in the engine, in any format of `metarec.data.formats`.

`open_log` checks the files (cheaply first, then every row in one pass) and leaves views behind: nothing is copied, so
a log of any size streams. After it returns, every row has ids and a time, and each later query may rely on that.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from metarec.data import formats
from metarec.data.faults import engine_faults
from metarec.data.formats.reader import Reader
from metarec.data.formats.recognise import format_of, format_of_directory, listed
from metarec.data.row_check import RowCheck
from metarec.data.spec import DatasetSpec
from metarec.errors import DataError, nearest


@dataclass(frozen=True)
class SourceInfo:
    """What was opened: whether times are clock times, rows read, how the time column was understood, the files in
    order, and the reader of their format."""

    has_clock: bool
    n_rows: int
    time_note: str
    files: tuple[Path, ...]
    reader: Reader


def open_log(con: duckdb.DuckDBPyConnection, spec: DatasetSpec, data_dir: Path | None) -> SourceInfo:
    """Create the view `log` (user_id, item_id, t, row, ord, session, split) in ``con`` and check every row of it.

    user_id, item_id, session: BIGINT where the file's column is of whole numbers, else VARCHAR (session NULL when not
    mapped). t: BIGINT, microseconds since 1970-01-01 UTC, or the position where the log has no clock. row: BIGINT,
    the place in the file and over files in the order of their names. ord: BIGINT, the column that breaks ties when
    ties=order, else NULL. split: VARCHAR, the word of the column that splits the users, else NULL. Sets the
    connection's time zone to UTC. Raises DataError with file, row and column.
    """
    files, form, zipped = resolve(spec, data_dir)
    where = files[0] if len(files) == 1 else files[0].parent
    con.execute("SET TimeZone = 'UTC'")  # naive text is read in the session's zone
    reader = formats.reader_of(form)
    with engine_faults(where, reader.fault):
        found = reader.open(con, files, spec, zipped)
        chosen = ", ".join(f"{c.sql} AS {c.role}" for c in found.columns)
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW log_file AS SELECT {chosen}, {found.row} AS row FROM {found.relation}"
        )
        n_rows, plan = RowCheck(con, files, found.columns, reader.words).run(spec.time_unit)
        by_role = {c.role: c for c in found.columns}
        session = by_role["s"].id_sql if "s" in by_role else "NULL::VARCHAR"
        order = by_role["o"].order_sql if "o" in by_role else "NULL::BIGINT"
        split = "p" if "p" in by_role else "NULL::VARCHAR"
        columns_sql = f"{by_role['u'].id_sql} AS user_id, {by_role['i'].id_sql} AS item_id, {plan.sql} AS t, row"
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW log AS "
            f"SELECT {columns_sql}, {order} AS ord, {session} AS session, {split} AS split FROM log_file"
        )
    return SourceInfo(plan.has_clock, n_rows, f"{by_role['t'].name}: {plan.note}", tuple(files), reader)


def source_fingerprint(spec: DatasetSpec, data_dir: Path | None) -> dict[str, Any]:
    """{"files": [{"name", "bytes", "sha256"}]} of the input in reading order; contents are hashed as a stream.

    Names are without directories, so that a moved log keeps its cache.
    """
    found = []
    for path in resolve(spec, data_dir)[0]:
        with engine_faults(path), path.open("rb") as stream:
            found.append(
                {
                    "name": path.name,
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
                }
            )
    return {"files": found}


# --- which files ----------------------------------------------------------------------------------------------------


def resolve(spec: DatasetSpec, data_dir: Path | None) -> tuple[list[Path], str, bool]:
    """(files in order, format, whether gzip) that ``spec.path`` means, judged by suffix and first bytes."""
    path = locate(spec, data_dir)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise _missing(path, spec) from None
    except OSError as error:
        raise DataError(path, error.strerror or "unreadable", "the file cannot be read", "check dataset.path") from None
    if stat.S_ISDIR(mode):
        return *format_of_directory(path, spec.format), False
    form, zipped = format_of(path, mode, spec.format)
    return [path], form, zipped


def locate(spec: DatasetSpec, data_dir: Path | None) -> Path:
    """The path that ``spec.path`` means; a named dataset lies in ``data_dir``."""
    if not spec.path:
        raise DataError(
            "dataset.path",
            "null",
            "no file is given",
            f"say dataset.path=FILE ({', '.join(listed())} or a directory)",
        )
    path = Path(spec.path).expanduser()
    if path.is_absolute() or not spec.in_data_dir:
        return path
    if data_dir is None:
        raise DataError(
            "data_dir",
            "null",
            f"dataset={spec.name} is read from a data directory and none is set",
            "say data_dir=DIR or the METAREC_DATA variable",
        )
    return Path(data_dir).expanduser() / path


def _missing(path: Path, spec: DatasetSpec) -> DataError:
    if spec.in_data_dir:
        return DataError(
            path,
            "not found",
            f"dataset={spec.name} is not in the data directory",
            "set data_dir=DIR or the METAREC_DATA variable to the directory that holds it",
        )
    others = [p.name for p in path.parent.iterdir() if p.exists()] if path.parent.is_dir() else []
    near = nearest(path.name, others)
    return DataError(
        path,
        "not found",
        "there is no such file or directory",
        f"did you mean {path.parent / near}?" if near else "check dataset.path",
    )
