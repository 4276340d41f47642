"""A save path broken on purpose is caught, each fault by its name: what the other drivers find means something.

Every mutation changes one function of the package for a while. The same trace and the same failures as in
`storage_faults` are then run over it, some of them, and what they report must begin with what the mutation is known by.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reliability.figures import figure
from reliability.storage_faults import chosen, copied, prepare, traced, trial

from metarec import durable
from metarec.errors import CheckpointError
from metarec.runs import atomic, checkpoint, lines
from metarec.runs.history import History
from metarec.train import Store

NAME = "broken_save_path"


def _no_fsync_of_files(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.close(handle)


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


# name -> (what is replaced: object, attribute, by what), how what the harness says of it begins, failures tried
MUTATIONS: dict[str, tuple[list[tuple[Any, str, Any]], str, int]] = {
    "no fsync of a file": ([(durable, "write_new", _no_fsync_of_files)], "no fsync of the file before its rename", 0),
    "no fsync of a directory": (
        [(durable, "sync", _files_only), (checkpoint, "sync", _files_only)],
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
}  # fmt: skip


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The package with one fault in it."""
    with ExitStack() as stack:
        for of, attribute, by in MUTATIONS[name][0]:
            stack.enter_context(mock.patch.object(of, attribute, by))
        yield


def silent_damage(base: Path, tries: int = 60) -> list[str]:
    """Flipped bits in a checkpoint that loads all the same, though not as what was saved."""
    found = []
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


def findings(base: Path, whole: Path, failures: int) -> list[str]:
    """What the harness has to say of the package as it is now; nothing where it is whole."""
    calls, faults = traced(base)
    found = faults + silent_damage(base)
    modes = ("before", "ENOSPC")
    for nth, mode in chosen(len(calls), modes, failures) if failures else ():
        found += trial(base, whole, nth, mode)
    return found


def caught(name: str, base: Path, whole: Path) -> tuple[bool, list[str]]:
    """Whether the harness tells the fault by its name, and what it said."""
    _, begins, failures = MUTATIONS[name]
    with broken(name):
        found = findings(base, whole, failures)
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
            figures.append(figure(name, f"caught as '{begins}'", f"{len(found)} said, such as: {first}", seen))
    return {"figures": figures}
