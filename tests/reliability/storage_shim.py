"""The file system between a run and its disk: every call that changes it is counted, and the n-th fails as it is told.

    open mkdir write fsync rename replace unlink rmdir      below `root`, through `os`, and through `Path.open` for writing

    before         the process is killed before the call             (no call after it does anything)
    amid           ... in the middle of a write, else behind the call
    power          ... before the call, and what was not fsynced is gone (names of renames in every second case)
    ENOSPC         the call fails once, a write after half of its bytes
    ENOSPC_ever    ... and every later call that needs room too
    EIO, EACCES    the call fails once
    short          a write takes half of its bytes and says so: no failure, and nothing to be told

Beside it, what was done against the discipline (temporary file, fsync, rename, fsync of the directory) is noted in `faults`
without any failure: a file renamed with bytes that were not fsynced, a rename or a new name whose directory was not, a name
written in place, a change without the lock or by calls that are not counted.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from metarec.durable import TEMPORARY
from metarec.runs.lock import HOLDER, LOCK

MODES = ("before", "amid", "power", "ENOSPC", "ENOSPC_ever", "EIO", "EACCES", "short")
KILLS = ("before", "amid", "power")
CALLS = ("open", "mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir")
NEEDS_ROOM = ("open", "mkdir", "write", "fsync")
WRITING = os.O_WRONLY | os.O_RDWR
_OPEN = os.open


class Killed(BaseException):
    """SIGKILL: nothing of the code under test catches it, and what its `finally` does reaches no disk."""


class Shim:
    """Counts, fails and notes; `with shim.on():` around the code under test."""

    def __init__(self, root: Path, nth: int = -1, mode: str = "before") -> None:
        self.root, self.nth, self.mode = root.resolve(), nth, mode
        self.calls: list[str] = []  # "write step-000004/state.json", in order
        self.faults: list[str] = []
        self.dead = self.full = False
        self._files: dict[int, Path] = {}  # handle -> path
        self._unsynced: dict[int, int] = {}  # inode -> bytes that are on the disk for good
        self._renamed: list[tuple[Path, Path, Path | None]] = []  # from, to, what was there; not yet synced
        self._new: set[Path] = set()  # names whose directory is not yet synced
        self._counted: set[int] = set()  # inodes that were written by calls that are counted
        self._before = self._stamps()
        self._backups = Path(tempfile.mkdtemp(prefix="replaced-", dir=root.parent))

    @contextmanager
    def on(self) -> Iterator[Shim]:
        """Between every call and the disk, for the block."""
        with ExitStack() as stack:
            for name in CALLS:
                stack.enter_context(mock.patch.object(os, name, self._wrapped(name, getattr(os, name))))
            stack.enter_context(mock.patch.object(Path, "open", self._path_open(Path.open)))
            yield self
        if not self.dead:
            self._at_the_end()

    def close(self) -> None:
        """Remove what the shim kept."""
        shutil.rmtree(self._backups, ignore_errors=True)

    def _stamps(self) -> dict[int, tuple[int, int]]:
        """Inode -> size and time of its last change, of every file below the root."""
        every = [path.lstat() for path in self.root.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER)]
        return {state.st_ino: (state.st_size, state.st_mtime_ns) for state in every}

    def _unlocked(self, shown: str) -> None:
        """Note a change of the run while anybody else could take its lock."""
        if shown in (LOCK, ".") or not (self.root / LOCK).exists():
            return
        handle = _OPEN(self.root / LOCK, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.faults.append(f"changed without the lock: {shown}")
        except BlockingIOError:
            pass
        finally:
            os.close(handle)

    # --- one call

    def _place(self, path: Any, keywords: dict[str, Any]) -> Path | None:
        """Where below the root a call goes; None for one elsewhere. Names below an open directory have no path."""
        if isinstance(path, int):
            return self._files.get(path)
        if keywords.get("dir_fd") is not None:
            return self.root / "removed" / str(path)  # rmtree
        found = Path(os.path.abspath(os.fspath(path)))
        return found if found.is_relative_to(self.root) else None

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **keywords: Any) -> Any:
            place = self._place(first, keywords)
            reading = name == "open" and not (rest and rest[0] & WRITING)
            if place is None or reading:
                found = real(first, *rest, **keywords)
                if reading and place is not None and keywords.get("dir_fd") is None:
                    self._files[found] = place
                return found
            shown = place.relative_to(self.root).as_posix()
            return self._one(name, shown, lambda: self._done(name, place, real, first, *rest, **keywords),
                             lambda: self._half(name, real, first, *rest))  # fmt: skip

        return call

    def _path_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        shim = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                path = Path(str(self.name))

                def whole() -> int:
                    shim._dirty(os.fstat(self.fileno()).st_ino, path)
                    return super(File, self).write(view)

                return int(
                    shim._one("write", path.name, whole, lambda: super(File, self).write(view[: len(view) // 2]))
                )

        def path_open(path: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
            if not set(mode) & set("wax+") or shim._place(path, {}) is None:
                return real(path, mode, *args, **keywords)

            def whole() -> Any:
                if "a" not in mode:
                    shim._in_place(path.resolve())
                shim._name(path.resolve())
                file = File(str(path), mode.replace("b", "").replace("t", ""))
                shim._counted.add(os.fstat(file.fileno()).st_ino)
                shim._files[file.fileno()] = path.resolve()
                if "w" in mode:
                    shim._unsynced[os.fstat(file.fileno()).st_ino] = 0
                return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8", write_through=True)

            return shim._one("open", path.name, whole, lambda: None)

        return path_open

    def _one(self, name: str, shown: str, whole: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(f"{name} {shown}")
        self._unlocked(shown)
        if self.full and name in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number != self.nth or (self.mode == "short" and name != "write"):
            return whole()
        if self.mode == "short":
            return half()
        if self.mode in KILLS:
            if self.mode == "amid":
                half() if name == "write" else whole()
            self.dead = True
            raise Killed
        if name == "write":
            half()
        self.full = self.mode == "ENOSPC_ever"
        code = getattr(errno, self.mode.removesuffix("_ever"))
        raise OSError(code, os.strerror(code))

    def _half(self, name: str, real: Callable[..., Any], first: Any, *rest: Any) -> Any:
        if name != "write":
            return None
        data = memoryview(rest[0]).cast("B")
        self._dirty(os.fstat(first).st_ino, self._files[first])
        return real(first, data[: len(data) // 2])

    # --- what it means for the disk

    def _done(self, name: str, place: Path, real: Callable[..., Any], first: Any, *rest: Any, **keywords: Any) -> Any:
        if name == "fsync":
            self._synced(place)
            return None  # the disk itself is not what is under test, and slow
        if name == "write":
            self._dirty(os.fstat(first).st_ino, place)
        if name == "open" and not rest[0] & os.O_APPEND:
            self._in_place(place)
        if name in ("open", "mkdir"):
            self._name(place)
        if name in ("rename", "replace"):
            return self._rename(place, Path(os.path.abspath(os.fspath(rest[0]))), real)
        found = real(first, *rest, **keywords)
        if name == "open":
            self._files[found] = place
            self._counted.add(os.fstat(found).st_ino)
            self._unsynced.setdefault(os.fstat(found).st_ino, os.fstat(found).st_size)
        return found

    def _dirty(self, inode: int, path: Path) -> None:
        if path.name not in (LOCK, HOLDER):
            self._unsynced.setdefault(inode, path.stat().st_size if path.exists() else 0)

    def _name(self, place: Path) -> None:
        if not place.exists() and place.name != LOCK:
            self._new.add(place)

    def _synced(self, place: Path) -> None:
        if place.is_dir():
            self._new = {path for path in self._new if path.parent != place}
            self._renamed = [one for one in self._renamed if one[1].parent != place]
        elif place.exists():
            self._unsynced.pop(place.stat().st_ino, None)

    def _rename(self, old: Path, new: Path, real: Callable[..., Any]) -> Any:
        for path in [old] if old.is_file() else sorted(old.rglob("*")):
            if path.is_file() and path.stat().st_ino in self._unsynced:
                self.faults.append(f"no fsync of the file before its rename: {new.name}: {path.name}")
        if any(old in path.parents for path in self._new):
            self.faults.append(f"no fsync of the directory before its rename: {new.name}")
        self._new = {path for path in self._new if path != old and old not in path.parents}
        kept = None
        if new.is_file():
            kept = self._backups / f"{len(self.calls)}"
            shutil.copy2(new, kept)
        found = real(old, new)
        if self._purpose(new) != "gone":  # what is being deleted may come back
            self._renamed.append((old, new, kept))
        return found

    @staticmethod
    def _purpose(path: Path) -> str | None:
        found = TEMPORARY.match(path.name)
        return None if found is None else found[1]

    def _in_place(self, place: Path) -> None:
        parts = place.relative_to(self.root).parts
        if place.name != LOCK and not any(TEMPORARY.match(part) for part in parts):
            self.faults.append(f"written in place: {place.name}")

    def _at_the_end(self) -> None:
        for _, new, _ in self._renamed:
            if new.exists():
                self.faults.append(f"no fsync of the directory behind a rename: {new.name}")
        for path in sorted(self._new):
            if path.exists():
                self.faults.append(f"no fsync of the directory behind a new name: {path.name}")
        after = self._stamps()
        for path in self.root.rglob("*"):
            if not path.is_file() or path.name in (LOCK, HOLDER):
                continue
            inode = path.stat().st_ino
            if inode in self._unsynced:
                self.faults.append(f"no fsync of the file: {path.name}")
            if inode not in self._counted and self._before.get(inode) != after[inode]:
                self.faults.append(f"written by calls that are not counted: {path.name}")

    def cut_power(self) -> None:
        """Contents that were not fsynced are gone; of renames that were not, every second trial's names too."""
        for path in list(self.root.rglob("*")):
            if (
                path.is_file()
                and not path.is_symlink()
                and (size := self._unsynced.get(path.stat().st_ino)) is not None
            ):
                os.truncate(path, min(size, path.stat().st_size))
        if self.nth % 2:
            for path in sorted(self._new, reverse=True):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            for old, new, kept in reversed(self._renamed):
                if new.exists() and not old.exists() and old.parent.is_dir():
                    os.rename(new, old)
                    if kept is not None:
                        shutil.copy2(kept, new)
