"""A save path broken on purpose is caught, each fault by its name: what the other drivers find means something.

Every mutation changes one function of the package for a while. The same trace and the same failures as in
`storage_faults` are then run over it, some of them, and what they report must begin with what the mutation is known by.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import filelock
import torch
from reliability.figures import figure
from reliability.storage_faults import chosen, copied, prepare, traced, trial
from reliability.storage_tiny import newest_good

from metarec import durable, train
from metarec.errors import CheckpointError
from metarec.runs import atomic, checkpoint, lines
from metarec.runs.history import History
from metarec.runs.manifest import damaged, digest_file, sealed_bytes
from metarec.train import Store
from metarec.verbs import train as verb

NAME = "broken_save_path"


def _written(path: Path, data: bytes, *, loop: bool = True, synced: bool = True, told: bool = True) -> None:
    """`durable.write_new` less one of the things that it does; not `told`: what the disk says is not passed on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with ExitStack() as stack:
        stack.enter_context(suppress(*([] if told else [OSError])))
        view = memoryview(data)
        while view:
            taken = os.write(handle, view)
            view = view[taken:] if loop else view[:0]
        if synced:
            os.fsync(handle)
    os.close(handle)


def _less(**what: bool) -> Callable[[Path, bytes], None]:
    return lambda path, data: _written(path, data, **what)


def _synced_elsewhere(path: Path, data: bytes) -> None:
    _written(path, data, synced=False)
    _SYNC(path.parent)


def _synced_too_early(path: Path, data: bytes) -> None:
    _written(path, data[:-1])
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(handle, data[-1:])
    os.close(handle)


