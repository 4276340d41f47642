"""`metarec compare`: a training run for every algorithm and seed, each in a process of its own, and one measured table.

Every job is an ordinary run in RUN/jobs/<algorithm>_seed<seed>/, so that it can be resumed, evaluated and plotted as one;
a process of its own makes its peak memory its own. What is missing is run when the comparison is resumed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from metarec import trackers
from metarec.config.check import checked, raise_all
from metarec.config.compose import config_to_yaml
from metarec.config.fields import group_schema
from metarec.config.schema import CompareConfig, TrainConfig
from metarec.errors import ConfigError, MetarecError, Stopped
from metarec.report.comparison import comparison, comparison_table, markdown
from metarec.report.tables import show
from metarec.runs import atomic, rundir
from metarec.runs.lock import hold

OWN = ("algorithms", "seeds", "inner", "resume")  # keys of a comparison that are no keys of a run


def run_compare(config: CompareConfig, run_dir: Path, resume: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Run every job that `run_dir` does not hold yet, then write comparison.json and comparison.md and print the table.

    A job that fails is told in the table and leaves the others alone; the exit code is then the first failure's.
    """
    jobs = _jobs(config)
    trackers.require(config.logger.name)
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
            code, line = _run(directory, job, overrides)
            if code in (130, 143):
                raise Stopped(
                    signal.Signals(code - 128).name, name, "stopped as asked",
                    f"go on by metarec compare resume={run_dir}", code - 128,
                )  # fmt: skip
            if code:
                failures[name] = (code, line)
                print(f"{name} failed: {line}", file=sys.stderr, flush=True)
        found = {
            name: (json.loads((run_dir / "jobs" / name / "metrics.json").read_text()), run_dir / "jobs" / name)
            for name in jobs
            if name not in failures
        }
        if not found:
            code, line = next(iter(failures.values()))
            raise _Failed("compare", len(failures), "every job failed", line, code)
        document = comparison(found, {name: line for name, (_, line) in failures.items()}, asdict(config))
        atomic.write_json(run_dir / "comparison.json", document)
        atomic.write_text(run_dir / "comparison.md", markdown(document))
        if not failures:
            rundir.seal(run_dir)
    if not quiet:
        show(comparison_table(document))
        print(f"comparison in {run_dir}: comparison.json, comparison.md", flush=True)
    if failures:
        code, line = next(iter(failures.values()))
        raise _Failed("compare", f"{len(failures)} of {len(jobs)} jobs", "failed", line, code)
    return {"run_dir": str(run_dir), "headline": {row["algorithm"]: row["fewshot"] for row in document["rows"]}}


class _Failed(MetarecError):
    """The failure of a job, passed on with its exit code."""

    def __init__(self, where: object, value: object, what: str, fix: str, code: int) -> None:
        super().__init__(where, value, what, fix)
        self.exit_code = code


def _jobs(config: CompareConfig) -> dict[str, TrainConfig]:
    """Name -> configuration of every job, all of them checked before the first one runs."""
    shared = {f.name: getattr(config, f.name) for f in fields(CompareConfig) if f.name not in OWN}
    jobs, errors = {}, list[ConfigError]()
    for seed in dict.fromkeys(config.seeds):
        for name in dict.fromkeys(config.algorithms):
            schema = group_schema("algorithm", name)
            assert schema is not None  # the configuration check knows the names
            algorithm = schema()
            for key in ("lr", "steps"):
                if getattr(config.inner, key) is not None:
                    setattr(algorithm.inner, key, getattr(config.inner, key))
            job = TrainConfig(**shared, algorithm=algorithm, seed=seed)
            try:
                checked("train", asdict(job))
                jobs[f"{name}_seed{seed}"] = job
            except ConfigError as error:
                errors += getattr(error, "errors", [error])
    raise_all(errors)
    return jobs


def _run(directory: Path, job: TrainConfig, overrides: Sequence[str]) -> tuple[int, str]:
    """Run (or carry on with) a job in a process of its own: its exit code, and the reason where it failed."""
    if not (directory / "config.yaml").exists():
        directory.mkdir(parents=True, exist_ok=True)
        rundir.write_run_card(directory, config_yaml=config_to_yaml(job), overrides=overrides)
    command = [sys.executable, "-m", "metarec", "train", f"resume={directory}"]
    with (directory / "output.log").open("a") as out, (directory / "errors.log").open("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=dict(os.environ), text=True)
        assert process.stderr is not None
        try:
            for line in process.stderr:  # progress goes on to whoever watches, failures into the table
                errors.write(line)
                if job.logger.console != "quiet":
                    sys.stderr.write(line)
            code = process.wait()
        except KeyboardInterrupt:  # the job has had the signal as well, and saves
            process.wait()
            raise
        except BaseException:
            process.terminate()
            process.wait()
            raise
        errors.seek(0)
        said = [line.removeprefix("error: ").strip() for line in errors if line.startswith("error: ")]
    return code, said[-1] if said else f"exit code {code}, see {directory / 'errors.log'}"
