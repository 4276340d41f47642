"""Parquet, a file or a directory of files: footers, types of the mapped columns, page checksums.

The engine (DuckDB) does not compare the checksums that a writer may have put on its pages, so a flipped bit would
pass as other ids or times. Where the first page carries one (Spark writes them, pyarrow on request), the mapped
columns are read once with checksums compared. A file without checksums cannot show a flipped bit that still decodes;
no reader can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.data.faults import engine_faults
from metarec.data.formats.reader import FILE_SHIFT, Column, Opened, Reader, mapped
from metarec.data.quoting import engine_path, identifier, paths
from metarec.data.spec import DatasetSpec
from metarec.errors import DataError


@dataclass(frozen=True)
class Footer:
    """Names and types of one Parquet file, from its footer."""

    path: Path
    n_rows: int
    types: dict[str, pa.DataType]


def open_files(con: duckdb.DuckDBPyConnection, files: list[Path], spec: DatasetSpec, zipped: bool) -> Opened:
    """Columns by name, of one type in all files. Raises DataError naming file and column where a type or page is wrong."""
    footers = read_footers(files)
    columns: list[Column] = []
    for footer in footers:
        found = []
        for role, name, key in mapped(spec, list(footer.types), footer.path, READER.words):
            kind = footer.types[name]
            what = (time_class if role == "t" else id_class)(kind)
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
            found.append(Column(role, name, what, key, identifier(name)))
        for mine, first in zip(found, columns or found, strict=True):
            if mine.kind != first.kind:
                raise DataError(
                    f"{footer.path}: column {mine.name}",
                    mine.kind,
                    f"the files of one log must agree; {footers[0].path.name} has {first.kind}",
                    "write all files with the same column types",
                )
        columns = columns or found
    check_pages(con, files, [c.name for c in columns])
    # can_have_nan: column statistics leave NaN out, and a filter that trusts them misses the very row to be named.
    # union_by_name widens int32 to int64 where files differ in width; it opens every footer, which has just been done.
    union = "true" if len({tuple(f.types[c.name] for c in columns) for f in footers}) > 1 else "false"
    options = f"union_by_name={union}, can_have_nan=true, hive_partitioning=false"
    row = f"(file_index::BIGINT << {FILE_SHIFT}) + file_row_number"
    return Opened(columns, f"read_parquet({paths(files)}, {options})", row)


def read_footers(files: list[Path]) -> list[Footer]:
    """One `Footer` a file; a file whose footer cannot be read, or that names a column twice, is a DataError."""
    footers = []
    for path in files:
        with engine_faults(path):
            parquet = pq.ParquetFile(path)
            schema, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
            parquet.close()
        # The engine ignores case in column names, so names that differ only there cannot be told apart.
        lower = [name.lower() for name in schema.names]
        doubled = sorted({name for name in schema.names if lower.count(name.lower()) > 1})
        if doubled:
            raise DataError(
                path, ", ".join(doubled), "columns whose names are equal but for case", "rename one of them"
            )
        footers.append(Footer(path, n_rows, dict(zip(schema.names, map(_plain, schema.types), strict=True))))
    return footers


def _plain(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary-encoded column; other types as they are."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def id_class(kind: pa.DataType) -> str | None:
    """``integer`` (fits int64), ``text``, ``big`` (whole numbers read as text), ``float``, or None: not usable as an
    id."""
    if pa.types.is_uint64(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return "big"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return "float" if pa.types.is_floating(kind) else None


def time_class(kind: pa.DataType) -> str | None:
    """``integer``, ``float``, ``text``, ``timestamp[unit]``, ``timestamp[unit, zone]``, ``date``, or None: not a
    time."""
    if pa.types.is_timestamp(kind):
        return f"timestamp[{kind.unit}, zone]" if kind.tz else f"timestamp[{kind.unit}]"
    if pa.types.is_date(kind):
        return "date"
    if pa.types.is_float64(kind) or (pa.types.is_decimal(kind) and kind.scale != 0):
        return "float"  # 32-bit floats are left out: they hold a clock time to two minutes at best
    found = id_class(kind)
    return {"big": "integer", "integer": "integer", "text": "text"}.get(found or "")


def check_pages(con: duckdb.DuckDBPyConnection, files: list[Path], columns: list[str]) -> None:
    """Read ``columns`` of those files whose pages carry checksums, comparing them; a DataError names the file."""
    for path in files:
        with engine_faults(path):
            if not _has_checksums(con, path, columns):
                continue
            with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                for _ in parquet.iter_batches(1 << 17, columns=columns):
                    pass  # decoding compares the checksums; the rows are read again by the engine


def _has_checksums(con: duckdb.DuckDBPyConnection, path: Path, columns: list[str]) -> bool:
    """Whether the first page of one of ``columns`` carries a CRC (field 4 of the Thrift-compact PageHeader)."""
    # Not from pyarrow's column metadata: on a damaged footer it ends the process (an uncaught C++ exception).
    offsets = con.execute(
        "SELECT least(coalesce(nullif(dictionary_page_offset, 0), data_page_offset), data_page_offset) "
        "FROM parquet_metadata(?) WHERE row_group_id = 0 AND list_contains(?, path_in_schema)",
        [engine_path(path), columns],
    ).fetchall()
    with path.open("rb") as file:
        for (offset,) in offsets:
            file.seek(max(0, offset or 0))
            if _header_has_crc(file.read(64)):
                return True
    return False


def _header_has_crc(header: bytes) -> bool:
    """Fields 1-3 of a PageHeader are i32 (tag 0x15, then a varint); a fourth 0x15 is the CRC."""
    at = 0
    for _ in range(3):
        if header[at : at + 1] != b"\x15":
            return False
        at += 1
        while at < len(header) and header[at] & 0x80:
            at += 1
        at += 1
    return header[at : at + 1] == b"\x15"


READER = Reader(
    noun="Parquet",
    example="a Parquet file",
    suffixes=(".parquet", ".pq"),
    open=open_files,
    text=False,
    directory=True,
    kind=lambda head: "parquet" if head.startswith(b"PAR1") else None,
)