def _not_counted(path: Path, data: bytes) -> None:
    """As a library does that opens files by itself."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _renamed_too_early(path: Path, data: bytes) -> None:
    scratch = durable.temporary(path, "new")
    _written(scratch, data, synced=False)
    os.replace(scratch, path)
    _SYNC(path)
    _SYNC(path.parent)


def _parents(path: Path) -> None:
    _SYNC(path.parent if path.is_dir() else path)


def _but_scratch(path: Path) -> None:
    if durable.TEMPORARY.match(path.name) is None:
        _SYNC(path)


def _sync_told_nobody(path: Path) -> None:
    with suppress(OSError):
        _SYNC(path)


def _files_only(path: Path) -> None:
    if not path.is_dir():
        _SYNC(path)


_SYNC, _REPLACE = durable.sync, durable.replace_file


def _in_place(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.write(handle, data)
    os.fsync(handle)
    os.close(handle)


def _unverified(path: Path, expected: object) -> bytes:
    return path.read_bytes()


def _removed_first(scratch: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    os.rename(scratch, target)
    durable.sync(target.parent)


def _swallowed(path: Path, data: bytes) -> None:
    with suppress(OSError):
        _REPLACE(path, data)


def _no_prune_but(self: Store, checkpoint_every: int, *, ended: bool = False) -> None:
    """Only the last one stays, whatever it says of its best."""
    for path in checkpoint.list_checkpoints(self.directory)[:-1]:
        checkpoint.discard(path)


def _raw(path: Path, error: OSError) -> BaseException:
    return error


def _under_its_own_name(target: Path, purpose: str) -> Path:
    return (
        target if purpose == "new" and target.suffix != ".json" and not target.exists() else _TEMPORARY(target, purpose)
    )


def _put_but_there(scratch: Path, target: Path) -> None:
    if scratch != target:
        _PUT(scratch, target)


def _pointed_too_early(scratch: Path, target: Path) -> None:
    sha = digest_file(scratch / checkpoint.MANIFEST)["sha256"]
    content = {"kind": checkpoint.POINTER_KIND, "format": checkpoint.FORMAT, "pointer": "last", "checkpoint": target.name,
               "manifest_sha256": sha, "fields": {"step": checkpoint.step_of(target.name)}}  # fmt: skip
    atomic.write_bytes(target.parent / "last.json", sealed_bytes(content, "last.json"))
    _PUT(scratch, target)


def _pointer_removed_first(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    _REPLACE(path, data)


def _of_nothing(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(b"").hexdigest()}


def _half_verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    """Only the first bytes are compared, with the file as it was when it was first read."""
    data = path.read_bytes()
    begin = hashlib.sha256(data[:64]).hexdigest()
    if _FIRST.setdefault((path.name, expected["sha256"]), begin) != begin:
        raise damaged(path, "it begins otherwise")
    return data


def _one_write(self: History, record: Mapping[str, Any]) -> None:
    try:
        self._file.write(atomic.json_bytes(dict(record), self.path.name, indent=None))
    except OSError as error:
        raise atomic.fault(self.path, error) from error


def _no_line_break(self: History, record: Mapping[str, Any]) -> None:
    self._file.write(atomic.json_bytes(dict(record), self.path.name, indent=None).rstrip(b"\n") + b" ")


def _late(self: Store, checkpoint_every: int, *, ended: bool = False) -> None:
    """The history is forced to the disk once the checkpoint is there that vouches for it."""
    if self.lines_of is not None:
        handle = os.open(self.lines_of / "history.jsonl", os.O_WRONLY)
        os.fsync(handle)
        os.close(handle)
    _PRUNE(self, checkpoint_every, ended=ended)


def _of_step_before(at: Any) -> dict[str, Any]:
    return {**asdict(at), "step": max(at.step - 1, 0)}


def _best_is_oldest(directory: Path, pointer: str, name: str, **fields: Any) -> None:
    oldest = checkpoint.list_checkpoints(directory)[0].name
    _POINT(directory, pointer, oldest if pointer == "best" else name, **fields)


def _old_one_thrown_away(directory: Path, name: str | None = None) -> list[str]:
    for path in directory.glob(".old-*"):
        shutil.rmtree(path)
    return _CLEAN(directory, name)


class _Brief(filelock.FileLock):
    """A lock that is given back at once."""

    def acquire(self, *args: Any, **keywords: Any) -> Any:
        found = super().acquire(*args, **keywords)
        self.release()
        return found


_TEMPORARY, _PUT, _POINT, _CLEAN = durable.temporary, checkpoint._put_in_place, checkpoint.point, atomic.clean_leftovers
_PRUNE, _FIRST = Store.prune, dict[tuple[str, str], str]()


Patches = list[tuple[Any, str, Any]]


def _new(by: Callable[..., Any]) -> Patches:
    return [(durable, "write_new", by), (checkpoint, "write_new", by)]


def _every_sync(by: Callable[..., Any]) -> Patches:
    return [(durable, "sync", by), (checkpoint, "sync", by)]


# name -> (what is replaced: object, attribute, by what), how what the harness says of it begins, failures tried: so many
# of all, or (mode, how the call begins, which one of those)
MUTATIONS: dict[str, tuple[Patches, str, int | tuple[str, str, int]]] = {
    "no fsync of a file": (_new(_less(synced=False)), "no fsync of the file before its rename", 0),
    "no fsync of a directory": (
        _every_sync(_files_only),
        "no fsync of the directory behind a rename", 0,
    ),
    "no fsync of the history": ([(History, "sync", lambda self: None)], "no fsync of the file: history.jsonl", 0),
    "an in-place write": ([(durable, "replace_file", _in_place)], "written in place", 0),
    "a manifest that is not checked": (
        [(checkpoint, "read_verified", _unverified), (lines, "check", lambda run_dir, stored: None)], "silent damage", 0,
    ),
    "a checkpoint removed before the new one is in place": ([(checkpoint, "_put_in_place", _removed_first)], "lost", 140),
    "the best one pruned": ([(Store, "prune", _no_prune_but)], "lost", 40),
    "a full disk that is not told": ([(atomic, "write_bytes", _swallowed)], "an error of the disk that nobody", 140),
    "an error of the disk that is not put in words": ([(atomic, "fault", _raw)], "not told in one line", 40),
    "fsync of another file": (_new(_synced_elsewhere), "no fsync of the file before its rename", 0),
    "fsync ahead of the last write": (_new(_synced_too_early), "no fsync of the file before its rename", 0),
    "a rename ahead of the fsync": (
        [(durable, "replace_file", _renamed_too_early)], "no fsync of the file before its rename", 0,
    ),
    "fsync of another directory": (_every_sync(_parents), "no fsync of the directory behind a rename", 0),
    "a new directory whose names are not forced": (
        [(checkpoint, "sync", _but_scratch)], "no fsync of the directory before its rename", 0,
    ),
    "a directory made without its name": (
        [(checkpoint, "make_directory", lambda path: path.mkdir(exist_ok=True))],
        "no fsync of the directory behind a new name: checkpoints", 0,
    ),
    "calls that are not counted": (_new(_not_counted), "written by calls that are not counted", 0),
    "a checkpoint written under its own name": (
        [(checkpoint, "temporary", _under_its_own_name), (checkpoint, "_put_in_place", _put_but_there)],
        "written in place", 0,
    ),
    "a temporary that nobody knows": (
        [(of, "temporary", lambda path, purpose: path.with_name(f"{path.name}.{purpose}")) for of in (durable, checkpoint)],
        "written in place", 0,
    ),
    "a lock that is given back too early": ([(filelock, "FileLock", _Brief)], "changed without the lock", 0),
    "a digest of something else": ([(checkpoint, "digest", _of_nothing)], "the run failed", 0),
    "a line without its end": ([(History, "append", _no_line_break)], "other end: history.jsonl", 0),
    "an optimizer that is not saved": ([(train, "optimizer_tensors", lambda *args: {})], "other end: tensors", 0),
    "the state of another step": ([(train, "asdict", _of_step_before)], "other end: state", 0),
    "a best that is another": ([(checkpoint, "point", _best_is_oldest)], "other end: best.json", 0),
    "the first bytes checked alone": (
        [(checkpoint, "read_verified", _half_verified), (lines, "check", lambda run_dir, stored: None)], "silent damage", 0,
    ),
    "a step that is not looked at": (
        [(verb, "check_state", lambda path, state: None)], "silent damage: step", 0,
    ),
    "a short write taken for a whole one": (_new(_less(loop=False)), "lost", ("short", "write checkpoints/.new-step", 3)),
    "half a line taken for a whole one": (
        [(History, "append", _one_write)], "other end: history.jsonl", ("short", "write history.jsonl", 0),
    ),
    "a torn file that is not told": (
        _new(_less(told=False)), "an error of the disk that nobody", ("ENOSPC", "write checkpoints/.new-step", 0),
    ),
    "an fsync that fails and is not told": (
        _every_sync(_sync_told_nobody), "an error of the disk that nobody", ("EIO", "fsync checkpoints", 3),
    ),
    "a pointer ahead of its checkpoint": (
        [(checkpoint, "_put_in_place", _pointed_too_early)], "a pointer that points nowhere",
        ("before", "rename checkpoints/.new-step", 0),
    ),
    "a pointer removed ahead of the next": (
        [(durable, "replace_file", _pointer_removed_first)], "a pointer that points nowhere",
        ("before", "replace checkpoints/.new-last", 0),
    ),
    "a history forced behind its checkpoint": (
        [(History, "sync", lambda self: None), (Store, "prune", _late)], "lost", ("power", "fsync history.jsonl", 0),
    ),
    "leftovers that stay": (
        [(atomic, "clean_leftovers", lambda *args: [])], "other end: files",
        ("before", "rename checkpoints/.new-step", 0),
    ),
    "the old one thrown away": (
        [(atomic, "clean_leftovers", _old_one_thrown_away)], "lost", ("before", "rename checkpoints/.new-step", 1),
    ),
    "lines that are not cut": (
        [(lines, "cut", lambda run_dir, stored: None)], "other end: history.jsonl",
        ("before", "rename checkpoints/.new-step", 0),
    ),
}  # fmt: skip


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The package with one fault in it."""
    with ExitStack() as stack:
        for of, attribute, by in MUTATIONS[name][0]:
            stack.enter_context(mock.patch.object(of, attribute, by))
        yield


