"""Files that are there in full or not at all.

Written to a temporary file beside the target, fsync(file), rename over the target, fsync(directory). A kill at any
instant leaves the old file or the new one, at worst with a temporary beside it that ``clean_leftovers`` removes at the
next start. A full disk, a lost permission or an I/O error becomes one EnvironmentFault that names the path.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

from metarec import durable
from metarec.errors import EnvironmentFault
from metarec.metrics.finite import plain_json

_WAY_OUT = {
    errno.ENOSPC: "free some space, or set output_dir to another disk; what was written before is intact",
    errno.EDQUOT: "free some of your quota, or set output_dir to another disk; what was written before is intact",
    errno.EACCES: "grant the permission, or use a directory of your own (output_dir, cache_dir)",
    errno.EPERM: "grant the permission, or use a directory of your own (output_dir, cache_dir)",
    errno.EROFS: "the file system is read-only; set output_dir to a writable one",
    errno.ELOOP: "its links lead to themselves; give the directory itself",
    errno.ENAMETOOLONG: "give a shorter path (output_dir, cache_dir)",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "the machine has too many open files: end what holds them",
    errno.EIO: "the disk reports a hardware error; use another one and check its health",
}


def fault(path: Path, error: OSError) -> EnvironmentFault:
    """The one-line form of ``error`` at ``path``, with the way out that fits its cause."""
    code = error.errno or 0
    reason = os.strerror(code) if code else str(error)
    way_out = _WAY_OUT.get(code, "check the path, its owner and its disk; what was written before is intact")
    name = errno.errorcode.get(code, type(error).__name__)
    return EnvironmentFault(path, name, reason, way_out)


def is_temporary(name: str) -> bool:
    """Whether ``name`` is one that ``temporary`` makes."""
    return durable.TEMPORARY.match(name) is not None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, atomically and durably. Raises EnvironmentFault naming ``path``."""
    try:
        durable.replace_file(path, data)
    except OSError as error:
        raise fault(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: object, where: str, *, indent: int | None = 2) -> bytes:
    """``value`` as JSON text in UTF-8 with a final line break; keys keep their order; DivergedError for NaN."""
    text = json.dumps(plain_json(value, where), indent=indent, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def write_json(path: Path, value: object) -> None:
    """Replace ``path`` by ``value`` as JSON. Raises DivergedError naming file and key for NaN or infinity."""
    write_bytes(path, json_bytes(value, path.name))


def clean_leftovers(directory: Path, name: str | None = None) -> list[str]:
    """Remove what a killed writer left in ``directory``; hold the run's lock. Returns one line for each.

    name: only what was to become an entry of this name; where others may be writing other entries.

    An "old" entry whose target is missing is the only copy of a checkpoint that was being replaced: it is put back.
    """
    done: list[str] = []
    if not directory.is_dir():
        return done
    for entry in sorted(directory.iterdir()):
        found = durable.TEMPORARY.match(entry.name)
        if found is None or name not in (None, found["name"]):
            continue
        target = directory / found["name"]
        try:
            if found[1] == "old" and not target.exists():
                os.rename(entry, target)
                done.append(f"{target}: put back after an interrupted replacement")
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
                done.append(f"{entry}: removed, left by an interrupted write")
            else:
                entry.unlink()
                done.append(f"{entry}: removed, left by an interrupted write")
        except OSError as error:
            raise fault(entry, error) from error
    return done
