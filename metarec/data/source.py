"""An event log as one relation `log` in the engine: CSV or JSON lines (also .gz), Parquet or a directory of Parquet files.

`open_log` checks the files (cheaply first, then every row in one pass) and leaves views behind: nothing is copied, so
a log of any size streams. After it returns, every row has ids and a time, and each later query may rely on that.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from metarec.data import csv_check, json_check, parquet_check
from metarec.data.faults import engine_faults
from metarec.data.row_check import FILE_SHIFT, Column, RowCheck, Words, literal
from metarec.data.spec import DatasetSpec, split_column
from metarec.errors import DataError, nearest

_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_TABLE, _LINES = Words(), Words("line", "field", "line 1", "the line")
_FORMS = {  # what a file may be by its first bytes: the forms that it can be read in, likeliest first
    "parquet": ("parquet",),
    "gzip": ("csv", "jsonl"),
    "text": ("csv", "jsonl"),
    "JSON": ("jsonl", "csv"),
    "UTF-16 text": ("csv", "jsonl"),
    "UTF-32 text": ("csv", "jsonl"),
}


@dataclass(frozen=True)
class SourceInfo:
    """What was opened: whether times are clock times, rows read, how the time column was understood, the files in
    order, and what their rows are called."""

    has_clock: bool
    n_rows: int
    time_note: str
    files: tuple[Path, ...]
    words: Words


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
    with engine_faults(where):
        words = _LINES if form == "jsonl" else _TABLE
        if form == "jsonl":
            columns, relation = _json(con, files[0], spec, zipped)
        else:
            columns, relation = _csv(files[0], spec, zipped) if form == "csv" else _parquet(con, files, spec)
        chosen = ", ".join(f"{_identifier(c, form)} AS {c.role}" for c in columns)
        row = {"csv": "row_number() OVER () - 1", "jsonl": "row"}.get(
            form, f"(file_index::BIGINT << {FILE_SHIFT}) + file_row_number"
        )
        con.execute(f"CREATE OR REPLACE TEMP VIEW log_file AS SELECT {chosen}, {row} AS row FROM {relation}")
        n_rows, plan = RowCheck(con, files, columns, words).run(spec.time_unit)
        by_role = {c.role: c for c in columns}
        session = by_role["s"].id_sql if "s" in by_role else "NULL::VARCHAR"
        order = by_role["o"].order_sql if "o" in by_role else "NULL::BIGINT"
        split = "p" if "p" in by_role else "NULL::VARCHAR"
        columns_sql = f"{by_role['u'].id_sql} AS user_id, {by_role['i'].id_sql} AS item_id, {plan.sql} AS t, row"
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW log AS "
            f"SELECT {columns_sql}, {order} AS ord, {session} AS session, {split} AS split FROM log_file"
        )
    return SourceInfo(plan.has_clock, n_rows, f"{by_role['t'].name}: {plan.note}", tuple(files), words)


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
    """(files in order, "csv", "jsonl" or "parquet", whether gzip) that ``spec.path`` means, judged by suffix and first
    bytes."""
    path = locate(spec, data_dir)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise _missing(path, spec) from None
    except OSError as error:
        raise DataError(path, error.strerror or "unreadable", "the file cannot be read", "check dataset.path") from None
    if stat.S_ISDIR(mode):
        return _parquet_directory(path, spec), "parquet", False
    form, zipped = _form_of(path, mode, spec.format)
    return [path], form, zipped


def locate(spec: DatasetSpec, data_dir: Path | None) -> Path:
    """The path that ``spec.path`` means; a named dataset lies in ``data_dir``."""
    if not spec.path:
        raise DataError(
            "dataset.path",
            "null",
            "no file is given",
            "say dataset.path=FILE (JSON lines, CSV, CSV.gz, Parquet or a directory)",
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
    near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
    return DataError(
        path,
        "not found",
        "there is no such file or directory",
        f"did you mean {path.parent / near}?" if near else "check dataset.path",
    )


def _parquet_directory(path: Path, spec: DatasetSpec) -> list[Path]:
    if spec.format in ("csv", "jsonl"):
        what = "CSV is read from one file" if spec.format == "csv" else "JSON lines are read from one file"
        raise DataError(path, "a directory", what, "give the file, or a directory of Parquet files")
    try:
        # Names that start with . or _ are marks of other programs (_SUCCESS, .crc), as Spark and Arrow have it.
        entries = sorted(p for p in path.iterdir() if not p.name.startswith((".", "_")))
    except OSError as error:
        raise DataError(
            path, error.strerror or "unreadable", "the directory cannot be read", "check its permissions"
        ) from None
    files = [p for p in entries if p.suffix.lower() in (".parquet", ".pq")]
    if not files:
        held = ", ".join(p.name for p in entries[:3]) or "nothing"
        raise DataError(
            path, held, "the directory holds no Parquet file", "give a file, or a directory with *.parquet in it"
        )
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise DataError(
                file, error.strerror or "unreadable", "the file cannot be read", "check the directory"
            ) from None
        if stat.S_ISDIR(mode):
            raise DataError(
                file, "a directory", "Parquet files are read from one level only", f"say dataset.path={file}"
            )
        _form_of(file, mode, "parquet")
    return files


def _form_of(path: Path, mode: int, asked: str) -> tuple[str, bool]:
    if not stat.S_ISREG(mode):
        # opening a FIFO would wait for a writer that may never come
        kind = "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
        raise DataError(
            path, kind, "the log is read more than once, so it must be a plain file", "write it to a file first"
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise DataError(
            path, error.strerror or "unreadable", "the file cannot be read", "check its permissions"
        ) from None
    if not head:
        raise DataError(path, "0 bytes", "the file is empty", "give a CSV file with a header line, or a Parquet file")
    found, suffixes = csv_check.looks_like(head), [s.lower() for s in path.suffixes[-2:]]
    zipped = found == "gzip"
    if suffixes[-1:] == [".gz"] and asked == "auto":
        suffixes.pop()
        if not zipped:
            raise DataError(path, found, "the name ends in .gz but the file is not gzip", "name it after what it holds")
    elif zipped and asked == "auto":
        raise DataError(
            path, "gzip", "the file is compressed and its name does not say so", f"rename it to {path.name}.gz"
        )
    form = asked if asked != "auto" else _SUFFIXES.get(suffixes[-1] if suffixes else "")
    if found not in _FORMS:
        raise DataError(path, found, "not a kind of file that is read here", csv_check.READ_HERE)
    holds = _FORMS[found][0]
    if form is None:
        raise DataError(
            path,
            "".join(suffixes) or "no suffix",
            f"the name does not say what the file is; it looks like {found}",
            f"say dataset.format={holds}",
        )
    if form not in _FORMS[found]:
        raise DataError(
            path,
            found,
            f"taken for {form} by " + ("dataset.format" if asked != "auto" else "its name"),
            f"say dataset.format={holds} if that is what it is, or {csv_check.READ_HERE}",
        )
    return form, zipped


# --- columns and relations ------------------------------------------------------------------------------------------


def _mapped(
    spec: DatasetSpec, names: list[str], path: Path, hint: str = "", words: Words = _TABLE
) -> list[tuple[str, str, str]]:
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


def _csv(path: Path, spec: DatasetSpec, zipped: bool) -> tuple[list[Column], str]:
    delimiter = csv_check.DELIMITER_NAMES.get(spec.delimiter, spec.delimiter)
    if len(delimiter) != 1:
        raise DataError("dataset.delimiter", spec.delimiter, "not one character", "give one character, or tab")
    names = csv_check.read_header(path, zipped, delimiter)
    numeric = all(name.strip().replace(".", "", 1).isdigit() for name in names)
    columns = [
        Column(role, name, "text", key, names.index(name))
        for role, name, key in _mapped(spec, names, path, " (is there a header line?)" if numeric else "")
    ]
    csv_check.check_bytes(path, zipped)
    # By place, not by name: the engine folds case in names. Everything is text, so NA, 007, 1e5 and 2^60 stay what
    # they are.
    types = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(names)))
    # Of every column, mapped or not: DuckDB 2.0 counts this list among the columns that a query reads, not those of the
    # file, so behind an unmapped column an empty cell would be NULL in one query and '' in the next.
    kept = ", ".join(f"'c{at}'" for at in range(len(names)))
    options = "header=true, auto_detect=false, strict_mode=true, null_padding=false, ignore_errors=false"
    options += f", columns={{{types}}}, force_not_null=[{kept}], delim={literal(delimiter)}, quote='\"', escape='\"'"
    options += f", compression='{'gzip' if zipped else 'none'}', hive_partitioning=false"
    return columns, f"read_csv({_paths([path])}, {options})"


def _json(con: duckdb.DuckDBPyConnection, path: Path, spec: DatasetSpec, zipped: bool) -> tuple[list[Column], str]:
    relation = json_check.lines(_paths([path]), zipped)
    line, known = json_check.read_fields(con, path, zipped, relation)
    words = replace(_LINES, header=f"line {line}")
    columns = [
        Column(role, name, "text", key, at)
        for at, (role, name, key) in enumerate(_mapped(spec, list(known), path, words=words))
    ]
    fields = [known[column.name] for column in columns]
    json_check.check_fields(con, path, relation, columns, fields)
    return columns, json_check.values(relation, fields)


def _parquet(con: duckdb.DuckDBPyConnection, files: list[Path], spec: DatasetSpec) -> tuple[list[Column], str]:
    footers = parquet_check.read_footers(files)
    columns: list[Column] = []
    for footer in footers:
        mapped = _mapped(spec, list(footer.types), footer.path)
        found = []
        for role, name, key in mapped:
            kind = footer.types[name]
            what = (parquet_check.time_class if role == "t" else parquet_check.id_class)(kind)
            if role == "p" and what != "text":
                what = None
            if what is None:
                need = {"t": "a time (timestamp, date, int, double or ISO text)", "p": "the words of a split"}.get(
                    role, "whole numbers or text"
                )
                raise DataError(
                    f"{footer.path}: column {name}",
                    str(kind),
                    f"of a type that cannot be read as {need}",
                    f"convert the column, or say dataset.columns.{key}=NAME",
                )
            found.append(Column(role, name, what, key))
        for mine, first in zip(found, columns or found, strict=True):
            if mine.kind != first.kind:
                raise DataError(
                    f"{footer.path}: column {mine.name}",
                    mine.kind,
                    f"the files of one log must agree; {footers[0].path.name} has {first.kind}",
                    "write all files with the same column types",
                )
        columns = columns or found
    parquet_check.check_pages(con, files, [c.name for c in columns])
    # can_have_nan: column statistics leave NaN out, and a filter that trusts them misses the very row to be named.
    # union_by_name widens int32 to int64 where files differ in width; it opens every footer, which has just been done.
    union = "true" if len({tuple(f.types[c.name] for c in columns) for f in footers}) > 1 else "false"
    return columns, f"read_parquet({_paths(files)}, union_by_name={union}, can_have_nan=true, hive_partitioning=false)"


def _identifier(column: Column, form: str) -> str:
    return f"c{column.at}" if form != "parquet" else '"' + column.name.replace('"', '""') + '"'


def _paths(files: list[Path]) -> str:
    return "[" + ", ".join(literal(parquet_check.engine_path(path)) for path in files) + "]"
