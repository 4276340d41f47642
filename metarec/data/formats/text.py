"""What formats of text share: the first bytes, NUL bytes, gzip, lines as rows, and the engine's word on a broken line.

The engine (DuckDB) checks UTF-8 row by row. It lets NUL bytes through and does not compute the checksum of a gzip
stream, so both are looked at here.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metarec.data.faults import first_line, shown
from metarec.data.formats.recognise import BOM, HEAD, is_text, looks_like, read_here
from metarec.data.quoting import paths
from metarec.errors import DataError

if TYPE_CHECKING:
    from metarec.data.formats.reader import Reader

CHUNK = 1 << 20
HEADER_LIMIT = 1 << 16  # bytes in which a header line must end
NOT_UTF8 = "bytes that are not UTF-8", "convert the file: iconv -f LATIN1 -t UTF-8 FILE > NEW"


def read_head(path: Path, zipped: bool, reader: Reader) -> tuple[bytes, str]:
    """The first bytes of a text file and what they are of; refuses what is empty, not UTF-8 or no text."""
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        try:
            head = stream.read(HEADER_LIMIT)
        except (EOFError, zlib.error, OSError) as error:
            raise _broken_gzip(path, error) from None
    if not head.removeprefix(BOM).strip():
        raise DataError(path, "no bytes" if not head else "blank", "the file is empty", f"give {reader.example}")
    kind = looks_like(head[:HEAD])
    if kind == "UTF-16 text" or kind == "UTF-32 text":
        fix = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
        raise DataError(path, kind, f"{reader.is_} read as UTF-8", fix)
    if not is_text(kind, head[:HEAD]):
        raise DataError(path, kind, f"inside the gzip stream is no {reader.noun}", read_here())
    if b"\x00" in head:
        raise _nul(path, f"NUL at byte {head.index(0)}", reader)
    return head, kind


def check_bytes(path: Path, zipped: bool, reader: Reader) -> None:
    """Read the file once: refuse NUL bytes and a gzip stream that is cut off or fails its checksum."""
    lines = 0
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        try:
            while chunk := stream.read(CHUNK):
                at = chunk.find(b"\x00")
                if at >= 0:
                    line = lines + chunk.count(b"\n", 0, at) + 1
                    raise _nul(f"{path}: line {line}", "NUL byte", reader)
                lines += chunk.count(b"\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _broken_gzip(path, error) from None


def lines(path: Path, zipped: bool) -> str:
    """The relation (row, line) of a file: text as it stands, row from 0, without blank lines.

    Of one column: the delimiter is a control character, so a line that holds it is refused.
    """
    options = "header=false, auto_detect=false, strict_mode=true, null_padding=false, ignore_errors=false"
    options += ", columns={'line': 'VARCHAR'}, force_not_null=['line'], delim='\x01', quote='', escape=''"
    options += f", compression='{'gzip' if zipped else 'none'}', hive_partitioning=false"
    numbered = f"SELECT row_number() OVER () - 1 AS row, line FROM read_csv({paths([path])}, {options})"
    return f"(SELECT row, line FROM ({numbered}) WHERE trim(line, ' ' || chr(9) || chr(13)) <> '')"


@dataclass(frozen=True)
class LineFaults:
    """Messages of the engine's reader of text, as a format says them: (what is wrong, the way out); of `mixed` also
    the value. ``{expected}`` and ``{found}`` are numbers of fields, ``{engine}`` its own words. The defaults are for
    `lines`."""

    mixed: tuple[str, str, str] = (
        "mixed line ends",
        "some lines end in \\r\\n and some in \\n",
        "write it again with one kind: dos2unix FILE",
    )
    fields: tuple[str, str] = ("the line holds the control character \\x01", "mend or remove the line")
    quote: tuple[str, str] = ("{engine}", "mend or remove the line")
    long: tuple[str, str] = ("a line of more than 2 MB", "write one event a line")
    other: tuple[str, str] = ("{engine}", "mend or remove the line")

    def __call__(self, text: str, where: object) -> DataError | None:
        """The fault that the engine's message ``text`` speaks of; None where it is of something else."""
        if "invalid state" in text and "CSV" in text:
            return DataError(where, *self.mixed)
        if "Unexpected end of GZIP" in text:
            return _broken_gzip(where, EOFError("end of file"))
        found = re.search(r"CSV Error on Line: (\d+)(?:\nOriginal Line: ?([^\n]*))?", text)
        if found is None:
            return None
        numbers = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text)
        if numbers:
            said = self.fields
        elif "unterminated quote" in text:
            said = self.quote
        elif "Maximum line size" in text:
            said = self.long
        elif "utf-8" in text.lower() or "unicode" in text.lower():
            said = NOT_UTF8
        else:
            said = self.other
        expected, given = numbers.groups() if numbers else ("", "")
        words = {"expected": expected, "found": given, "engine": first_line(text.partition("\nPossible")[0])}
        return DataError(
            f"{where}: line {found[1]}", shown(found[2] or ""), said[0].format_map(words), said[1].format_map(words)
        )


def _nul(where: object, value: str, reader: Reader) -> DataError:
    return DataError(where, value, "a text file holds no NUL bytes", f"write the file again as UTF-8 {reader.noun}")


def _broken_gzip(where: object, error: BaseException) -> DataError:
    """A gzip stream that ends early (EOFError) or does not decode."""
    what = "the gzip stream is cut off" if isinstance(error, EOFError) else "the gzip stream is damaged"
    return DataError(where, str(error), what, "get a complete copy: gzip -t FILE must pass")
