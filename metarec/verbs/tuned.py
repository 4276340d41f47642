"""What was tuned once is not tuned again: choices made on validation, kept in the cache under all that they depend on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from metarec import build
from metarec.config.schema import TrainConfig
from metarec.contained import parse_json
from metarec.errors import CheckpointError
from metarec.runs import atomic
from metarec.runs.environment import metarec_version
from metarec.runs.manifest import damaged, read_sealed, sealed_bytes

KIND, FORMAT = "metarec-tuned", 1


def tuned(config: TrainConfig, kind: str, depends_on: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record that `make` returns (plain JSON), from CACHE_DIR/<kind>/ where it was made before.

    `depends_on`: anything JSON can hold that the record follows from. A damaged record is made again; runs of a sweep
    wait for the one that is making it.
    """
    text = json.dumps([metarec_version(), depends_on], sort_keys=True)
    path = build.cache_dir(config) / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        atomic.clean_leftovers(path.parent, path.name)
        if path.exists():
            try:
                return read_record(path)
            except CheckpointError as error:
                print(f"a tuned choice in the cache is damaged and made again: {error}", file=sys.stderr, flush=True)
        record = make()
        # as text, for a sealed file sorts its keys and a record keeps their order
        text = atomic.json_bytes(record, str(path), indent=None).decode()
        content = {"kind": KIND, "format": FORMAT, "key": path.stem, "record": text}
        atomic.write_bytes(path, sealed_bytes(content, str(path)))
    return record


def read_record(path: Path) -> dict[str, Any]:
    """The record in `path`; CheckpointError where it is damaged, or of something else than its name says."""
    content = read_sealed(path, kind=KIND, version=FORMAT)
    if content.get("key") != path.stem:
        raise damaged(path, "it is the record of another choice")
    found: dict[str, Any] = parse_json(content["record"])
    return found
