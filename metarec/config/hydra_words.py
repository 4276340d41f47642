"""The words for Hydra itself that may be typed: how jobs are launched and searched, where further files lie, its logging.

Commands are copied from pages and messages, so typing does not make every one of them a choice. What is typed may choose
among installed launchers and set their plain options; nothing typed names a class, sets the environment, or has a package
imported for the files in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from metarec.config.show import show
from metarec.errors import ConfigError, nearest

CHOICES = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging")
SECTIONS = ("hydra.launcher", "hydra.sweeper")
VALUES = ("hydra.searchpath", "hydra.verbose")
SET_BY_METAREC = ("hydra.run.dir", "hydra.sweep.dir", "hydra.mode")  # refused by `metarec.cli`, which says what to use
MOST_AT_A_TIME = 1024
_NAME = re.compile(r"[A-Za-z_][\w-]*")


def check_hydra_word(o: Override) -> Iterator[ConfigError]:
    """What is wrong with one word for Hydra; nothing where it may be typed."""
    key = o.key_or_group
    value = None if o.is_delete() else o.value()
    if o.is_delete() or key in SET_BY_METAREC:
        return  # refused elsewhere, with a way out of their own
    parts = key.split(".")
    if any(part.startswith("_") and part.endswith("_") for part in parts[1:]) or _calls(value):
        yield ConfigError(
            key, show(value), "names something to call, which no word does", "choose by hydra/launcher=NAME"
        )
    elif o.package is not None:
        yield ConfigError(f"{key}@{o.package}", show(value), "a group has one place", f"write {key}={show(value)}")
    elif key in CHOICES:
        if not o.is_sweep_override() and (not isinstance(value, str) or _NAME.fullmatch(value) is None):
            yield ConfigError(key, show(value), "no name of an installed one", f"write {key}=NAME")
    elif key == "hydra.searchpath":
        yield from _searchpath(value)
    elif key not in VALUES and not any(key.startswith(f"{section}.") for section in SECTIONS):
        near = nearest(key, (*CHOICES, *VALUES, *SECTIONS))
        hint = f"did you mean {near}? " if near else ""
        fix = f"{hint}the words are {', '.join((*CHOICES, *VALUES))} and {'.*, '.join(SECTIONS)}.*"
        yield ConfigError(key, show(value), "is not among the words for Hydra that may be typed", fix)


def check_joblib(parsed: Sequence[Override], *, multirun: bool) -> Iterator[ConfigError]:
    """What is wrong with ``hydra/launcher=joblib`` and its options: jobs at a time are the one that may be set, for others
    share a process between jobs, drop jobs that take long, or are read late and told by a traceback."""
    if not any(o.key_or_group == "hydra/launcher" and not o.is_delete() and o.value() == "joblib" for o in parsed):
        return
    if not multirun:
        yield ConfigError("hydra/launcher", "joblib", "runs several jobs side by side", "add -m, or drop it")
    for o in parsed:
        key = o.key_or_group
        if not key.startswith("hydra.launcher.") or o.is_delete():
            continue
        value, fix = o.value(), f"give 1 to {MOST_AT_A_TIME}, or -1 for all cores"
        if key != "hydra.launcher.n_jobs":
            yield ConfigError(key, show(value), "cannot be set: the jobs run by joblib as they are", "drop it")
        elif o.is_sweep_override():
            yield ConfigError(key, o.get_value_string(), "one number for the whole sweep", fix)
        elif type(value) is not int:
            yield ConfigError(key, show(value), "wrong type", fix)
        elif value == 0 or abs(value) > MOST_AT_A_TIME:
            yield ConfigError(key, show(value), "out of range", fix)


def search_directories(parsed: Sequence[Override]) -> list[Path]:
    """The directories of ``hydra.searchpath=[...]``, as they were typed (file:// taken off)."""
    typed = [o.value() for o in parsed if o.key_or_group == "hydra.searchpath" and not o.is_delete()]
    return [Path(str(path).removeprefix("file://")) for paths in typed if isinstance(paths, list) for path in paths]


def _searchpath(value: Any) -> Iterator[ConfigError]:
    if not isinstance(value, list):
        yield ConfigError("hydra.searchpath", show(value), "wrong type", "give a list of directories, [DIR,...]")
        return
    for path in map(str, value):
        if re.match(r"\w+://", path.removeprefix("file://")):
            what = "is no directory: a package is imported to be searched"
            yield ConfigError("hydra.searchpath", path, what, "give the directory that its files lie in")


def _calls(value: Any) -> bool:
    """Whether a value, however deep, has a key like ``_target_``."""
    if isinstance(value, Mapping):
        return any(
            (str(key).startswith("_") and str(key).endswith("_")) or _calls(below) for key, below in value.items()
        )
    return isinstance(value, list) and any(map(_calls, value))
