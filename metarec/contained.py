"""No path that comes out of a directory leads out of it: links, devices and pipes in what was handed over are refused.

Whoever types a path is trusted, and may type a link; what lies in the directory is not. A link in a run is followed by
whoever appends to a history or locks the directory, so a directory from elsewhere could have files of its reader's
written to. Checkpoints, runs and teachers are made of regular files and directories alone. A download cache of models is
made of links into a place for their contents, beside the snapshot, and that place alone may be led to (`plain_file`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarec.errors import CheckpointError

# of a tracker, which links from there to its own logs; nothing of ours is read or written in it
THEIRS = "wandb"
_FIX = "copy the directory with its contents (cp -rL), if you trust where the link leads"
_FIX_DAMAGE = "use another checkpoint, or copy the file again from where it is intact"


def refuse_links(directory: Path) -> None:
    """CheckpointError for the first link under a directory, at any depth, that leads out of it, and for the first thing
    that is no regular file, directory or link."""
    home, ahead = directory.resolve(), [directory]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise CheckpointError(error.filename, type(error).__name__, "cannot be read", _FIX_DAMAGE) from error
        for entry in found:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if Path(entry.path) != directory / THEIRS:
                    ahead.append(Path(entry.path))
            elif stat.S_ISLNK(mode) and _leads_into(Path(entry.path), home):
                continue  # trackers keep such links to their latest files
            elif not stat.S_ISREG(mode):
                raise _foreign(Path(entry.path), mode)


def refuse_link(path: Path) -> None:
    """CheckpointError where a path, which stands in a directory that was handed over, is a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # whoever opens it says so
    if stat.S_ISLNK(mode):
        raise _foreign(path, mode)


def plain_file(path: Path) -> Path:
    """The regular file that `path` is, or leads to inside of its own directory or the contents of a download cache
    (``snapshots/<revision>/file`` -> ``blobs/<digest>``). CheckpointError for anything else."""
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise CheckpointError(path, "missing", "no such file, or a loop of links", _FIX_DAMAGE) from error
    if not stat.S_ISREG(mode):
        raise _foreign(path, mode)
    home = path.parent.resolve()
    allowed = [home]
    for above in (home, *home.parents):
        if above.parent.name == "snapshots":
            allowed.append(above.parent.parent / "blobs")
            break
    if not any(real.is_relative_to(place) for place in allowed):
        raise CheckpointError(path, real, "a link that leads out of its directory", _FIX)
    return real


def parse_json(data: str | bytes, **options: Any) -> Any:
    """`json.loads`, which is called nowhere else: of brackets without end it makes a RecursionError, and whoever reads a
    file expects the ValueError of whatever else is no JSON."""
    try:
        return json.loads(data, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextmanager
def understood(where: Path, what: str) -> Iterator[None]:
    """Around the parsing of what a file says, and of nothing else: where its parts are missing or of another kind, a
    CheckpointError says that the file is not what metarec writes. A seal tells damage, not who has made it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CheckpointError(where, what, f"is not as metarec writes it ({said[:120]})", _FIX_DAMAGE) from error


def _leads_into(path: Path, home: Path) -> bool:
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a loop
        return False


def _foreign(path: Path, mode: int) -> CheckpointError:
    if stat.S_ISLNK(mode):
        return CheckpointError(
            path, f"-> {os.readlink(path)}", "a link that leads out of its directory, or stands where a file must", _FIX
        )
    return CheckpointError(path, stat.filemode(mode), "not a regular file", _FIX_DAMAGE)
