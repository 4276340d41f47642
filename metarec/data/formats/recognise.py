"""Which format a file is in: its name, its first bytes and dataset.format must agree, and a line says where not."""

from __future__ import annotations

import stat
from pathlib import Path

from metarec import plain_files
from metarec.data.formats import readers
from metarec.errors import DataError

HEAD = 64  # bytes that tell one kind of file from another
BOM = b"\xef\xbb\xbf"  # of UTF-8
_TEXT = ("text", "UTF-16 text", "UTF-32 text")  # what any format of text may look like
_OTHERS = (  # kinds of files that people have and that are not read here
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
    """What the first bytes ``head`` (at least 16, if the file has them) are of: a format's own `kind`, ``"gzip"``,
    ``"text"``, or what else it is in words."""
    for found in readers().values():
        if (kind := found.kind(head)) is not None:
            return kind
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return name
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    if b"\x00" in head:
        # UTF-16 without its mark: every other byte of plain letters is NUL. A stray NUL in text is named later, with
        # its line.
        if len(head) >= 4 and (not any(head[0:16:2]) or not any(head[1:16:2])):
            return "UTF-16 text"
        return "a binary file" if any(byte < 9 or 13 < byte < 32 for byte in head.replace(b"\x00", b"", 4)) else "text"
    return "text"


def read_as(kind: str, head: bytes) -> list[str]:
    """The formats that a file of this kind may be in, likeliest first; none where it is not read here."""
    known = readers()
    own = [name for name, found in known.items() if found.kind(head) == kind]
    # a line of text may begin like another format's, so only its reader can tell
    text = [name for name, found in known.items() if found.text and name not in own]
    return own + text if kind == "gzip" or is_text(kind, head) else own


def is_text(kind: str, head: bytes) -> bool:
    """Whether a file of this kind, with these first bytes, is read as lines of UTF-8, by whatever format."""
    return kind in _TEXT or any(found.text and found.kind(head) == kind for found in readers().values())


def listed() -> list[str]:
    """All that is read here, as messages list it: formats of one file, the newest first, then those of directories."""
    newest_first = list(readers().values())[::-1]
    ordered = sorted(newest_first, key=lambda found: found.directory)
    return [name for found in ordered for name in found.listed or (found.noun,)]


def read_here() -> str:
    """The way out for a file that is in no format of these."""
    *most, last = listed()
    return f"give {', '.join(most)} or {last}"


def format_of(path: Path, mode: int, asked: str) -> tuple[str, bool]:
    """(format, whether gzip) of one file; ``asked``: dataset.format."""
    if not stat.S_ISREG(mode):
        what = "the log is read more than once, so it must be a plain file"
        raise DataError(path, plain_files.kind(mode), what, "write it to a file first")
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise DataError(
            path, error.strerror or "unreadable", "the file cannot be read", "check its permissions"
        ) from None
    known = readers()
    if not head:
        usual = [found.example for found in known.values()][:2]
        raise DataError(path, "0 bytes", "the file is empty", f"give {', or '.join(usual)}")
    kind, suffixes = looks_like(head), [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = kind == "gzip"
    if suffixes[-1:] == [".gz"] and asked == "auto":
        suffixes.pop()
        if not zipped:
            raise DataError(path, kind, "the name ends in .gz but the file is not gzip", "name it after what it holds")
    elif zipped and asked == "auto":
        raise DataError(
            path, "gzip", "the file is compressed and its name does not say so", f"rename it to {path.name}.gz"
        )
    by_suffix = {suffix: name for name, found in known.items() for suffix in found.suffixes}
    form = asked if asked != "auto" else by_suffix.get(suffixes[-1] if suffixes else "")
    possible = read_as(kind, head)
    if not possible:
        raise DataError(path, kind, "not a kind of file that is read here", read_here())
    if form is None:
        raise DataError(
            path,
            "".join(suffixes) or "no suffix",
            f"the name does not say what the file is; it looks like {kind}",
            f"say dataset.format={possible[0]}",
        )
    if form not in possible:
        raise DataError(
            path,
            kind,
            f"taken for {form} by " + ("dataset.format" if asked != "auto" else "its name"),
            f"say dataset.format={possible[0]} if that is what it is, or {read_here()}",
        )
    return form, zipped


def format_of_directory(path: Path, asked: str) -> tuple[list[Path], str]:
    """(files in the order of their names, format) of a directory that is one log."""
    known = readers()
    able = {name: found for name, found in known.items() if found.directory}
    noun = " or ".join(found.noun for found in able.values())
    if asked in known and asked not in able:
        fix = f"give the file, or a directory of {noun} files"
        raise DataError(path, "a directory", f"{known[asked].is_} read from one file", fix)
    try:
        # Names that start with . or _ are marks of other programs (_SUCCESS, .crc), as Spark and Arrow have it.
        entries = sorted(p for p in path.iterdir() if not p.name.startswith((".", "_")))
    except OSError as error:
        raise DataError(
            path, error.strerror or "unreadable", "the directory cannot be read", "check its permissions"
        ) from None
    for name in [asked] if asked in able else able:
        if files := [p for p in entries if p.suffix.lower() in able[name].suffixes]:
            break
    else:
        held = ", ".join(p.name for p in entries[:3]) or "nothing"
        inside = " or ".join(f"*{found.suffixes[0]}" for found in able.values())
        raise DataError(
            path, held, f"the directory holds no {noun} file", f"give a file, or a directory with {inside} in it"
        )
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise DataError(
                file, error.strerror or "unreadable", "the file cannot be read", "check the directory"
            ) from None
        if stat.S_ISDIR(mode):
            what = f"{able[name].noun} files are read from one level only"
            raise DataError(file, "a directory", what, f"say dataset.path={file}")
        format_of(file, mode, name)
    return files, name
