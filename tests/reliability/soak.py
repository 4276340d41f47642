"""It lasts: memory, open files and threads of a run do not grow with its steps, and a step does not get slower.

A run of 20,000 outer steps in a process of its own, watched from outside through /proc; validations, checkpoints and
histories included. Time is the process's own on a processor, so that a busy machine is no drift. Memory is a straight line
fitted to the resident set over the steps behind the first tenth, in which libraries and first checkpoints take theirs.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reference.tiny_runs import Work
from reliability.figures import figure
from reliability.kill_runs import card, cpu_seconds

NAME = "soak"
STEPS, QUICK = 20_000, 400
SLOPE = 1.0  # MB of resident memory in 1,000 steps
DRIFT = 1.2  # median step time of the last quarter over that of the first
WARM = 0.1  # of all steps, left out
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What was seen of the process at a moment."""

    step: int
    at: float  # seconds of a processor that it has had
    rss: int  # bytes
    files: int
    threads: int


def words(steps: int) -> tuple[str, ...]:
    """Of a run that saves and validates twenty times and tells a line every tenth step."""
    return (
        f"train.steps={steps}", f"train.eval_every={steps // 20}", f"train.checkpoint_every={steps // 4}",
        "train.patience=0", "logger.every=10", "warm_start=none", "residual=off", "evaluation.panel=none",
    )  # fmt: skip


def watch(steps: int, root: Path, every: float) -> tuple[list[Sample], int | None]:
    """Samples of the outer loop, and the exit code."""
    work = Work(root, root / "cache")
    process = work.start_train(*words(steps))
    proc, found = Path(f"/proc/{process.pid}"), list[Sample]()
    while process.is_alive():
        process.join(every)
        run = card(work)
        history = run / "history.jsonl" if run else None
        try:
            if history is None or not history.exists() or (run / "metrics.json").exists():  # type: ignore[operator]
                continue
            step = _last_step(history)
            if step == steps:
                continue  # the figures are being made, which is no step
            one = Sample(step, cpu_seconds(process.pid or 0), int((proc / "statm").read_text().split()[1]) * PAGE,
                         len(os.listdir(proc / "fd")), len(os.listdir(proc / "task")))  # fmt: skip
        except (OSError, ValueError, IndexError):
            continue  # it has just ended, or writes the line
        found.append(one)
        with (root / "samples.jsonl").open("a") as file:  # what was seen of one that is cut short
            file.write(json.dumps(asdict(one)) + "\n")
    return found, process.exitcode


def _last_step(history: Path) -> int:
    with history.open("rb") as file:
        file.seek(max(0, history.stat().st_size - 2000))
        line = file.read().splitlines()[-1]
    return int(line.split(b'"step": ')[1].split(b",")[0])


def slope(samples: list[Sample]) -> float:
    """MB of resident memory that 1,000 steps add, by least squares; 0 where there is one step only."""
    steps = np.array([one.step for one in samples], dtype=float)
    rss = np.array([one.rss for one in samples], dtype=float)
    if np.ptp(steps) == 0:
        return 0.0
    return float(np.polyfit(steps, rss, 1)[0]) * 1000 / 1e6


def step_seconds(samples: list[Sample]) -> list[float]:
    """Seconds a step, between samples at least one step apart."""
    found, before = [], samples[0]
    for one in samples[1:]:
        if one.step > before.step:
            found.append((one.at - before.at) / (one.step - before.step))
            before = one
    return found


def judged(samples: list[Sample], steps: int, *, strict: bool) -> list[dict[str, Any]]:
    """The figures. Not `strict`: over a few hundred steps memory still settles and times are those of a busy machine."""
    warm = [one for one in samples if one.step >= WARM * steps]
    grown, times = slope(warm), step_seconds(warm)
    quarter = max(len(times) // 4, 1)
    drift = float(np.median(times[-quarter:]) / np.median(times[:quarter]))
    files, threads = sorted({one.files for one in warm}), sorted({one.threads for one in warm})
    usual = sum(one.files == min(files) for one in warm) / len(warm)
    most = SLOPE if strict else 20 * SLOPE
    return [
        figure("MB of memory in 1,000 steps", f"at most {most:g}", round(grown, 3), grown <= most),
        # a checkpoint that is being written or read has one or two more open for a moment
        figure("open files", "as many at the end as at the start",
               f"{warm[0].files} and {warm[-1].files}, {usual:.0%} of the time {min(files)}",
               max(files) - min(files) <= 4 and abs(warm[-1].files - warm[0].files) <= 3),
        figure("threads", "constant", threads if len(threads) > 1 else threads[0], len(threads) == 1),
        figure("time of a step, last quarter over first", f"at most {DRIFT:g}" if strict else "not judged", round(drift, 3),
               drift <= DRIFT or not strict),
    ]  # fmt: skip


def run(full: bool, out: Path) -> dict[str, Any]:
    """20,000 steps; quick 400. It cannot be gone on with: memory is that of one process."""
    steps = STEPS if full else QUICK
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    samples, code = watch(steps, out, 1.0 if full else 0.02)
    ended = figure(
        "a run of so many steps", f"{steps:,}, exit code 0", f"exit code {code}, {len(samples)} samples", code == 0
    )
    if len(samples) < 8:
        return {"figures": [ended, figure("samples", "8 or more", len(samples), False)]}
    few = samples[:: max(1, len(samples) // 200)]
    return {
        "figures": [ended, *judged(samples, steps, strict=full)],
        "samples": [[one.step, round(one.at - samples[0].at, 2), one.rss, one.files, one.threads] for one in few],
    }
