"""Checkpoints: a directory of tensors, state and a manifest, written whole and verified before anything is parsed.

    <directory>/<name>/tensors.safetensors   every tensor, generator states (uint8) included
    <directory>/<name>/state.json            everything else; floats keep every bit in JSON
    <directory>/<name>/manifest.json         format version, size and SHA-256 of the two, and of itself
    <directory>/best.json, last.json         pointers: name of a checkpoint and the SHA-256 of its manifest

The three files are written into a temporary directory, each fsynced, then the directory is renamed: a checkpoint is
there in full or not at all. Only safetensors and JSON are read, so no file can run code. The bytes that were hashed are
the bytes that are parsed; nothing is memory-mapped, for a file rewritten under a map ends the process.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from metarec import strict_json
from metarec.contained import refuse_link, understood
from metarec.durable import make_directory, sync, temporary, write_new
from metarec.errors import CheckpointError, DivergedError, nearest
from metarec.runs import atomic
from metarec.runs.environment import metarec_version
from metarec.runs.manifest import damaged, digest, digest_file, read_sealed, read_verified, sealed_bytes

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
KIND, POINTER_KIND = "metarec-checkpoint", "metarec-pointer"
POINTERS = ("best", "last")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # no separator, nothing hidden: guards what a pointer may name


def save_checkpoint(directory: Path, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``<directory>/<name>`` durably and return its path; an existing one of that name is replaced.

    ``tensors``: any device and stride; stored contiguous. Ends names in a step number (``step-000500``): that number
    is what "newest" means. Raises DivergedError naming a tensor or key that is not finite (nothing is written then),
    EnvironmentFault naming the path when the disk refuses. Tensors are of any shape.
    """
    target = directory / _checked_name(name, directory)
    contents = {
        TENSORS: pack_tensors({key: _storable(tensors[key], f"{target}: {key}") for key in sorted(tensors)}),
        STATE: atomic.json_bytes(dict(state), str(target / STATE)),
    }
    files = {file: digest(data) for file, data in contents.items()}
    manifest = {"kind": KIND, "format": FORMAT, "metarec": metarec_version(), "files": files}
    contents[MANIFEST] = sealed_bytes(manifest, str(target / MANIFEST))
    scratch = temporary(target, "new")
    try:
        make_directory(directory)
        scratch.mkdir()
        for file, data in contents.items():
            write_new(scratch / file, data)
        sync(scratch)
        _put_in_place(scratch, target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise atomic.fault(target, error) from error
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU, of any shape) and state of the checkpoint directory ``path``, verified first.

    Raises CheckpointError naming the file for a missing, additional, truncated or altered file and for a format of a
    later metarec.
    """
    files = _manifest(path)["files"]
    tensor_bytes, state_bytes = read_verified(path / TENSORS, files[TENSORS]), read_verified(path / STATE, files[STATE])
    try:
        # copies: what is parsed starts at any address, and sums over a vector depend on where it starts
        tensors = {name: value.clone() for name, value in parse_tensors(tensor_bytes).items()}
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise damaged(path / TENSORS, f"no safetensors ({error})") from error
    try:
        state = strict_json.loads(state_bytes)
    except ValueError as error:
        raise damaged(path / STATE, f"no JSON ({error})") from error
    if not isinstance(state, dict):
        raise damaged(path / STATE, "no JSON object")
    return tensors, state


def verify_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless every file of ``path`` is there and is what the manifest says."""
    files = _manifest(path)["files"]
    for file in (TENSORS, STATE):
        read_verified(path / file, files[file])


def point(directory: Path, pointer: str, name: str, **fields: Any) -> None:
    """Let ``<directory>/<pointer>.json`` (best or last) name the checkpoint ``name``; ``fields`` are kept beside it."""
    if pointer not in POINTERS:
        raise ValueError(f"pointer {pointer!r}: one of {POINTERS}")
    target = directory / _checked_name(name, directory)
    content = {
        "kind": POINTER_KIND,
        "format": FORMAT,
        "pointer": pointer,
        "checkpoint": name,
        "manifest_sha256": digest_file(target / MANIFEST)["sha256"],
        "fields": fields,
    }
    path = directory / f"{pointer}.json"
    atomic.write_bytes(path, sealed_bytes(content, str(path)))


def unpoint(directory: Path, pointer: str) -> None:
    """Remove a pointer, of which nothing is read; one that was never set is no fault."""
    path = directory / f"{pointer}.json"
    try:
        if os.path.lexists(path):
            path.unlink()
            sync(directory)
    except OSError as error:
        raise atomic.fault(path, error) from error


def read_pointer(directory: Path, pointer: str) -> dict[str, Any] | None:
    """{"checkpoint": name, "fields": {...}} of a pointer, None when it was never set; CheckpointError when damaged."""
    path = directory / f"{pointer}.json"
    if not os.path.lexists(path):
        return None
    content = read_sealed(path, kind=POINTER_KIND, version=FORMAT)
    if content.get("pointer", pointer) != pointer:  # one of an earlier metarec does not say
        raise damaged(path, f"it is the file of another pointer, {content['pointer']}")
    with understood(path, "checkpoint, manifest_sha256 or fields"):
        name, expected, fields = content["checkpoint"], content["manifest_sha256"], dict(content["fields"])
    target = directory / _checked_name(name, path)
    manifest = target / MANIFEST
    for inside in (target, manifest):
        refuse_link(inside)
    if not manifest.is_file():
        raise CheckpointError(
            path, target.name, "the checkpoint it names is not there", _others(directory, target.name)
        )
    if digest_file(manifest)["sha256"] != expected:
        raise damaged(manifest, f"it is not the checkpoint that {path.name} was set to")
    return {"checkpoint": name, "fields": fields}


