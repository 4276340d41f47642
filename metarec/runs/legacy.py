"""Import of PyTorch ``.pt`` and ``.pth`` files: the one place that opens them.

Only a flat dict of tensors is taken, either the file's top level or under ``model_state_dict`` or ``state_dict``. The
loader runs with ``weights_only=True``, stated and without any second try. That alone does not bound memory, so the
archive is looked at first: entries must be stored, not compressed (a small file cannot claim gigabytes), and no tensor
may be larger than the file (a stride of 0 can claim any size).
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from metarec.errors import CheckpointError

_NESTED = ("model_state_dict", "state_dict")
_FIX = "save it with torch.save(model.state_dict(), path), or give a metarec checkpoint"


def read_legacy(path: Path) -> dict[str, Tensor]:
    """The named tensors of ``path``, dense, contiguous and on the CPU; anything else in it is a CheckpointError.

    Of any shape: whoever loads them into a model compares.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises half a dozen kinds; each means "no file of plain tensors"
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        why = f"not a file of plain tensors ({first[:200]})"
        raise CheckpointError(path, type(error).__name__, why, _FIX) from error
    if isinstance(content, dict):
        for key in _NESTED:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(path, type(content).__name__, "no dict of named tensors", _FIX)
    limit = path.stat().st_size
    return {_key(path, key): _tensor(path, key, value, limit) for key, value in content.items()}


def _check_archive(path: Path) -> None:
    try:
        state = os.stat(path)
    except OSError as error:
        raise CheckpointError(path, "missing", error.strerror or "cannot be read", "check the path") from error
    if not stat.S_ISREG(state.st_mode):
        raise CheckpointError(path, stat.filemode(state.st_mode), "not a regular file", "give the .pth file itself")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(path, "damaged", f"no PyTorch archive ({error})", _FIX) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > state.st_size:
            raise CheckpointError(path, entry.filename, "a compressed entry, which PyTorch never writes", _FIX)


def _key(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise CheckpointError(path, repr(key), "a tensor's name must be text", _FIX)
    return key


def _tensor(path: Path, key: object, value: object, limit: int) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(f"{path}: {key}", type(value).__name__, "not a dense tensor", _FIX)
    if value.numel() * value.element_size() > limit:
        raise CheckpointError(f"{path}: {key}", tuple(value.shape), "a tensor larger than its file", _FIX)
    return value.detach().contiguous()
