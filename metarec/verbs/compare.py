"""`metarec compare`: a training run for every algorithm and seed, each in a process of its own, and one measured table.

Every job is an ordinary run in RUN/jobs/<algorithm>_seed<seed>/, so that it can be resumed, evaluated and plotted as one;
a process of its own makes its peak memory its own. What is missing is run when the comparison is resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metarec import trackers
from metarec.config.compose import config_to_yaml
from metarec.config.schema import CompareConfig, TrainConfig
from metarec.report.comparison import comparison
from metarec.report.comparison_text import comparison_table
from metarec.report.finished import read_run
from metarec.report.tables import show
from metarec.runs import rundir
from metarec.runs.lock import hold
from metarec.verbs.cells import cells, is_survey
from metarec.verbs.compare_runs import usual, write
from metarec.verbs.jobs import Failed, run_job
from metarec.verbs.survey import run_survey


def run_compare(config: CompareConfig, run_dir: Path, resume: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Run every job that `run_dir` does not hold yet, then write the comparison and print its table.

    A job that fails is told in the table and leaves the others alone; the exit code is then the first failure's.
    """
    trackers.require(config.logger.name)
    if is_survey(config):
        return run_survey(config, run_dir, resume, overrides)
    jobs = _jobs(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    quiet = config.logger.console == "quiet"
    failures: dict[str, tuple[int, str]] = {}
    with hold(run_dir):
        if not resume:
            rundir.write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=overrides)
        for number, (name, job) in enumerate(jobs.items(), 1):
            directory = run_dir / "jobs" / name
            if (directory / "manifest.json").exists():
                continue
            if not quiet:
                print(f"job {number}/{len(jobs)}: {name}", flush=True)
            try:
                run_job(directory, job, overrides, f"go on by metarec compare resume={run_dir}", echo=True)
            except Failed as failed:
                failures[name] = (failed.exit_code, failed.line)
                print(f"{name} failed: {failed.line}", file=sys.stderr, flush=True)
        found = [read_run(run_dir / "jobs" / name, name) for name in jobs if name not in failures]
        if not found:
            code, line = next(iter(failures.values()))
            raise Failed("compare", len(failures), "every job failed", line, code)
        told = {name: line for name, (_, line) in failures.items()}
        document = {**comparison(found, defaults=usual, failures=told), "config": asdict(config)}
        write(run_dir, document)
        if not failures:
            rundir.seal(run_dir)
    if not quiet:
        show(comparison_table(document))
        print(f"comparison in {run_dir}: comparison.json, .md, .tex", flush=True)
    if failures:
        code, line = next(iter(failures.values()))
        raise Failed("compare", f"{len(failures)} of {len(jobs)} jobs", "failed", line, code)
    few = {
        name: row["mean"] for row in document["rows"] if row["method"] == "fewshot" for name in row["configurations"]
    }
    return {"run_dir": str(run_dir), "headline": few}


def _jobs(config: CompareConfig) -> dict[str, TrainConfig]:
    """Name -> configuration of every job, all of them checked before the first one runs."""
    return {
        f"{cell.names[-1]}_seed{seed}": cell.run(seed, {}, whole_panel=True)
        for seed in dict.fromkeys(config.seeds)
        for cell in cells(config)
    }
