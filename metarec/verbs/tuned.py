"""What was tuned once is not tuned again: choices made on validation, kept in the cache under all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import filelock

from metarec import build
from metarec.config.schema import TrainConfig
from metarec.runs import atomic
from metarec.runs.environment import metarec_version


def tuned(config: TrainConfig, kind: str, depends_on: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record that `make` returns (plain JSON), from CACHE_DIR/<kind>/ where it was made before.

    `depends_on`: anything JSON can hold that the record follows from. A damaged record is made again; runs of a sweep
    wait for the one that is making it.
    """
    text = json.dumps([metarec_version(), depends_on], sort_keys=True)
    path = build.cache_dir(config) / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        except (OSError, ValueError):
            pass  # not tuned yet, or damaged
        record = make()
        atomic.write_json(path, record)
    return record
