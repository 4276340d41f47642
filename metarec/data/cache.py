"""The cache of prepared data: one directory per fingerprint, complete or absent, made by one process at a time.

<cache_dir>/prepared/<fingerprint>/          the finished directory
<cache_dir>/prepared/<fingerprint>.lock      held while it is made
<cache_dir>/prepared/.tmp-<fingerprint>-*    work in progress, renamed into place at the end; leftovers of a killed run
                                             are removed by the next holder of the lock
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from metarec.data import store
from metarec.data.spec import DatasetSpec
from metarec.data.store import Prepared, open_prepared
from metarec.durable import sync
from metarec.errors import DataError, EnvironmentFault

RECIPE = 1  # of preparation; raised by every change that moves a result
_ELSEWHERE = "set cache_dir=DIR to a directory of yours"
FINGERPRINT_LENGTH = 32  # hexadecimal digits: 128 bits
_NO_MATTER = (
    "path",
    "in_data_dir",
    "memory_limit",
    "images",
    "prompts",
    "characters",
    "history",
)  # change no result of a preparation


def fingerprint(spec: DatasetSpec, source: dict[str, Any]) -> str:
    """Identity of a preparation: the input files (``source``), every option that can change the result, the format."""
    options = {key: value for key, value in asdict(spec).items() if key not in _NO_MATTER}
    if spec.source != "synthetic":
        options.pop("world")
    if spec.columns.split is None:  # a log without one keeps the cache that it had before there were split columns
        options["columns"].pop("split")
    if spec.sessions.order == "real":  # as before there was another order
        options["sessions"].pop("order")
        options["sessions"].pop("shuffle_seed")
    whole = {"format": store.FORMAT, "recipe": RECIPE, "source": source, "options": options}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def open_or_build(cache_dir: Path, name: str, build: Callable[[Path], None], report: Callable[[str], None]) -> Prepared:
    """The prepared directory ``name``, made by ``build(empty directory)`` unless it is there and whole.

    A damaged directory is made again and ``report`` says why. A failing build leaves nothing behind. EnvironmentFault
    when the disk is full or the cache cannot be written.
    """
    home = cache_dir.expanduser().absolute() / "prepared"
    place = home / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # of the user's own path, whichever it is
        raise EnvironmentFault(home, error.strerror, "the cache cannot be made", _ELSEWHERE) from error
    with _environment(home), _lock(home / f"{name}.lock", report):
        if place.exists():
            try:
                return open_prepared(place)
            except DataError as damage:
                report(f"cache {damage}; preparing again")
        for leftover in home.glob(f".tmp-{name}-*"):
            shutil.rmtree(leftover)
        work = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=home))
        try:
            build(work)
            if place.exists():
                # a reader may hold maps of the damaged files: they stay valid after the removal
                place.rename(work.with_name(f"{work.name}-damaged"))
            work.rename(place)
            sync(home)
        finally:
            for leftover in home.glob(f"{work.name}*"):
                shutil.rmtree(leftover)
        return open_prepared(place, verify=False)  # written a moment ago


@contextmanager
def _lock(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report("another process is preparing the same data; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Failures of the disk, in one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentFault(
                home, "no space left", "the disk of the cache is full", "free space or set cache_dir=DIR"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EIO):
            raise EnvironmentFault(home, error.strerror, "the cache cannot be written", _ELSEWHERE) from error
        raise
