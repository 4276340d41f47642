"""kill -9 at any instant of a run, and again while it is resumed: weights, optimizer and figures end bitwise equal.

Real processes and SIGKILL. Instant i is of method i mod 5 (fomaml, maml_pp, generator, supervised, optimizer=cms); when and
how often it is killed (one to three times) follows from i. Some have an empty cache, so that preparation and pretraining
are killed too. A moment is one of the process's own processor time, uniform over what the whole run takes: a busy machine
does not distort it. Where nothing can be resumed yet, the command is given again, as a person would. What is finished
stands in OUT/instants.jsonl, so that a hundred instants can be measured in several sittings.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work, assert_same_run, ended
from reliability.figures import figure, none_of
from reliability.kill_runs import METHODS, Wholes, card, cpu_seconds, lines

from metarec.runs.rundir import verify

NAME = "kill_anywhere"
INSTANTS = 100
QUICK = 25
AT_ONCE = 2
LONGEST = 600.0  # seconds that a process may take; nothing of a tiny run takes so long


def instant(number: int, root: Path, wholes: Wholes) -> dict[str, Any]:
    """Kill and resume until done; {"wrong": what was not equal, or None, "kills": where each kill found the run}."""
    rng, method = random.Random(number), list(METHODS)[number % len(METHODS)]
    whole, span = wholes.of(method), wholes.cpu_seconds(method)
    root = root / f"instant-{number}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    work = Work(root, root / "cache" if number // len(METHODS) % 4 == 0 else wholes.cache)
    words, kills, wanted, wrong = METHODS[method], list[str](), rng.randint(1, 3), None
    try:
        while True:
            run = card(work)
            if run is None:
                shutil.rmtree(root / "outputs", ignore_errors=True)
            process = work.start_train(*words) if run is None else work.start("train", f"resume={run}")
            if len(kills) < wanted:
                moment = rng.uniform(0, span)
                while process.is_alive() and cpu_seconds(process.pid or 0) < moment:
                    process.join(0.002)
                process.kill()
                if ended(process, LONGEST) != 0:
                    kills.append(_where(work))
                    continue
            code = ended(process, LONGEST)
            if code is None:
                process.kill()
                raise AssertionError(f"a start did not end in {LONGEST:g} s")
            if code != 0:
                raise AssertionError(f"a start ended with {code}: {work.output(process)[-400:]}")
            break
        (run,) = work.directories("train")
        assert verify(run) == []
        assert_same_run(run, whole)
    except (AssertionError, OSError, ValueError) as error:
        wrong = f"instant {number}, {method}: {type(error).__name__}: {str(error)[:600]}"
    else:
        shutil.rmtree(root, ignore_errors=True)
    return {"number": number, "method": method, "kills": kills, "wrong": wrong}


def _where(work: Work) -> str:
    """What there was of the run when it was killed."""
    run = card(work)
    if run is None:
        return "before the run card"
    if (run / "metrics.json").exists():
        return "behind its figures"
    if not (run / "checkpoints").exists():
        return "pretraining" if (run / "pretrain_history.jsonl").exists() else "preparing"
    return f"behind {lines(work)} lines"


def measured(numbers: Iterable[int], out: Path, at_once: int) -> list[dict[str, Any]]:
    """Every instant, from `out` where it was measured before."""
    path = out / "instants.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {one["number"] for one in done}
    wholes = Wholes(out / "wholes", out / "cache")
    missing = [number for number in numbers if number not in known]
    for method in {list(METHODS)[number % len(METHODS)]: None for number in missing}:
        wholes.of(method)
    with ThreadPoolExecutor(at_once) as pool, path.open("a") as file:
        for one in pool.map(lambda number: instant(number, out, wholes), missing):
            file.write(json.dumps(one) + "\n")
            file.flush()
            done.append(one)
            if len(done) % 10 == 0:
                print(f"  {len(done)} instants", flush=True)
    return done


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures over 100 instants, quick: five a method."""
    began, count = time.monotonic(), INSTANTS if full else QUICK
    done = measured(range(count), out, AT_ONCE if full else 1)
    wrong = [one["wrong"] for one in done if one["wrong"]]
    kills = [place for one in done for place in one["kills"]]
    killed = sum(bool(one["kills"]) for one in done)
    by_place = {name: sum(place.startswith(name) for place in kills) for name in ("before", "preparing", "pretraining")}
    by_place["training"] = sum("lines" in place for place in kills)
    by_place["figures"] = sum("figures" in place for place in kills)
    return {
        "figures": [
            none_of("killed, resumed and not bitwise equal", wrong, len(done), "instants"),
            figure(
                "instants", count, f"{len(done)}, {len(kills)} kills: {by_place}", len(done) >= count and killed > 0
            ),
        ],
        "methods": {name: sum(one["method"] == name for one in done) for name in METHODS},
        "this_sitting_seconds": round(time.monotonic() - began, 1),
    }
