"""CSV: a header line, then a row an event, whatever separates the columns; also compressed by gzip.

The engine (DuckDB) checks the number of fields row by row. Left to this file: the header and the delimiter.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import duckdb

from metarec import strict_json
from metarec.data.formats import text
from metarec.data.formats.reader import Column, Opened, Reader, mapped
from metarec.data.formats.recognise import read_here
from metarec.data.quoting import literal, paths
from metarec.data.spec import DELIMITERS, DatasetSpec
from metarec.errors import DataError


def open_file(con: duckdb.DuckDBPyConnection, files: list[Path], spec: DatasetSpec, zipped: bool) -> Opened:
    """Columns by place, all of them text. Raises DataError for a delimiter, header or byte that is wrong."""
    (path,) = files
    delimiter = DELIMITERS.get(spec.delimiter, spec.delimiter)
    if len(delimiter) != 1:
        raise DataError("dataset.delimiter", spec.delimiter, "not one character", "give one character, or tab")
    names = read_header(path, zipped, delimiter)
    numeric = all(name.strip().replace(".", "", 1).isdigit() for name in names)
    hint = " (is there a header line?)" if numeric else ""
    columns = [
        Column(role, name, "text", key, f"c{names.index(name)}")
        for role, name, key in mapped(spec, names, path, READER.words, hint)
    ]
    text.check_bytes(path, zipped, READER)
    # By place, not by name: the engine folds case in names. Everything is text, so NA, 007, 1e5 and 2^60 stay what
    # they are.
    types = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(names)))
    # Of every column, mapped or not: DuckDB 2.0 counts this list among the columns that a query reads, not those of the
    # file, so behind an unmapped column an empty cell would be NULL in one query and '' in the next.
    kept = ", ".join(f"'c{at}'" for at in range(len(names)))
    options = "header=true, auto_detect=false, strict_mode=true, null_padding=false, ignore_errors=false"
    options += f", columns={{{types}}}, force_not_null=[{kept}], delim={literal(delimiter)}, quote='\"', escape='\"'"
    options += f", compression='{'gzip' if zipped else 'none'}', hive_partitioning=false"
    return Opened(columns, f"read_csv({paths(files)}, {options})", "row_number() OVER () - 1")


def read_header(path: Path, zipped: bool, delimiter: str) -> list[str]:
    """Column names of the CSV file ``path``; refuses what is not UTF-8 text with a header in ``delimiter``."""
    head, kind = text.read_head(path, zipped, READER)
    try:
        first = head.decode("utf-8-sig", errors="strict" if len(head) < text.HEADER_LIMIT else "ignore")
        # newline="" keeps a line break inside a quoted name; the first record is the header
        names = next(csv.reader(io.StringIO(first, newline=""), delimiter=delimiter))
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}",
            repr(head[error.start : error.start + 8])[2:-1],
            *text.NOT_UTF8,
        ) from None
    except (csv.Error, StopIteration):
        raise DataError(
            f"{path}: line 1", first[:60], "no header line can be read", "the first line must name the columns"
        ) from None
    _check_delimiter(path, first, names, delimiter, kind)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"{path}: line 1", ", ".join(doubled), "a column name stands twice in the header", "rename one of them"
        )
    return names


def _check_delimiter(path: Path, first: str, names: list[str], delimiter: str, kind: str) -> None:
    line = first.splitlines()[0]
    if kind == "JSON" and (len(names) == 1 or _is_object(line)):
        raise DataError(path, kind, "not CSV", f"say dataset.format=jsonl if every line is an object, or {read_here()}")
    if len(names) > 1:
        return
    for other, name in ((";", "';'"), ("\t", "tab"), (",", "','"), ("|", "'|'")):
        if other != delimiter and other in line:
            # the shell takes the outer quotes, Hydra the inner ones
            say = "dataset.delimiter=tab" if other == "\t" else f"'dataset.delimiter=\"{other}\"' (with both quotes)"
            raise DataError(
                f"{path}: line 1", line[:60], f"the columns are separated by {name}, not by {delimiter!r}", f"say {say}"
            )


def _is_object(line: str) -> bool:
    try:
        return isinstance(strict_json.lenient(line), dict)
    except ValueError:
        return False


READER = Reader(
    noun="CSV",
    example="a CSV file with a header line",
    suffixes=(".csv", ".tsv", ".txt"),
    open=open_file,
    listed=("CSV", "CSV.gz"),
    delimiter=True,
    fault=text.LineFaults(
        mixed=(
            "not plain CSV",
            "line ends are mixed (\\r\\n and \\n) or a quote stands out of place",
            'write it again with one kind of line end (dos2unix FILE) and quoted fields as "..."',
        ),
        fields=(
            "the header names {expected} columns, this row has {found} fields",
            'mend the row; a field that holds the delimiter must be in quotes ("a,b")',
        ),
        quote=("a quote is opened and never closed", 'close it, or write a quote inside a field as ""'),
        long=("a row of more than 2 MB", "look for a quote that is never closed"),
        other=("{engine}", "mend the row"),
    ),
)
