"""What was tuned once is not tuned again: choices made on validation, kept in the cache under all that they depend on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import filelock

from metarec import build
from metarec.config.schema import TrainConfig
from metarec.errors import CheckpointError
from metarec.runs import atomic
from metarec.runs.environment import metarec_version
from metarec.runs.manifest import read_sealed, sealed_bytes

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
                # as text, for a sealed file sorts its keys and a record keeps their order
                found: dict[str, Any] = json.loads(read_sealed(path, kind=KIND, version=FORMAT)["record"])
                return found
            except (CheckpointError, KeyError, TypeError, ValueError) as error:
                print(f"a tuned choice in the cache is damaged and made again: {error}", file=sys.stderr, flush=True)
        record = make()
        text = atomic.json_bytes(record, str(path), indent=None).decode()
        atomic.write_bytes(path, sealed_bytes({"kind": KIND, "format": FORMAT, "record": text}, str(path)))
    return record
