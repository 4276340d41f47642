"""Size and SHA-256 of files, in a JSON file that also vouches for itself.

One flipped bit in a tensor file loads as wrong numbers without an error in nearly every case, so whatever is read back
is compared with a digest first. The JSON that holds the digests is written in one canonical form and carries the
SHA-256 of that form in ``sha256``: a flipped bit in the manifest itself, even in white space, is found too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from metarec.contained import parse_json
from metarec.errors import CheckpointError
from metarec.metrics.finite import plain_json
from metarec.runs.atomic import fault

_LIMIT = 16 * 2**20  # bytes; a larger "manifest" is none, and is not read into memory
_FIX_DAMAGE = "use another checkpoint, or copy the file again from where it is intact"


def digest(data: bytes) -> dict[str, Any]:
    """{"size", "sha256"} of ``data``."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def digest_file(path: Path) -> dict[str, Any]:
    """{"size", "sha256"} of the file at ``path``, read in blocks."""
    size = 0
    running = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            running.update(block)
            size += len(block)
    return {"size": size, "sha256": running.hexdigest()}


def sealed_bytes(content: dict[str, Any], where: str) -> bytes:
    """``content`` in canonical form with its own ``sha256``."""
    plain = plain_json(content, where)
    return _canonical({**plain, "sha256": hashlib.sha256(_canonical(plain)).hexdigest()})


def read_sealed(path: Path, *, kind: str, version: int) -> dict[str, Any]:
    """The content of a sealed JSON file of ``kind`` and at most format ``version``.

    Raises CheckpointError naming the file when it is missing, damaged, of another kind or from a later metarec.
    """
    data = read_regular(path, limit=_LIMIT)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise damaged(path, f"no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise damaged(path, f"not a {kind}")
    found = content.get("format")
    if type(found) is int and found > version:
        raise CheckpointError(path, f"format {found}", f"this metarec reads formats up to {version}", "update metarec")
    own = content.pop("sha256", None)
    if type(found) is not int or found < 1 or sealed_bytes(content, str(path)) != data or own is None:
        raise damaged(path, "its content does not match its own SHA-256")
    return content


def read_verified(path: Path, expected: object) -> bytes:
    """The bytes of ``path``, whose size is compared before reading and whose SHA-256 after it with ``expected``.

    The digest is taken of the very bytes returned: nothing is mapped, nothing is read twice.
    """
    if not isinstance(expected, dict) or type(expected.get("size")) is not int or "sha256" not in expected:
        raise damaged(path, "its manifest gives no size and SHA-256")
    data = read_regular(path, limit=expected["size"], exact=True)
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise damaged(path, "its SHA-256 is not the one in its manifest")
    return data


def read_regular(path: Path, *, limit: int, exact: bool = False) -> bytes:
    """The bytes of a regular file of at most (``exact``: exactly) ``limit`` bytes; no FIFO, no link."""
    try:
        state = os.lstat(path)
        if not stat.S_ISREG(state.st_mode):
            raise CheckpointError(path, stat.filemode(state.st_mode), "not a regular file", _FIX_DAMAGE)
        if state.st_size > limit or (exact and state.st_size != limit):
            raise damaged(path, f"{state.st_size} bytes where {limit} {'are' if exact else 'at most are'} expected")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise CheckpointError(path, "missing", "the checkpoint or run is not complete", _FIX_DAMAGE) from error
    except OSError as error:
        raise fault(path, error) from error
    if len(data) > limit or (exact and len(data) != limit):
        raise damaged(path, "it changed while it was read")
    return data


def damaged(path: Path, why: str) -> CheckpointError:
    """A file that is not what its manifest says."""
    return CheckpointError(path, "damaged", why, _FIX_DAMAGE)


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")
