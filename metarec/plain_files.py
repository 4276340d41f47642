"""Reading what somebody named as a file: opening a FIFO waits for a writer that may never come, and a device has no end."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


class NotPlain(OSError):
    """A FIFO, device or socket in the place of a file."""

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(errno.EINVAL, f"{kind(mode)}, no plain file", str(path))


def kind(mode: int) -> str:
    """What something is that is neither a file nor a directory, for a message."""
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"


def require_plain(path: Path) -> Path:
    """`path`, for a library to open. NotPlain where it is there and is neither a file nor a directory; what else is wrong
    with it, whoever opens it says."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotPlain(path, mode)
    return path


def read_bytes(path: Path) -> bytes:
    """The whole of a plain file; OSError for anything else."""
    return require_plain(path).read_bytes()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole of a plain file as text; OSError for anything else."""
    return require_plain(path).read_text(encoding=encoding)
