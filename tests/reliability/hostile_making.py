"""Foreign files made by hand: pickles that run, archives that lie about their size, runs that are sealed and wrong.

A seal is a SHA-256 that anyone can compute, so every change here is sealed again as metarec would: what is tested is what
stands behind the digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metarec.runs.checkpoint import MANIFEST, STATE, TENSORS
from metarec.runs.manifest import digest_file, sealed_bytes


class Runs:
    """Makes a directory when it is unpickled by whoever trusts its input."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def evil(mark: Path) -> bytes:
    """A pickle that makes `mark`."""
    return pickle.dumps({"w": Runs(mark)})


def best(run: Path) -> Path:
    """The checkpoint that best.json names."""
    return run / "checkpoints" / json.loads((run / "checkpoints" / "best.json").read_text())["checkpoint"]


def reseal(run: Path) -> None:
    """Digests of every checkpoint, pointer and of the run anew, as whoever changed them would."""
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = checkpoint / MANIFEST
        if checkpoint.is_dir() and not checkpoint.is_symlink() and manifest.is_file():
            sealed(manifest, lambda c, at=checkpoint: c | {"files": {f: digest_file(at / f) for f in (TENSORS, STATE)}})
    for name in ("best", "last"):
        pointer = run / "checkpoints" / f"{name}.json"

        def now(content: dict[str, Any], home: Path = pointer.parent) -> dict[str, Any]:
            manifest = home / str(content["checkpoint"]) / MANIFEST
            return content | ({"manifest_sha256": digest_file(manifest)["sha256"]} if manifest.is_file() else {})

        sealed(pointer, now)
    whole = run / "manifest.json"
    sealed(whole, lambda c: c | {"files": {name: _digest(run / name) for name in c["files"]}})


def _digest(path: Path) -> dict[str, Any]:
    return digest_file(path) if path.is_file() else {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}


def sealed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A sealed JSON file with a change, sealed again; a file that is none any more stays as it is."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError):
        return
    content.pop("sha256", None)
    path.write_bytes(sealed_bytes(change(content), str(path)))


def state(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The state of the best checkpoint changed in place, or by what `change` returns, and sealed."""
    path = best(run) / STATE
    content = json.loads(path.read_text())
    found = change(content)
    path.write_text(json.dumps(content if found is None else found))
    reseal(run)


def replaced(run: Path, name: str, data: bytes) -> None:
    """A file of the best checkpoint with other bytes, sealed."""
    (best(run) / name).write_bytes(data)
    reseal(run)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, JSON text or what is to be one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return out.getvalue()


def entries(data: bytes) -> dict[str, bytes]:
    """Name -> bytes of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def huge(data: bytes) -> bytes:
    """A saved tensor of 10 x 10 whose pickle claims 2^40 numbers in its storage."""
    found = entries(data)
    (name,) = [name for name in found if name.endswith("data.pkl")]
    old, new = b"K\x64", b"\x8a\x06" + (2**40).to_bytes(6, "little")
    assert old in found[name]
    found[name] = found[name].replace(old, new)
    return archive(found)


def overlapping(data: bytes) -> bytes:
    """A zip whose directory names one entry a thousand times."""
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as file:
        info = file.infolist()[0]
        for number in range(1000):
            twin = zipfile.ZipInfo(f"x/{number}")
            twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = (
                info.header_offset, info.file_size + 100, info.compress_size + 100, info.CRC,
            )  # fmt: skip
            file.filelist.append(twin)
        file._didModify = True  # type: ignore[attr-defined]
    return out.getvalue()
