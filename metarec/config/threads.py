"""The cores of the machine among jobs that run at a time: more threads than cores make all of them slower."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from metarec.config.overrides import Job
from metarec.errors import EnvironmentFault

LAUNCHER = "hydra/launcher"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(n_jobs: int) -> int:
    """The cores divided among the jobs, at least 1 each."""
    return max(1, cores() // n_jobs)


def too_many(threads: int, n_jobs: int) -> str | None:
    """The line that says so where `threads` (0 = all cores) were asked for each of `n_jobs`."""
    if n_jobs == 1 or (threads or cores()) * n_jobs <= cores():
        return None
    return (
        f"note: {n_jobs} jobs at a time with hardware.threads={threads} each are more threads than the {cores()} cores "
        f"here; hardware.threads={threads_each(n_jobs)} would fit"
    )


def asks_for_joblib(words: Sequence[str]) -> bool:
    """Whether ``hydra/launcher=joblib`` is among the words; raises EnvironmentFault where it is not installed."""
    asked = f"{LAUNCHER}=joblib" in words
    if asked and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        raise EnvironmentFault(LAUNCHER, "joblib", "is not installed", "pip install 'metarec[sweep]'")
    return asked


def divided(words: Sequence[str], jobs: Sequence[Job]) -> tuple[str | None, str | None]:
    """(a word that divides the cores among the jobs of the joblib launcher, a line about too many threads)."""
    n_jobs = min(_n_jobs(words), len(jobs))
    threads = {int(job.config.hardware.threads) for job in jobs if hasattr(job.config, "hardware")}
    if threads == {0}:
        return (f"hardware.threads={threads_each(n_jobs)}" if n_jobs > 1 else None), None
    return None, too_many(max(threads), n_jobs) if threads else None


def _n_jobs(words: Sequence[str]) -> int:
    """As joblib reads it: -1 = all cores, -2 = all but one."""
    found: Any = -1
    for word in words:
        if word.startswith("hydra.launcher.n_jobs="):
            found = OverridesParser.create().parse_override(word).value()
    asked = int(found)
    return asked if asked > 0 else max(1, cores() + 1 + asked)
