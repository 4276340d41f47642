"""Workers may die: kill -9 of the one that started them leaves no orphan in five seconds; one that is killed is told.

There is no training over several processes in metarec. The processes that it starts are the jobs of a comparison, the trials
of a search and the workers of a sweep's joblib launcher. Teachers are made in one process, shard by shard: killed between
two of them, the same command ends with the same bytes. A job that hangs holds up a stop no longer than its patience.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work, ended, tiny, wait_for
from reliability.figures import figure, none_of, remembered
from reliability.processes import Process, below, seconds_until_gone

from metarec.runs.rundir import verify

NAME = "workers"
SECONDS = 5.0  # until no orphan is left
LONG = ("train.steps=4000", "train.eval_every=20", "train.checkpoint_every=20", "train.patience=0")
WAIT = 400.0  # seconds for a start on a busy machine


def _compare(work: Work, *more: str) -> list[str]:
    words = [word for word in tiny() if not word.startswith(("algorithm=", "residual=", "train."))]
    return work.words("compare", *words, "algorithms=[fomaml,reptile]", "inner.steps=1", "seeds=[1]", *more)


def _saved(work: Work, pattern: str) -> Callable[[], bool]:
    return lambda: any(work.root.glob(f"outputs/*/*/{pattern}/checkpoints/last.json"))


def _kill_with_children(process: ForkServerProcess) -> tuple[float | None, list[Process]]:
    """kill -9; (seconds until the last process below it was gone or None, the processes)."""
    children = below(process.pid or 0)
    process.kill()
    return seconds_until_gone(children, 3 * SECONDS), children


def comparison(root: Path) -> list[dict[str, Any]]:
    """Its first job is killed, then itself while the second runs; the next start completes it."""
    work, wrong = Work(root, root / "cache"), list[str]()
    steps = ("train.steps=60", "train.eval_every=2", "train.checkpoint_every=2")
    process = work.start(*_compare(work, *steps), daemon=False)
    wait_for(_saved(work, "jobs/fomaml_seed1"), process, WAIT)
    for pid, _ in below(process.pid or 0):
        os.kill(pid, signal.SIGKILL)
    wait_for(_saved(work, "jobs/reptile_seed1"), process, WAIT)
    told = [line for line in work.output(process).splitlines() if "SIGKILL" in line]
    if len(told) != 1 or not told[0].startswith("fomaml_seed1 failed: its process was ended by SIGKILL (out of memory"):
        wrong.append(f"comparison: a killed job is told as {told}")
    seconds, children = _kill_with_children(process)
    (run,) = work.directories("compare")
    second = work.start("compare", f"resume={run}", daemon=False)
    if (code := ended(second, WAIT)) != 0:
        wrong.append(f"comparison: the next start ended with {code}: {work.output(second)[-300:]}")
    elif verify(run):
        wrong.append("comparison: not whole after the next start")
    return [{"what": "a comparison and its job", "seconds": seconds, "processes": len(children), "wrong": wrong}]


def search(root: Path) -> list[dict[str, Any]]:
    """A search is killed while two trials run."""
    work = Work(root, root / "cache")
    words = [word for word in tiny() if not word.startswith("train.")]
    process = work.start(
        *work.words("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2",
                    "algorithm.inner.steps=1,2", *words, *LONG), daemon=False,
    )  # fmt: skip
    wait_for(_saved(work, "trials/*"), process, WAIT)
    seconds, children = _kill_with_children(process)
    return [{"what": "a search and its trials", "seconds": seconds, "processes": len(children), "wrong": []}]


def launcher(root: Path) -> list[dict[str, Any]]:
    """A sweep with the joblib launcher: one worker is killed, which is told; then another sweep itself."""
    wrong, words = list[str](), [word for word in tiny() if not word.startswith("train.")]
    sweep = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2")
    work = Work(root, root / "cache")
    process = work.start(*work.words("train", *sweep, *words, *LONG), daemon=False)
    wait_for(_saved(work, "*"), process, WAIT)
    seconds, children = _kill_with_children(process)
    (root / "second").mkdir()
    other = Work(root / "second", root / "cache")
    process = other.start(*other.words("train", *sweep, *words, *LONG), daemon=False)
    wait_for(_saved(other, "*"), process, WAIT)
    (directory,) = other.directories("train")
    running = len(list(directory.glob(".running-*")))
    os.kill(_workers(process)[0], signal.SIGKILL)
    code, told = ended(process, WAIT), other.output(process)
    lines = [line for line in told.splitlines() if "was ended by SIGKILL while this job ran" in line]
    if code != 5 or len(lines) != running or "Traceback" in told:
        wrong.append(f"joblib: a killed worker ends with {code} and {len(lines)} lines: {told[-300:]}")
    return [{"what": "a sweep and its workers", "seconds": seconds, "processes": len(children), "wrong": wrong}]


def _workers(process: ForkServerProcess) -> list[int]:
    """Of joblib's processes those that run jobs, the ones with the most memory."""
    found = [pid for pid, _ in below(process.pid or 0)]
    return sorted(found, key=lambda pid: -int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


def hang(root: Path) -> list[dict[str, Any]]:
    """A job that no longer answers, and a comparison that is asked to stop."""
    from metarec.verbs.jobs import PATIENCE

    work, wrong = Work(root, root / "cache"), list[str]()
    process = work.start(*_compare(work, *LONG), daemon=False)
    wait_for(_saved(work, "jobs/fomaml_seed1"), process, WAIT)
    children = below(process.pid or 0)
    for pid, _ in children:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(process.pid or 0, signal.SIGTERM)
    code, took = ended(process, PATIENCE + 60), time.monotonic() - began
    if code != 143 or took > PATIENCE + 30:
        wrong.append(f"hang: exit code {code} after {took:.0f} s of a patience of {PATIENCE:g} s")
        process.kill()
    gone = seconds_until_gone(children, SECONDS)
    return [{"what": "a hung job, once it was given up", "seconds": gone, "processes": len(children), "wrong": wrong}]


FULL = (comparison, search, launcher, hang)
QUICK = (comparison,)


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: the comparison."""
    cases = [case.__name__ for case in (FULL if full else QUICK)]

    def measure(name: str) -> list[dict[str, Any]]:
        root = out / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        found: list[dict[str, Any]] = globals()[name](root)
        return found

    done = [one for found in remembered(out / "cases.jsonl", cases, measure) for one in found]
    slow = [f"{one['what']}: {one['seconds']}" for one in done if one["seconds"] is None or one["seconds"] > SECONDS]
    times = [one["seconds"] for one in done if one["seconds"] is not None]
    there = all(one["processes"] for one in done)
    return {
        "figures": [
            none_of(f"with an orphan {SECONDS:g} s after kill -9 of the parent", slow, len(done), "trees of processes"),
            figure("seconds until the last was gone, the slowest", f"{SECONDS:g}", round(max(times, default=0.0), 2),
                   there and not slow),
            none_of("not told or not completed", [line for one in done for line in one["wrong"]], len(done), "cases"),
        ],
        "cases": done,
    }  # fmt: skip
