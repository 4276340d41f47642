"""No two writers: of eight starts on one run one runs, a killed holder is no obstacle, and no directory is shared.

Real commands, `python -m metarec train resume=RUN`, at the same time. Whoever got the lock is stopped (SIGSTOP) until the
others have left, and then killed; the next start must finish the run. A hundred processes are told the same second and
make a directory for a run each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work
from reliability.figures import figure

from metarec.runs.lock import HOLDER
from metarec.runs.rundir import verify

NAME = "locks"
STARTS = 8
SECONDS = 2.0
ROOT = Path(__file__).resolve().parents[2]
SAME_SECOND = """
import datetime, os, sys, types
from metarec.config import arguments
fixed = datetime.datetime(2026, 1, 31, 14, 5, 9)
arguments.datetime = types.SimpleNamespace(datetime=types.SimpleNamespace(now=lambda: fixed))
go_r, go_w = os.pipe()
read, write = os.pipe()
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.close(go_w)
        os.read(go_r, 1)  # all of them wait for one end
        path = arguments.new_directory(sys.argv[1], "train")
        os.write(write, (path.name + "\\n").encode())
        os._exit(0)
os.close(go_w)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
os.close(write)
sys.stdout.buffer.write(os.read(read, 1 << 20))
"""


def environment() -> dict[str, str]:
    """This tree's package, in a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class Start:
    """One command, with the seconds it took and what it said."""

    def __init__(self, run: Path, where: Path) -> None:
        self.began = time.monotonic()
        self.out = where.open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "metarec", "train", f"resume={run}"],
            stdout=self.out,
            stderr=self.out,
            env=environment(),
        )
        self.seconds = self.cpu = 0.0
        self.watch = threading.Thread(target=self._wait)
        self.watch.start()

    def _wait(self) -> None:
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds, self.cpu = time.monotonic() - self.began, usage.ru_utime + usage.ru_stime

    def said(self) -> str:
        """Output and errors so far."""
        self.out.seek(0)
        return self.out.read()


def interrupted_run(root: Path) -> Path:
    """A run that was killed after its training: a resume only measures it again."""
    work = Work(root, root / "cache")
    run = work.train()
    for name in ("manifest.json", "metrics.json", "per_user.parquet"):
        (run / name).unlink()
    return run


def contend(root: Path, run: Path, starts: int) -> dict[str, Any]:
    """Start them all; who was refused and how, then the holder's kill and the start behind it."""
    every = [Start(run, root / f"start-{number}.txt") for number in range(starts)]
    pids = {one.process.pid for one in every}
    holder, end = None, time.monotonic() + 120
    while holder is None and time.monotonic() < end:
        try:
            found = json.loads((run / HOLDER).read_text())["pid"]
            holder = found if found in pids else None
        except (OSError, ValueError):
            time.sleep(0.005)
    assert holder is not None, "nobody got the lock"
    os.kill(holder, signal.SIGSTOP)
    losers = [one for one in every if one.process.pid != holder]
    for one in losers:
        one.watch.join(120)
    (winner,) = [one for one in every if one.process.pid == holder]
    alone = winner.watch.is_alive()
    os.kill(holder, signal.SIGKILL)
    winner.watch.join(30)
    after = Start(run, root / "after.txt")
    after.watch.join(300)
    return {
        "refused": sum(one.process.returncode == 5 for one in losers), "losers": len(losers), "alone": alone,
        "named": sum(f"held by pid {holder} since" in one.said() for one in losers),
        "seconds": [round(one.seconds, 2) for one in losers], "cpu": [round(one.cpu, 2) for one in losers],
        "after": after.process.returncode, "after_said": after.said()[-400:],
    }  # fmt: skip


def same_second(root: Path, count: int) -> int:
    """How many directories `count` processes made that were told the same second."""
    done = subprocess.run(
        [sys.executable, "-c", SAME_SECOND, str(root / "outputs"), str(count)], capture_output=True, text=True, check=True,
        env=environment(), timeout=120,
    )  # fmt: skip
    names = done.stdout.split()
    assert len(names) == count, done.stderr[-400:]
    return len(set(names))


def run(full: bool, out: Path) -> dict[str, Any]:
    """Eight starts (quick: four), once; a hundred directories."""
    with tempfile.TemporaryDirectory() as where:
        root = Path(where)
        path = interrupted_run(root)
        found = contend(root, path, STARTS if full else 4)
        n, worst = found["losers"], max(found["seconds"])
        whole = found["after"] == 0 and verify(path) == []
        distinct = same_second(root, 100)
        shutil.rmtree(root / "outputs", ignore_errors=True)
        left = "whatever the load" if full else "not judged where other tests run beside"
        return {
            "figures": [
                figure(f"{n + 1} starts on one run", f"1 runs, {n} exit 5",
                       f"1 runs: {found['alone']}, {found['refused']} exit 5",
                       found["alone"] and found["refused"] == n),
                figure("name the holder", n, found["named"], found["named"] == n),
                figure("seconds from the command to its refusal, the slowest", f"{SECONDS:g}, {left}",
                       f"{worst} ({max(found['cpu'])} of a CPU)", worst <= SECONDS or not full),
                figure("start behind the holder's kill -9", "finishes the run", found["after"], whole),
                figure("directories of 100 starts in one second", 100, distinct, distinct == 100),
            ],
            **found,
        }  # fmt: skip