def silent_damage(base: Path, tries: int = 60) -> list[str]:
    """Flipped bits in a checkpoint that loads all the same, though not as what was saved; a whole one in another's place."""
    found = []
    with copied(base) as run_dir:
        *before, path = checkpoint.list_checkpoints(run_dir / "checkpoints")
        shutil.rmtree(path)
        shutil.copytree(before[-1], path)
        if newest_good(run_dir) == checkpoint.step_of(path.name):
            found.append(f"silent damage: {path.name}")
    with copied(base) as run_dir:
        path = checkpoint.list_checkpoints(run_dir / "checkpoints")[-1]
        rng, kept = random.Random(0), checkpoint.load_checkpoint(path)
        for _ in range(tries):
            file = path / rng.choice((checkpoint.TENSORS, checkpoint.STATE))
            data = bytearray(file.read_bytes())
            before = bytes(data)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            try:
                tensors, state = checkpoint.load_checkpoint(path)
                if state != kept[1] or not _same(tensors, kept[0]):
                    found.append(f"silent damage: {file.name}")
            except CheckpointError:
                pass
            file.write_bytes(before)
    return found


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def findings(base: Path, whole: Path, failures: int | tuple[str, str, int], damage: bool = True) -> list[str]:
    """What the harness has to say of the package as it is now; nothing where it is whole."""
    calls, found = traced(base, whole)
    if damage:
        found += silent_damage(base)
    if isinstance(failures, tuple):
        mode, begins, which = failures
        return found + trial(base, whole, [n for n, call in enumerate(calls) if call.startswith(begins)][which], mode)
    modes = ("before", "ENOSPC")
    for nth, mode in chosen(len(calls), modes, failures) if failures else ():
        found += trial(base, whole, nth, mode)
    return found


def caught(name: str, base: Path, whole: Path) -> tuple[bool, list[str]]:
    """Whether the harness tells the fault by its name, and what it said."""
    _, begins, failures = MUTATIONS[name]
    with broken(name):
        found = findings(base, whole, failures, begins.startswith("silent damage"))
    return any(one.startswith(begins) for one in found), found


def run(full: bool, out: Path) -> dict[str, Any]:
    """A figure a mutation; quick leaves out those that need failures to be seen."""
    figures = []
    with tempfile.TemporaryDirectory() as where:
        base, whole = prepare(Path(where))
        clean = findings(base, whole, 40)
        figures.append(figure("nothing broken", "nothing said", f"{len(clean)} said", not clean))
        for name, (_, begins, failures) in MUTATIONS.items():
            if failures and not full:
                continue
            seen, found = caught(name, base, whole)
            first = next((one for one in found if one.startswith(begins)), "nothing")
            first = re.sub(rf"{re.escape(where)}/\S*?run/", "RUN/", first)  # not the directory of this one machine
            figures.append(figure(name, f"caught as '{begins}'", f"{len(found)} said, such as: {first}", seen))
    return {"figures": figures}
