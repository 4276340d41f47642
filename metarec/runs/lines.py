"""The files of a run that grow line by line, and how a checkpoint vouches for what they held when it was saved.

A checkpoint's state has size and SHA-256 of each (``lines``). A run that goes on from it compares so many first bytes
and cuts the rest off, which belongs to steps that will be done again: a digit that flipped in a history is found as one
in a tensor is, and an earlier checkpoint, saved ahead of the damaged line, is gone on from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarec.errors import CheckpointError
from metarec.runs import atomic
from metarec.runs.guard import FILE, PRETRAIN_FILE
from metarec.runs.manifest import damaged, digest_file

GROWING = ("history.jsonl", FILE)  # of the loop that has checkpoints
WHOLE = ("pretrain_history.jsonl", PRETRAIN_FILE)  # complete before the first checkpoint
LINES = (*GROWING, *WHOLE)


def measured(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"size", "sha256"} of those that are there; each is to be synced before."""
    try:
        return {name: digest_file(run_dir / name) for name in LINES if (run_dir / name).exists()}
    except OSError as error:
        raise atomic.fault(run_dir, error) from error


def check(run_dir: Path, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """CheckpointError naming the first file that does not begin with what `measured` saw."""
    for name, expected in stored.items():
        path = run_dir / name
        try:
            with path.open("rb") as file:
                begin = file.read(int(expected["size"]))
        except FileNotFoundError as error:
            what = "the checkpoint was saved behind lines of it"
            raise CheckpointError(path, "missing", what, "go on from an earlier checkpoint") from error
        except OSError as error:
            raise atomic.fault(path, error) from error
        if hashlib.sha256(begin).hexdigest() != expected["sha256"]:
            raise damaged(
                path, f"its first {expected['size']} bytes are not those that the checkpoint was saved behind"
            )


def cut(run_dir: Path, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Cut the growing files back to what `measured` saw, atomically; one that was not there then goes."""
    for name in GROWING:
        path = run_dir / name
        if not path.exists():
            continue
        try:
            if name not in stored:
                os.unlink(path)
            elif path.stat().st_size > stored[name]["size"]:
                with path.open("rb") as file:
                    begin = file.read(int(stored[name]["size"]))
                atomic.write_bytes(path, begin)
        except OSError as error:
            raise atomic.fault(path, error) from error
