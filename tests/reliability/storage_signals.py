"""SIGTERM and SIGINT: saved at the next step, left within ten seconds by their codes; a second one leaves at once, whole.

Real processes and signals at random moments of the outer loop; each run is then resumed, and must end with the bits of one
that was never stopped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work, assert_same_run, ended, state, wait_for
from reliability.figures import figure, none_of, remembered
from reliability.kill_runs import METHODS, Wholes, card, lines

from metarec.runs.rundir import verify

NAME = "signals"
CASES = [(number, twice) for number in (signal.SIGTERM, signal.SIGINT) for twice in (False, True)]
FULL = 24
METHOD = "fomaml"
SECONDS = 10.0
AT_ONCE = 2.0  # seconds that a process may take to go by a second signal


def case(number: int, root: Path, wholes: Wholes) -> dict[str, Any]:
    """One run, its signals, and the resume."""
    (which, twice), rng = CASES[number % len(CASES)], random.Random(number)
    whole, root = wholes.of(METHOD), root / f"signal-{number}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    work, wrong, after = Work(root, wholes.cache), list[str](), rng.randrange(2, 38)
    process = work.start_train(*METHODS[METHOD])
    wait_for(lambda: lines(work) >= after, process, 240)
    began = time.monotonic()
    os.kill(process.pid or 0, which)
    if twice:
        time.sleep(rng.choice((0.0, 0.001, 0.005, 0.02)))
        if process.is_alive():
            os.kill(process.pid or 0, which)
    code, seconds = ended(process, 120), time.monotonic() - began
    run = card(work)
    assert run is not None
    left = code == 0 and (run / "manifest.json").exists()  # the signals came behind the last step
    if code != 128 + which and not left:
        wrong.append(f"{which.name}{' twice' if twice else ''}: exit code {code}")
    if seconds > (AT_ONCE if twice else SECONDS):
        wrong.append(f"{which.name}{' twice' if twice else ''}: {seconds:.1f} s")
    if not twice and not left:
        records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        if state(run, "last")["progress"]["step"] != records[-1]["step"]:
            wrong.append(f"{which.name}: the last step was not saved")
    if not left:
        second = work.start("train", f"resume={run}")
        if ended(second, 240) != 0:
            wrong.append(f"the resume failed: {work.output(second)[-300:]}")
    try:
        assert verify(run) == []
        assert_same_run(run, whole)
        shutil.rmtree(root)
    except (AssertionError, OSError, ValueError) as error:
        wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    return {"signal": which.name, "twice": twice, "seconds": round(seconds, 2), "wrong": wrong}


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: each case once."""
    wholes = Wholes(out / "wholes", out / "cache")
    numbers = range(FULL if full else len(CASES))
    done = remembered(out / "cases.jsonl", numbers, lambda number: case(number, out, wholes))
    slowest = {twice: max(one["seconds"] for one in done if one["twice"] is twice) for twice in (False, True)}
    return {
        "figures": [
            none_of("not as promised", [line for one in done for line in one["wrong"]], len(done), "signals"),
            figure("seconds to leave, the slowest", f"{SECONDS:g}", slowest[False], slowest[False] <= SECONDS),
            figure("seconds to leave by a second signal", f"at once (at most {AT_ONCE:g})", slowest[True],
                   slowest[True] <= AT_ONCE),
        ]
    }  # fmt: skip
