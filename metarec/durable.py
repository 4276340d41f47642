"""What is to outlast a power cut is forced to the disk: temporary file, fsync, rename, fsync of the directory.

    write_new(scratch, data)      create, write all of it, fsync
    replace_file(path, data)      the same under a name beside `path`, renamed onto it, the directory fsynced

A kill at any instant leaves the old file or the new one, at worst with a temporary beside it that is known by its name.
All raise OSError as it comes; `metarec.runs.atomic` puts it in words.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

TEMPORARY = re.compile(r"^\.(new|old|gone)-(?P<name>.+)-[0-9a-f]{16}\.tmp$")


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk; raises OSError as it comes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Force everything below `directory`, files and names, to the disk; links are left alone."""
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink():
            continue
        if entry.is_dir():
            sync_tree(entry)
        elif entry.is_file():
            sync(entry)
    sync(directory)


def make_directory(path: Path) -> None:
    """Create a directory, with parents, where it is missing; its name outlasts a power cut as what is put into it does."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def temporary(target: Path, purpose: str) -> Path:
    """A fresh name beside ``target``: purpose new (being written), old (being replaced) or gone (being deleted)."""
    return target.with_name(f".{purpose}-{target.name}-{secrets.token_hex(8)}.tmp")


def write_new(path: Path, data: bytes) -> None:
    """Create ``path`` (which must not exist) with ``data`` and fsync it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        view = memoryview(data)
        while view:  # a write may be partial, on a nearly full disk for one
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, whole and for good, or leave it as it was."""
    scratch = temporary(path, "new")
    try:
        write_new(scratch, data)
        os.replace(scratch, path)
        sync(path.parent)
    except OSError:
        with suppress(OSError):  # the disk that has just failed; the next start removes it
            scratch.unlink(missing_ok=True)
        raise
