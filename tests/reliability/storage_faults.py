"""Every call that a save makes of the file system, failed in eight ways: no checkpoint lost, and the next start works.

The part of a run under attack starts from step 4 of 8, is stopped by a signal in step 5 (which saves one checkpoint twice)
and goes on to the end. After each failure the run is started again, on a disk that works, and must end with the bits of one
that never failed; ahead of that a start would find the last checkpoint that `Store.save` had returned from, or a later one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reliability.figures import figure, none_of, remembered
from reliability.storage_shim import KILLS, MODES, Killed, Shim
from reliability.storage_tiny import differences, go, lost_pointers, newest_good

from metarec.errors import EnvironmentFault, Stopped

NAME = "save_path"
QUICK = 60  # trials of the suite, spread over calls and modes
TOLD = (
    "open",
    "write",
    "fsync",
    "rename",
    "replace",
)  # calls whose failure a run has to tell; a directory may be there
NOT_TOLD = (
    "fsync history.jsonl",  # once more when it is left by a signal: all of it was synced with the checkpoint
    "open .lock",  # the library of the lock tries again
)


def prepare(root: Path) -> tuple[Path, Path]:
    """(a run stopped behind step 4, the same run done without any failure)."""
    base, whole = root / "base", root / "whole"
    base.mkdir(parents=True)
    _until_stopped(base, 3, [])
    shutil.copytree(base, whole)
    _part(whole, [])
    return base, whole


def _until_stopped(run_dir: Path, step: int, saved: list[int]) -> None:
    try:
        go(run_dir, stop_at=step, saved=saved)
    except Stopped:
        return
    raise AssertionError("the signal was not heard")


def _part(run_dir: Path, saved: list[int]) -> str:
    """What is under attack; returns what its second half was told."""
    _until_stopped(run_dir, 5, saved)
    return go(run_dir, saved=saved)


@contextmanager
def copied(base: Path) -> Iterator[Path]:
    """A copy of `base` to be broken, one level below a directory of its own."""
    with tempfile.TemporaryDirectory(dir=base.parent) as where:
        yield Path(shutil.copytree(base, Path(where) / "run"))


def traced(base: Path, whole: Path) -> tuple[list[str], list[str]]:
    """Every call of the part under attack, and what in it was wrong though nothing failed; a run's first part is watched
    too, in which its directories and histories are made."""
    calls, wrong = list[list[str]](), list[str]()
    for part in (_part, lambda run_dir, saved: _until_stopped(run_dir, 3, saved)):
        with copied(base) as run_dir:
            if part is not _part:
                shutil.rmtree(run_dir)
                run_dir.mkdir()
            shim = Shim(run_dir)
            try:
                with shim.on():
                    part(run_dir, [])
                wrong += [f"other end: {name}" for name in differences(run_dir, whole if part is _part else base)]
            except BaseException as error:
                wrong.append(f"the run failed: {type(error).__name__}: {error}")
            shim.close()
            calls.append(shim.calls)
            wrong += shim.faults
    return calls[0], list(dict.fromkeys(wrong))


def trial(base: Path, whole: Path, nth: int, mode: str) -> list[str]:
    """What was not as promised when call `nth` failed as `mode` says; empty where all was."""
    with copied(base) as run_dir:
        shim, saved, wrong, told = Shim(run_dir, nth, mode), [4], list[str](), True
        try:
            with shim.on():
                said = _part(run_dir, saved)
            told = False
            if "skipped" in said:
                wrong.append(f"lost: a start passes over what was saved: {said.splitlines()[0]}")
        except (Killed, EnvironmentFault):
            pass
        except BaseException as error:  # a raw OSError is one that nobody put in words
            wrong.append(f"not told in one line: {type(error).__name__}: {error}")
        call = shim.calls[nth] if nth < len(shim.calls) else "none"
        if not told and mode not in (*KILLS, "short") and call.split()[0] in TOLD and call not in NOT_TOLD:
            wrong.append("an error of the disk that nobody is told of")
        if mode == "power" and shim.dead:
            shim.cut_power()
        shim.close()
        try:
            if (found := newest_good(run_dir)) < max(saved):
                wrong.append(f"lost: step {max(saved)} was saved, a start finds {found}")
            wrong += [f"a pointer that points nowhere: {name}" for name in lost_pointers(run_dir)]
            go(run_dir)
            wrong += [f"other end: {name}" for name in differences(run_dir, whole)]
        except BaseException as error:
            wrong.append(f"the next start failed: {type(error).__name__}: {error}")
        return [f"{one} [{mode}, call {nth}: {call}]" for one in wrong]


def chosen(calls: int, modes: tuple[str, ...], most: int | None) -> list[tuple[int, str]]:
    """(call, mode) of all trials, or of `most` that are spread over both."""
    every = [(nth, mode) for nth in range(calls) for mode in modes]
    if most is None or most >= len(every):
        return every
    return [every[number * len(every) // most] for number in range(most)]


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: some of the calls."""
    with tempfile.TemporaryDirectory() as where:
        base, whole = prepare(Path(where))
        calls, faults = traced(base, whole)
        trials = chosen(len(calls), MODES, None if full else QUICK)
        told = remembered(out / "trials.jsonl", trials, lambda one: trial(base, whole, *one))
        findings = [found for one in told for found in one]
        kinds = sorted({call.split()[0] for call in calls})
        return {
            "figures": [
                figure("calls of the save path", "each failed", f"{len(calls)} ({', '.join(kinds)})", len(calls) > 50),
                none_of("failed in " + ", ".join(MODES), findings, len(trials), "failures"),
                none_of("against the discipline of writing", faults, len(calls), "calls"),
            ],
            "kills": sum(mode in KILLS for _, mode in trials),
        }  # fmt: skip
