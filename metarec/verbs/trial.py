"""One trial of a search in a process of its own: its runs one after the other, then its record.

A trial is the run of one setting, or a run for each of several seeds in directories of their own below it. Each is an
ordinary run that carries on where a kill left it; what had finished is not run again. The process ends with the search
that started it, however that ends: at its next step, after a checkpoint, and within a few seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from functools import partial
from multiprocessing import connection, process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from metarec import strict_json
from metarec.config.compose import config_from_yaml
from metarec.config.schema import TrainConfig
from metarec.config.sweep import recorded
from metarec.errors import Pruned
from metarec.runs import rundir
from metarec.runs.lock import hold
from metarec.runs.parent import end_now
from metarec.verbs.train import run_train

LOG = "output.log"
PATIENCE = 120.0  # seconds that the process of a killed search may take to save its checkpoint and let go


def start(number: int, directory: Path, runs: Mapping[str, list[str]]) -> tuple[process.BaseProcess, Connection]:
    """Start a trial: its process, and the end of a pipe on which it sends (step, value) and waits for a bool.

    runs: directory of each run below `directory` ("" = itself) -> its words; each holds a run card.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    forks: Any = multiprocessing.get_context(method)
    forks.set_forkserver_preload(["metarec.verbs.trial"])  # torch is imported once for all trials
    here, there = forks.Pipe()
    made = forks.Process(target=_run, args=(number, str(directory), dict(runs), there), daemon=True)
    made.start()
    there.close()
    return made, here


def _run(number: int, directory: str, runs: dict[str, list[str]], search: Connection) -> None:
    out = os.open(Path(directory) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    words = next(iter(runs.values()))
    try:
        recorded(number, words, Path(directory), lambda: {"headline": _trial(Path(directory), runs, search)})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _end_with(parent: process.BaseProcess | None) -> None:
    """Stop this process as a signal would, once its parent is gone; one that cannot save in a moment ends as it is."""
    assert parent is not None
    connection.wait([parent.sentinel])
    end_now()


def _trial(directory: Path, runs: Mapping[str, list[str]], search: Connection) -> dict[str, float]:
    """{monitored metric: the best validation value, over seeds their mean}."""
    values: list[float] = []
    for done, (name, words) in enumerate(runs.items(), 1):
        where = directory / name
        for line in rundir.check_card(where):
            print(line, file=sys.stderr, flush=True)
        config = config_from_yaml((where / "config.yaml").read_text(encoding="utf-8"), "train")
        assert isinstance(config, TrainConfig)
        monitor = config.evaluation.monitor
        with hold(where, timeout=PATIENCE):  # the process of a killed search has let go
            finished = (where / "manifest.json").exists()
        if not finished:
            run_train(config, where, True, words, partial(_ask, search) if len(runs) == 1 else None)
        values.append(best_value(where, monitor))
        mean = sum(values) / len(values)
        if len(runs) > 1 and _ask(search, done, mean) and done < len(runs):
            what = "the search ended this trial: after as many seeds most others were better"
            raise Pruned(f"seed {done} of {len(runs)}", f"{mean:.4f}", what, "its runs so far stand in its directory")
    return {monitor: sum(values) / len(values)}


def _ask(search: Connection, step: int, value: float) -> bool:
    try:
        search.send((step, value))
        return bool(search.recv())
    except (EOFError, OSError):
        return False  # the search is gone, and `_end_with` ends this process


def best_value(run: Path, monitor: str) -> float:
    """The best validation value of a finished run."""
    found = strict_json.loads((run / "metrics.json").read_bytes())
    return float(found["training"][f"val_{monitor}"])
