"""One writer for a run directory.

The lock is the operating system's (flock), so it ends with its holder, however that ends: after a kill -9 the next
start works at once. Beside it stands a small file that tells a second starter who holds it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import filelock

from metarec import strict_json
from metarec.errors import EnvironmentFault
from metarec.runs import atomic

LOCK, HOLDER = ".lock", ".lock_holder.json"
_held: set[tuple[str, int]] = set()  # (directory, thread) that have a lock in this process
_PATIENCE = 0.5  # seconds a second starter waits; also gives the holder time to write its name


@contextmanager
def hold(run_dir: Path, *, timeout: float = _PATIENCE, way_out: str = "start a new run") -> Iterator[None]:
    """Hold the lock of ``run_dir`` (which must exist) inside the ``with`` block; inside of another such block of the same
    thread nothing more happens.

    Raises EnvironmentFault naming the holder's pid and start time when another process has it for ``timeout`` seconds.
    """
    if not run_dir.is_dir():  # the lock would create it, and with it a run that nobody started
        raise EnvironmentFault(run_dir, "missing", "no run directory to lock", "give the directory of an existing run")
    own = (str(run_dir.resolve()), threading.get_ident())
    if own in _held:  # the command took it before anything heavy was imported
        yield
        return
    lock = filelock.FileLock(run_dir / LOCK, timeout=timeout)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise EnvironmentFault(
            run_dir, _holder(run_dir), "another process is writing this run", f"wait for it to end, or {way_out}"
        ) from error
    except OSError as error:
        raise atomic.fault(run_dir / LOCK, error) from error
    except NotImplementedError as error:
        what = "the file system has no locks, so two writers could not be told apart"
        raise EnvironmentFault(run_dir / LOCK, error, what, "set output_dir to a local disk") from error
    _held.add(own)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        atomic.write_json(run_dir / HOLDER, {"pid": os.getpid(), "started": started})
        yield
    finally:
        _held.discard(own)
        with suppress(OSError):  # it is words for a message only
            (run_dir / HOLDER).unlink(missing_ok=True)
        lock.release()


def wait_free(run_dir: Path, seconds: float) -> None:
    """Wait until nobody writes ``run_dir``, at most so long: a job whose starter was killed has a moment to save."""
    with suppress(EnvironmentFault), hold(run_dir, timeout=seconds):
        pass


def _holder(run_dir: Path) -> str:
    """Words for a message only: whoever the file names may have gone in this instant."""
    try:
        found = strict_json.loads((run_dir / HOLDER).read_bytes())
        return f"held by pid {found['pid']} since {found['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "held by a process that has not given its name yet"
