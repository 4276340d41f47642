"""`metarec compare` over data sets, models, residuals and algorithms: tuned on validation, run with every seed, one page.

Runs are ordinary runs in RUN/jobs/; what is there and whole is not run again, so a survey that was stopped goes on by
`metarec compare resume=RUN`. A cell that fails is told and leaves the others alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metarec import strict_json
from metarec.config.compose import config_to_yaml
from metarec.config.schema import CompareConfig, TrainConfig
from metarec.errors import Stopped
from metarec.report.contrasts import contrasts
from metarec.report.contrasts_text import contrasts_page, contrasts_table
from metarec.report.finished import Run, read_run
from metarec.report.survey import survey
from metarec.report.survey_text import survey_page, survey_table
from metarec.report.tables import show
from metarec.runs import atomic, rundir
from metarec.runs.lock import hold
from metarec.verbs.cells import Cell, cells, settings
from metarec.verbs.jobs import Failed, run_job, stop_jobs


def run_survey(config: CompareConfig, run_dir: Path, resume: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Run every cell, `parallel` at once, then print the table and write it: survey.json, .html, .md, .tex."""
    every = cells(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    with hold(run_dir):
        if not resume:
            rundir.write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=overrides)
        work = _Work(config, run_dir, every, overrides)
        with ThreadPoolExecutor(config.parallel) as pool:
            try:
                list(pool.map(work.cell, every))
            except BaseException:  # a signal to this process: no job is begun any more, and those that run save and end
                work.ended = True
                stop_jobs()
                raise
        if work.stopped is not None:
            raise work.stopped
        blocks: dict[tuple[str, str], list[tuple[Cell, list[Run]]]] = {}
        for cell in every:
            if cell.name in work.runs:
                blocks.setdefault(cell.block, []).append((cell, work.runs[cell.name]))
        if not blocks:
            code, line = next(iter(work.failures.values()))
            raise Failed("compare", len(work.failures), "every cell failed", line, code)
        told = {name: line for name, (_, line) in work.failures.items()}
        named = {block: [(cell.names[2:], runs) for cell, runs in found] for block, found in blocks.items()}
        if config.contrasts is None:
            document = survey(named, tuned=work.tuned, failures=told, config=asdict(config))
            page, table = survey_page(document, named), survey_table
        else:
            metric = config.evaluation.monitor if config.metric == "monitor" else config.metric
            document = contrasts(named, config.contrasts, metric=metric, failures=told, config=asdict(config))
            page, table = contrasts_page(document, named), contrasts_table
        atomic.write_json(run_dir / "survey.json", document)
        for form, text in (("html", page.html()), ("md", page.markdown()), ("tex", page.latex())):
            atomic.write_text(run_dir / f"survey.{form}", text)
        if not work.failures:
            rundir.seal(run_dir)
    if config.logger.console != "quiet":
        show(table(document))
        print(f"survey in {run_dir}: survey.html, survey.md, survey.tex, survey.json", flush=True)
    if work.failures:
        code, line = next(iter(work.failures.values()))
        raise Failed("compare", f"{len(work.failures)} of {len(every)} cells", "failed", line, code)
    return {"run_dir": str(run_dir), "headline": {" ".join(b["block"]): _headline(b) for b in document["blocks"]}}


def _headline(block: dict[str, Any]) -> float:
    """What is ours of a survey; of contrasts the first variant's figure."""
    return float(block["ours"]["mean"] if "ours" in block else block["rows"][0]["mean"])


class _Work:
    """What the cells of a survey leave behind; cells run in threads, each of their runs in a process of its own."""

    def __init__(self, config: CompareConfig, run_dir: Path, every: Sequence[Cell], overrides: Sequence[str]) -> None:
        self.config, self.run_dir, self.overrides = config, run_dir, overrides
        self.first_of_block = {cell.block: cell.name for cell in reversed(every)}
        self.tuned: dict[str, Any] = {}
        self.runs: dict[str, list[Run]] = {}
        self.failures: dict[str, tuple[int, str]] = {}
        self.stopped: Stopped | None = None
        self.ended = False
        self._done, self._lock = 0, threading.Lock()
        self._total = len(every)

    def cell(self, cell: Cell) -> None:
        """Tune and run a cell; what goes wrong is kept, not raised."""
        if self.stopped is not None or self.ended:
            return
        try:
            setting = self._setting(cell)
            whole = self.first_of_block[cell.block] == cell.name
            runs = [
                self._run(f"{cell.name}_seed{seed}", cell.run(seed, setting, whole_panel=whole))
                for seed in dict.fromkeys(self.config.seeds)
            ]
            self.runs[cell.name] = runs
        except Stopped as stopped:
            self.stopped = stopped
        except Failed as failed:
            self.failures[cell.name] = (failed.exit_code, failed.line)
            print(f"{cell.name} failed: {failed.line}", file=sys.stderr, flush=True)
        with self._lock:
            self._done += 1
            if self.config.logger.console != "quiet" and self.stopped is None:
                print(f"cell {self._done}/{self._total}: {cell.name}", flush=True)

    def _setting(self, cell: Cell) -> dict[str, float]:
        """The setting with the best validation figure; of equal ones the first."""
        every = settings(self.config, cell.config.residual)
        if len(every) == 1:
            return every[0]
        tried = []
        for number, setting in enumerate(every):
            run = self._run(f"{cell.name}_trial{number}", cell.trial(self.config.seeds[0], setting))
            tried.append({**setting, "value": validation_value(run)})
        best = max(range(len(every)), key=lambda number: tried[number]["value"])
        self.tuned[cell.name] = {"chosen": every[best], "tried": tried, "seed": self.config.seeds[0]}
        return every[best]

    def _run(self, name: str, job: TrainConfig) -> Run:
        """The finished run of a job, run now unless it is there."""
        directory = self.run_dir / "jobs" / name
        if not (directory / "manifest.json").exists():
            if self.config.parallel > 1 and job.hardware.threads == 0:
                job = replace(job, hardware=replace(job.hardware, threads=1))
            run_job(directory, job, self.overrides, f"go on by metarec compare resume={self.run_dir}", echo=False)
        return read_run(directory, name)


def validation_value(run: Run) -> float:
    """The best monitored validation figure of a run."""
    training = strict_json.loads((run.path / "metrics.json").read_bytes())["training"]
    return float(training[f"val_{run.monitor}"])
