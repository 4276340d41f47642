"""Finished runs as they lie on disk: found by what was typed, verified against their manifests, read once.

A word names a run directory, a sweep (OUTPUT_DIR/VERB/STAMP, which holds job directories), a comparison (jobs/), a
directory of any of these, or a pattern of them. Only sealed runs count: an unfinished or damaged one is refused by name,
for a table that silently lacks a run is a wrong table.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from metarec import strict_json
from metarec.contained import understood
from metarec.errors import CheckpointError, ConfigError
from metarec.runs.history import read_history
from metarec.runs.manifest import read_regular
from metarec.runs.rundir import MANIFEST, verify

Json = dict[str, Any]
Array = npt.NDArray[np.float64]
FIX = "give OUTPUT_DIR/train/RUN, a sweep, a comparison, or a pattern of them"
LARGEST = 1 << 24  # bytes of a job's record
DEPTH = 3  # OUTPUT_DIR / verb / sweep / job
NEEDED = ("metrics", "intervals", "differences", "counts", "protocol", "config", "seeds")
_MARKS = (MANIFEST, "config.yaml", "job.json")  # any of them makes a directory a run, finished or not


@dataclass(frozen=True)
class Run:
    """A sealed run of `metarec train` or `metarec eval`; ``name`` tells it from the others beside it."""

    path: Path
    name: str
    document: Json  # metrics.json

    @property
    def seed(self) -> int:
        """The one that all others of the run follow from."""
        return int(self.document["seeds"]["run"])

    @property
    def config(self) -> Json:
        """What it was trained with; of an evaluation also what was changed, under ``eval``."""
        return {**self.document["config"], **_changed(self.document.get("evaluated"))}

    @property
    def monitor(self) -> str:
        """The metric that decides, of the evaluation's own options where the run is one."""
        of: Json = self.document.get("evaluated") or self.document["config"]
        return str(of["evaluation"]["monitor"])

    @property
    def methods(self) -> list[str]:
        """In the order of metrics.json."""
        return list(self.document["metrics"])

    @cached_property
    def table(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of per_user.parquet, [U] each, read once."""
        with understood(self.path / "per_user.parquet", "the figures of each user"):  # Arrow's errors are ValueErrors
            read = pq.read_table(self.path / "per_user.parquet")
        return {name: read.column(name).to_numpy(zero_copy_only=False) for name in read.column_names}

    @property
    def users(self) -> npt.NDArray[Any]:
        """Their ids as text, [U], in the order of every column."""
        return self.table["user_id"]

    @property
    def n_targets(self) -> Array:
        """Targets of each user, float64 [U]."""
        return self.table["n_targets"].astype(np.float64)

    def values(self, method: str, metric: str) -> Array:
        """Each user's mean over targets, float64 [U]."""
        return self.table[f"{method}.{metric}"].astype(np.float64)

    def history(self, name: str = "history.jsonl") -> list[Json]:
        """The records in order of steps; none where the run has no such file."""
        return read_history(self.path / name) if (self.path / name).exists() else []

    def json(self, name: str) -> Any:
        """A further JSON file of the run, None where it has none."""
        path = self.path / name
        return strict_json.loads(path.read_bytes()) if path.exists() else None


def _changed(evaluated: Json | None) -> Json:
    """What an evaluation was asked beside its checkpoint, as the section ``eval`` of a configuration."""
    if evaluated is None:
        return {}
    own = {key: evaluated.get(key) for key in ("split", "n_support", "steps", "lr", "users")}
    return {
        "eval": {key: value for key, value in own.items() if value is not None and (key, value) != ("split", "test")}
    }


def read_runs(words: Sequence[str], metric: str | None = None) -> list[Run]:
    """Every run that the words name, each once, in order; all of them have `metric`, where one is asked for by name.

    Raises ConfigError, or CheckpointError naming the run.
    """
    paths = find(words)
    names = distinct([path.resolve() for path in paths])
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    for run in runs:
        if metric is not None and any(metric not in figures for figures in run.document["metrics"].values()):
            what = f"{run.path} does not have it: it comes from another version of metarec"
            raise ConfigError("metric", metric, what, f"measure it again: metarec eval ckpt={run.path}")
    return runs


def read_run(path: Path, name: str) -> Run:
    """The run at ``path`` once every file of it is as its manifest says; raises CheckpointError."""
    if not (path / MANIFEST).exists():
        ended = path / "job.json"
        with understood(ended, "error"):
            reason = strict_json.loads(read_regular(ended, limit=LARGEST)).get("error") if ended.exists() else None
        what = f"the run did not finish{f' ({reason})' if reason else ''}"
        raise CheckpointError(path, f"no {MANIFEST}", what, "go on with it by resume=RUN, or name the runs without it")
    verify(path)
    try:
        document = _document(path / "metrics.json")
    except FileNotFoundError as error:
        raise ConfigError("RUN", path, "holds no figures of a run: no metrics.json", FIX) from error
    missing = [key for key in NEEDED if key not in document]
    if missing or not (path / "per_user.parquet").exists():
        what = f"{missing[0] if missing else 'per_user.parquet'} is missing: it comes from another version of metarec"
        raise CheckpointError(path / "metrics.json", "incomplete", what, f"measure it again: metarec eval ckpt={path}")
    return Run(path, name, document)


def _document(path: Path) -> Json:
    """metrics.json, of which the parts that tables are made of are what they should be."""
    with understood(path, "metrics.json"):
        found = strict_json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise TypeError("no object")
        for key in NEEDED:
            if not isinstance(found.get(key, {}), dict | list):
                raise TypeError(f"{key} is no section")
        figures = [value for row in found.get("metrics", {}).values() for value in row.values()]
        if not all(isinstance(value, int | float) or value is None for value in figures):
            raise TypeError("metrics: a figure that is no number")
        if "seeds" in found:
            int(found["seeds"]["run"])
        if "config" in found:
            str((found.get("evaluated") or found["config"])["evaluation"]["monitor"])
    return found


def find(words: Sequence[str]) -> list[Path]:
    """The run directories that the words name, each once, in the order typed; jobs by their numbers."""
    found: dict[Path, Path] = {}
    for word in words:
        for place in _places(word):
            runs = _below(place, DEPTH)
            if not runs:
                raise ConfigError("RUN", place, "no run in it", FIX)
            for run in runs:
                found.setdefault(run.resolve(), run)
    return list(found.values())


def _places(word: str) -> list[Path]:
    """The directories that a word stands for."""
    path = Path(word).expanduser()
    if path.is_dir():
        return [path]
    if path.exists():
        raise ConfigError("RUN", path, "a file, not a run directory", FIX)
    matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True), key=_natural)]
    if not matches:
        what = "matches nothing" if glob.has_magic(str(path)) else "no such run directory"
        raise ConfigError("RUN", word, what, FIX)
    directories = [match for match in matches if match.is_dir()]
    if not directories:
        raise ConfigError("RUN", word, "matches files only", FIX)
    return directories


def _below(path: Path, depth: int) -> list[Path]:
    """The run directories in ``path``, itself where it is one."""
    if (path / "survey.json").exists():
        what = "a survey: its runs are of several data sets and splits, and its page is there already"
        raise ConfigError("RUN", path, what, f"open {path / 'survey.html'}, or name runs such as {path}/jobs/*_seed1")
    if (path / "jobs").is_dir():
        path = path / "jobs"
    elif any((path / mark).exists() for mark in _MARKS):
        return [path]
    if depth == 0:
        return []
    inside = sorted(
        (p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: _natural(p.name)
    )
    return [run for below in inside for run in _below(below, depth - 1)]


def _natural(name: str) -> list[tuple[int, str]]:
    """2_a before 10_a."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def distinct(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that are all different."""
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len({*names}) == len(names):
            return names
    return [str(path) for path in paths]
