"""How a case of bad input is judged: the command is run, in this process or one of its own, and everything is looked at."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from metarec import cli

SECONDS = 5.0  # within which a refusal must be there


def run_here(words: Sequence[str]) -> tuple[int, str]:
    """(exit code, stderr) of the command in this process."""
    err, code = io.StringIO(), -1
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, err.getvalue()


def run_apart(words: Sequence[str]) -> tuple[int, str]:
    """(exit code, stderr) of the command as a process of its own, as it is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "metarec", *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def faults(
    words: Sequence[str], folder: Path, code: int, parts: Sequence[str], *, apart: bool = False, lines: int = 1
) -> list[str]:
    """What is wrong with how a command line is refused; none where all is as promised.

    `folder` is where the command runs; its outputs/ and cache/ must be as they were. `lines` of error are expected, 0 = one
    or more.
    """
    before, here, began = _left(folder), Path.cwd(), time.monotonic()
    os.chdir(folder)
    try:
        found, err = (run_apart if apart else run_here)([*words])
    finally:
        os.chdir(here)
    took = time.monotonic() - began
    wrong = []
    if found != code:
        wrong.append(f"exit code {found}, not {code}")
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    if "Traceback" in err:
        wrong.append("a traceback")
    if not told or (lines and len(told) != lines):
        wrong.append(f"{len(told)} lines of error, not {lines or 'one or more'}")
    for line in told:
        place, dashes, fix = line.partition(" -- ")
        if not dashes or not fix.strip():
            wrong.append("no way out")
        if place.removeprefix("error: ").count(": ") < 2:
            wrong.append("not <where>: <value>: <what>")
    if len(err.splitlines()) > len(told):
        wrong.append("something beside the line on stderr")
    wrong += [f"{part!r} is not said" for part in parts if part not in err]
    if took > SECONDS:
        wrong.append(f"{took:.1f} s")
    wrong += [f"left behind: {name}" for name in sorted(_left(folder) - before)[:3]]
    return [f"{what}   [{err.strip()[-600:]}]" for what in wrong]


def _left(folder: Path) -> set[str]:
    """What a refused command may not leave: anything under outputs/, and prepared data (locks aside)."""
    found: set[str] = set()
    for root in ("outputs", "cache"):
        for path in (folder / root).rglob("*"):
            if path.suffix != ".lock" and not (path.is_dir() and path.parent in (folder, folder / root)):
                found.add(path.relative_to(folder).as_posix())
    return found