def resolve(path: Path) -> Path:
    """The checkpoint directory meant by ``path``: itself, or the best one of a run or ``checkpoints`` directory.

    Nothing is verified here but the pointer; ``load_checkpoint`` does the rest.
    """
    if not path.exists():
        names = [entry.name for entry in path.parent.iterdir() if entry.exists()] if path.parent.is_dir() else []
        near = nearest(path.name, names)
        hint = f"did you mean {path.parent / near}?" if near else "give a run directory or a checkpoint directory"
        raise CheckpointError(path, "missing", "no such run or checkpoint", hint)
    pointer = "last" if path.name == "last.json" else "best"
    if path.is_file() and path.name in (TENSORS, STATE, MANIFEST, "best.json", "last.json"):
        path = path.parent
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if directory != path:
        refuse_link(directory)
    if (directory / TENSORS).exists() or (directory / STATE).exists():
        return directory
    found = read_pointer(directory, pointer) if directory.is_dir() else None
    if found is not None:
        return directory / str(found["checkpoint"])
    if directory.is_dir() and list_checkpoints(directory):
        raise CheckpointError(
            directory, f"{pointer}.json", f"the run has no {pointer} checkpoint yet", _others(directory, "")
        )
    raise CheckpointError(path, "no checkpoint", "neither a run nor a checkpoint", "give the directory of one")


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoint directories in ``directory``, oldest step first, damaged ones included."""
    if not directory.is_dir():
        return []
    found = [entry for entry in directory.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir()]
    found = [entry for entry in found if not entry.is_symlink()]
    return sorted(found, key=lambda entry: (step_of(entry.name), entry.name))


def latest_good(directory: Path, check: Callable[[Path], None] = verify_checkpoint) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `check`, and a line for each newer one passed over; for automatic resume."""
    skipped = []
    for path in reversed(list_checkpoints(directory)):
        try:
            check(path)
        except CheckpointError as error:
            skipped.append(f"skipped {path.name}: {error}")
        else:
            return path, skipped
    return None, skipped


def prune(directory: Path, keep: Collection[str]) -> list[str]:
    """Remove the checkpoints that are neither in ``keep`` nor pointed at; returns their names.

    Each is renamed first, so that a kill in between leaves no half checkpoint under its name. A damaged pointer raises
    before anything is removed.
    """
    pointed = {found["checkpoint"] for pointer in POINTERS if (found := read_pointer(directory, pointer))}
    removed = []
    for path in list_checkpoints(directory):
        if path.name in pointed or path.name in keep:
            continue
        discard(path)
        removed.append(path.name)
    return removed


def discard(path: Path) -> None:
    """Remove one checkpoint; renamed first, so that a kill in between leaves no half checkpoint under its name."""
    going = temporary(path, "gone")
    try:
        os.rename(path, going)
        sync(path.parent)
        shutil.rmtree(going)
    except OSError as error:
        raise atomic.fault(path, error) from error


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename ``scratch`` to ``target``. A directory cannot be replaced in one step, so an old one moves aside first;
    a kill between the two renames is mended by ``atomic.clean_leftovers``, which puts it back."""
    aside = None
    if target.exists():
        aside = temporary(target, "old")
        os.rename(target, aside)
    try:
        os.rename(scratch, target)
    except OSError:
        if aside is not None:
            os.rename(aside, target)
        raise
    sync(target.parent)
    if aside is not None:
        shutil.rmtree(aside)


def _manifest(path: Path) -> dict[str, Any]:
    """The verified manifest of ``path``, whose directory holds the three files and nothing else."""
    if not path.is_dir():
        raise CheckpointError(path, "missing", "no such checkpoint directory", _others(path.parent, path.name))
    content = read_sealed(path / MANIFEST, kind=KIND, version=FORMAT)
    files = content.get("files")
    if not isinstance(files, dict) or set(files) != {TENSORS, STATE}:
        raise damaged(path / MANIFEST, "it does not list the two files of a checkpoint")
    for entry in sorted(path.iterdir()):
        if entry.name not in (TENSORS, STATE, MANIFEST):
            raise CheckpointError(
                entry, "additional file", "not part of the checkpoint", "remove it or copy the rest again"
            )
    return content


def _storable(tensor: Tensor, where: str) -> Tensor:
    plain = tensor.detach().to("cpu", copy=True).contiguous()  # a copy of its own: safetensors refuses shared storage
    if plain.is_floating_point() and not bool(torch.isfinite(plain).all()):
        count = int((~torch.isfinite(plain)).sum())
        raise DivergedError(
            where, f"{count} of {plain.numel()} entries", "not finite, so the checkpoint is not written",
            "lower the step sizes or resume from an earlier checkpoint",
        )  # fmt: skip
    return plain


def _checked_name(name: object, where: Path) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or name.endswith(".json"):
        raise CheckpointError(where, repr(name), "no name for a checkpoint", "use letters, digits and - _ . only")
    return name


def step_of(name: str) -> int:
    """The number that a checkpoint's name ends in; -1 where there is none, as in a directory that no run has made."""
    digits = re.search(r"(\d{1,18})$", name)
    return int(digits[1]) if digits else -1


def _others(directory: Path, name: str) -> str:
    names = [path.name for path in list_checkpoints(directory)]
    near = nearest(name, names) or (names[-1] if names else None)
    return f"give another one, such as {directory / near}" if near else "give another run or checkpoint directory"
