"""What a file is by its first bytes, and the cheap checks of a CSV file before the engine reads it.

The engine (DuckDB) checks the number of fields and UTF-8 row by row. Left to this file: what the bytes look like, the
header, the delimiter, NUL bytes (the engine lets them through) and the checksum of a gzip stream (the engine does not
compute it).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from pathlib import Path

from metarec.errors import DataError

CHUNK = 1 << 20
HEADER_LIMIT = 1 << 16  # bytes in which the header line must end
READ_HERE = "give JSON lines, CSV, CSV.gz or Parquet"
_EMPTY = {"CSV": "give a CSV file with a header line", "JSON lines": "give a file with one JSON object a line"}
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t"}  # a shell and Hydra leave "\t" as two characters
_MAGIC = (
    (b"PAR1", "parquet"),
    (b"PARE", "an encrypted Parquet file"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip or xlsx file"),
    (b"PK\x05\x06", "a zip file"),
    (b"ARROW1", "an Arrow IPC (Feather) file"),
    (b"FEA1", "a Feather file"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel (xls) file"),
    (b"(\xb5/\xfd", "a zstd-compressed file"),
    (b"BZh", "a bzip2-compressed file"),
    (b"\xfd7zXZ\x00", "an xz-compressed file"),
    (b"%PDF", "a PDF file"),
    (b"\xff\xfe\x00\x00", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML file"),
)


def looks_like(head: bytes) -> str:
    """``"parquet"``, ``"gzip"``, ``"text"``, or in words what the first bytes ``head`` (at least 16, if the file has
    them) are of."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return "JSON"
    if b"\x00" in head:
        # UTF-16 without its mark: every other byte of plain letters is NUL. A stray NUL in text is named later, with
        # its line.
        if len(head) >= 4 and (not any(head[0:16:2]) or not any(head[1:16:2])):
            return "UTF-16 text"
        return "a binary file" if any(byte < 9 or 13 < byte < 32 for byte in head.replace(b"\x00", b"", 4)) else "text"
    return "text"


def read_header(path: Path, zipped: bool, delimiter: str) -> list[str]:
    """Column names of the CSV file ``path``; refuses what is not UTF-8 text with a header in ``delimiter``."""
    head, kind = read_head(path, zipped, "CSV")
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < HEADER_LIMIT else "ignore")
        # newline="" keeps a line break inside a quoted name; the first record is the header
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}",
            repr(head[error.start : error.start + 8])[2:-1],
            "bytes that are not UTF-8",
            "convert the file: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from None
    except (csv.Error, StopIteration):
        raise DataError(
            f"{path}: line 1", text[:60], "no header line can be read", "the first line must name the columns"
        ) from None
    _check_delimiter(path, text, names, delimiter, kind)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"{path}: line 1", ", ".join(doubled), "a column name stands twice in the header", "rename one of them"
        )
    return names


def read_head(path: Path, zipped: bool, form: str) -> tuple[bytes, str]:
    """The first bytes of a text file and what they are of; refuses what is empty, not UTF-8 or no text. ``form``: CSV
    or JSON lines."""
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        try:
            head = stream.read(HEADER_LIMIT)
        except (EOFError, zlib.error, OSError) as error:
            raise broken_gzip(path, error) from None
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(path, "no bytes" if not head else "blank", "the file is empty", _EMPTY[form])
    kind = looks_like(head[:64])
    if kind == "UTF-16 text" or kind == "UTF-32 text":
        raise DataError(
            path,
            kind,
            f"{form} {'is' if form == 'CSV' else 'are'} read as UTF-8",
            "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
        )
    if b"\x00" in head:
        raise DataError(
            path,
            f"NUL at byte {head.index(0)}",
            "a text file holds no NUL bytes",
            f"write the file again as UTF-8 {form}",
        )
    if kind != "text" and kind != "JSON":
        raise DataError(path, kind, f"inside the gzip stream is no {form}", READ_HERE)
    return head, kind


def _check_delimiter(path: Path, text: str, names: list[str], delimiter: str, kind: str) -> None:
    line = text.splitlines()[0]
    if kind == "JSON" and (len(names) == 1 or _is_object(line)):
        raise DataError(path, kind, "not CSV", f"say dataset.format=jsonl if every line is an object, or {READ_HERE}")
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
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def check_bytes(path: Path, zipped: bool, form: str = "CSV") -> None:
    """Read the file once: refuse NUL bytes and a gzip stream that is cut off or fails its checksum."""
    lines = 0
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        try:
            while chunk := stream.read(CHUNK):
                at = chunk.find(b"\x00")
                if at >= 0:
                    line = lines + chunk.count(b"\n", 0, at) + 1
                    raise DataError(
                        f"{path}: line {line}",
                        "NUL byte",
                        "a text file holds no NUL bytes",
                        f"write the file again as UTF-8 {form}",
                    )
                lines += chunk.count(b"\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise broken_gzip(path, error) from None


def broken_gzip(path: Path, error: BaseException) -> DataError:
    """A gzip stream that ends early (EOFError) or does not decode."""
    what = "the gzip stream is cut off" if isinstance(error, EOFError) else "the gzip stream is damaged"
    return DataError(path, str(error), what, "get a complete copy: gzip -t FILE must pass")
