"""`metarec train -m hydra/sweeper=optuna ...`: trials measured on validation, then the best setting once on test.

    SEARCH/search.json        what was asked: all that a resume needs, with
    SEARCH/study.sqlite       Optuna's storage: parameters, values and states of all trials
    SEARCH/trials/<n>_<...>/  a run with evaluation.split=val (or one for each seed, in seed<s>/), and its output.log
    SEARCH/best/              the best trial's run, gone on from its last checkpoint: measured on test, once
    SEARCH/best.json          which trial that was; with it the search is finished
    SEARCH/summary.json       the table that is printed

One process draws and keeps the storage; each trial has a process of its own. A trial that was running when the search
was killed is taken up again under its number, in its directory, from its last checkpoint.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from metarec import strict_json, trackers
from metarec.config.arguments import new_directory
from metarec.config.compose import config_to_yaml, slug
from metarec.config.overrides import check_words
from metarec.config.search import OPTIONS, Search, document, stored_search, write_search
from metarec.config.sweep import RECORD, Record, read_record, write_record
from metarec.config.threads import too_many
from metarec.durable import sync, sync_tree
from metarec.errors import ConfigError, Stopped
from metarec.report.trials import figure, print_trials, trials_document
from metarec.runs import atomic, rundir
from metarec.runs.lines import LINES
from metarec.runs.lock import hold
from metarec.verbs import measure as m
from metarec.verbs.storage import Row, Study
from metarec.verbs.trial import LOG, PATIENCE, start

STORAGE, BEST, BEST_FILE, SUMMARY = "study.sqlite", "best", "best.json", "summary.json"
LEFT_ALONE = 10.0  # seconds: Ctrl-C reaches the trials as well, which then end by themselves
KILLED = 5  # exit code for a trial whose process was killed: memory, mostly
# what a trial is measured on; whom it is compared with can wait for the best
OF_A_TRIAL = (
    "evaluation.split=val", "evaluation.panel=none", "evaluation.ks=null", "evaluation.grid=false",
    "evaluation.latency=false", "evaluation.divergence=false", "logger.plots=false",
)  # fmt: skip
OF_THE_BEST = ("evaluation.split=test",)
MAY_GROW = ("n_trials", "n_jobs")  # of a search given its storage again


def run_search(search: Search) -> int:
    """A new search, or the one that the given storage holds; returns the exit code. Raises MetarecError."""
    trackers.require(search.config.logger.name)
    options = search.options
    if options.storage is None:
        directory = new_directory(search.config.output_dir, "train").resolve()
        study = Study(directory / STORAGE, search)
    else:
        study = Study(Path(options.storage), search)
        directory = _directory_of(study, search) or new_directory(search.config.output_dir, "train").resolve()
    return _go_on(directory, study, search)


def resume_search(directory: Path) -> int:
    """Carry on with the search in `directory`; of a finished one only the summary is shown."""
    directory = directory.resolve()
    search = stored_search(directory)
    return _go_on(directory, Study(Path(search.options.storage or directory / STORAGE), search), search)


def _directory_of(study: Study, search: Search) -> Path | None:
    """Where the search of this storage lies; None for a new study. ConfigError where it is another search."""
    asked, where = study.notes.get("asked"), study.notes.get("directory")
    name = f"study {study.options.study_name}"
    fix = f"give another {OPTIONS}.study_name or {OPTIONS}.storage"
    if asked is None or where is None:
        if study.rows():
            raise ConfigError(f"{OPTIONS}.storage", search.options.storage, f"{name} is no search of metarec", fix)
        return None
    now = document(search)
    for part in ("words", "drawn", "options"):
        then, given = asked[part], now[part]
        if part == "options":
            then, given = ({k: v for k, v in of.items() if k not in MAY_GROW} for of in (then, given))
        if then != given:
            what = f"{name} has other {'options' if part == 'options' else 'words'}: {_difference(then, given)}"
            raise ConfigError(f"{OPTIONS}.storage", search.options.storage, what, fix)
    if not Path(where).is_dir():
        raise ConfigError(f"{OPTIONS}.storage", search.options.storage, f"its directory {where} is gone", fix)
    return Path(where)


def _difference(then: Any, given: Any) -> str:
    if isinstance(then, Mapping):
        return ", ".join(f"{key}={then.get(key)}" for key in then if then.get(key) != given.get(key))
    return " ".join(sorted(set(then) ^ set(given))) or "in another order"


def _go_on(directory: Path, study: Study, search: Search) -> int:
    with hold(directory):
        trials = _Trials(directory, study, search)
        if (directory / BEST_FILE).exists():
            if len(study.rows()) < search.n_trials:
                what = "the search is finished and its best setting was measured on test: more trials would come after"
                raise ConfigError(f"{OPTIONS}.n_trials", search.n_trials, what, "start a new search")
            return trials.summarise()
        write_search(directory, search)
        study.note("asked", document(search))
        study.note("directory", str(directory))
        trials.say(f"search directory {directory}: {search.n_trials} trials, sampler {search.options.sampler}")
        if line := too_many(search.config.hardware.threads, search.options.n_jobs):
            print(line, file=sys.stderr, flush=True)
        try:
            trials.run()
            failed = trials.measure_best()
        finally:
            code = trials.summarise()
        return code or failed


@dataclass
class _Live:
    """A trial that is running."""

    row: Row
    directory: Path
    process: process.BaseProcess
    pipe: Connection


class _Trials:
    """The trials of one search."""

    def __init__(self, directory: Path, study: Study, search: Search) -> None:
        self.directory, self.study, self.search = directory, study, search
        self.monitor = search.config.evaluation.monitor

    def say(self, line: str) -> None:
        if self.search.config.logger.console != "quiet":
            print(line, flush=True)

    def place(self, row: Row) -> Path:
        """The directory of a trial, which follows from its number and parameters."""
        words = ",".join(one.word(row.params[one.key]) for one in self.search.space)
        return self.directory / "trials" / f"{row.number}_{slug(words)}"

    def words(self, row: Row, measured: Sequence[str]) -> dict[str, list[str]]:
        """Directory of each run below that of the trial ("" = itself) -> its words."""
        words = [*self.search.words, *(one.word(row.params[one.key]) for one in self.search.space), *measured]
        seeds = self.search.options.seeds
        return {"": words} if seeds is None else {f"seed{seed}": [*words, f"seed={seed}"] for seed in seeds}

    def run(self) -> None:
        """Run what is missing, `n_jobs` at a time."""
        waiting = [row for row in self.study.rows() if row.status == "running"]
        live: list[_Live] = []
        try:
            while True:
                while len(live) < self.search.options.n_jobs:
                    row = waiting.pop(0) if waiting else self.study.draw()
                    if row is None:
                        break
                    if begun := self.begin(row):
                        live.append(begun)
                if not live:
                    return
                ready = connection.wait([one.pipe for one in live])
                for one in [one for one in live if one.pipe in ready]:
                    try:
                        step, value = one.pipe.recv()
                        one.pipe.send(self.study.report(one.row.number, step, value))
                    except (EOFError, OSError):
                        live.remove(one)
                        self.end(one)
        except BaseException as reason:
            _stop(live, patient=isinstance(reason, KeyboardInterrupt))
            raise

    def begin(self, row: Row) -> _Live | None:
        """Start a trial; None where it had ended before a kill, or cannot start."""
        where, runs = self.place(row), self.words(row, OF_A_TRIAL)
        where.mkdir(parents=True, exist_ok=True)
        record = read_record(where)
        if record is not None and record.status in ("ok", "failed", "pruned"):
            self.tell(row, where, record)
            return None
        try:
            self.cards(where, runs)
        except ConfigError as error:
            line = f"error: {'; '.join(str(error).splitlines())}"
            record = Record(row.number, next(iter(runs.values())), "failed", error.exit_code, str(where), error=line)
            write_record(where, record)
            self.tell(row, where, record)
            return None
        (where / RECORD).unlink(missing_ok=True)
        return _Live(row, where, *start(row.number, where, runs))

    def cards(self, where: Path, runs: Mapping[str, list[str]]) -> None:
        """A run card for each run that has none; raises ConfigError for values that contradict each other."""
        for name, words in runs.items():
            if not (where / name / "config.yaml").exists():  # the last one written
                (job,) = check_words("train", words, config_dir=self.search.config_dir).jobs
                (where / name).mkdir(exist_ok=True)
                rundir.write_run_card(where / name, config_yaml=config_to_yaml(job.config), overrides=words)

    def end(self, one: _Live) -> None:
        """What a trial's process left; raises Stopped where a signal ended it."""
        one.process.join()
        record, code = read_record(one.directory), one.process.exitcode or 0
        if record is None or record.status == "interrupted":
            number = code - 128 if code > 128 else -code
            name = signal.Signals(number).name if number > 0 else f"exit code {code}"
            if number in (signal.SIGINT, signal.SIGTERM):
                fix = f"go on by metarec train resume={self.directory}"
                raise Stopped(name, f"trial {one.row.number}", "stopped as asked", fix, number)
            line = f"error: its process was ended by {name}, see {one.directory / LOG}"
            record = Record(one.row.number, [], "failed", KILLED, str(one.directory), error=line)
            write_record(one.directory, record)
        self.tell(one.row, one.directory, record)

    def tell(self, row: Row, where: Path, record: Record) -> None:
        notes = {
            "directory": where.relative_to(self.directory).as_posix(), "seconds": record.seconds,
            "exit_code": record.exit_code, "error": record.error,
        }  # fmt: skip
        ended = self.study.tell(row.number, record.status, record.headline.get(self.monitor), notes)
        value = "" if ended.value is None else f" {self.monitor} {ended.value:.4f}"
        given = " ".join(f"{key}={figure(drawn)}" for key, drawn in row.params.items())
        self.say(f"trial {row.number}: {given}: {ended.status}{value}")
        if record.status == "failed":
            print(f"trial {row.number}: {record.error}", file=sys.stderr, flush=True)

    def measure_best(self) -> int:
        """Measure the best trial's run on test, in a directory of its own; its exit code, 0 where no trial has a value."""
        row = self.study.best()
        if row is None:
            return 0
        best, runs = self.directory / BEST, self.words(row, OF_THE_BEST)
        if not best.exists():
            self._stage(row, best, runs)
        self.say(f"best: trial {row.number}, validation {self.monitor} {row.value:.4f}; now on test")
        live = [_Live(row, best, *start(row.number, best, runs))]
        try:
            while True:
                live[0].pipe.recv()
                live[0].pipe.send(False)
        except (EOFError, OSError):
            live[0].process.join()
        except BaseException as reason:
            _stop(live, patient=isinstance(reason, KeyboardInterrupt))
            raise
        record, code = read_record(best), live[0].process.exitcode or 0
        if record is None or record.status != "ok":
            why = record.error if record is not None and record.error else f"exit code {code}"
            print(f"the best setting on test: {why}, see {best / LOG}", file=sys.stderr, flush=True)
            return (record.exit_code if record is not None else code) or 1
        atomic.write_json(self.directory / BEST_FILE, self._best_document(row, best, runs))
        return 0

    def _stage(self, row: Row, best: Path, runs: Mapping[str, list[str]]) -> None:
        """The trial's checkpoints under run cards that say test: what was chosen is what is measured, not its like."""
        partial = self.directory / f".{BEST}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self.cards(partial, runs)
        for name in runs:
            trained = self.place(row) / name
            shutil.copytree(trained / "checkpoints", partial / name / "checkpoints")
            for lines in LINES:
                if (trained / lines).exists():
                    shutil.copy2(trained / lines, partial / name / lines)
        sync_tree(partial)
        partial.rename(best)
        sync(best.parent)

    def _best_document(self, row: Row, best: Path, runs: Mapping[str, list[str]]) -> dict[str, Any]:
        found = {name: strict_json.loads((best / name / "metrics.json").read_bytes()) for name in runs}
        test = [m.headline(one, self.monitor) for one in found.values()]
        return {
            "trial": row.number,
            "metric": self.monitor,
            "validation": row.value,
            "test": {method: sum(one[method] for one in test) / len(test) for method in test[0]},
            "params": row.params,
            "words": [one.word(row.params[one.key]) for one in self.search.space],
            "runs": {name or ".": (best / name).relative_to(self.directory).as_posix() for name in runs},
            "seeds": self.search.options.seeds or [self.search.config.seed],
        }

    def summarise(self) -> int:
        """Write summary.json and print the table; the exit code of the first trial that failed, or 0."""
        rows = self.study.rows()
        best = self.directory / BEST_FILE
        chosen = strict_json.loads(best.read_bytes()) if best.exists() else None
        found = trials_document(
            rows, metric=self.monitor, n_trials=self.search.n_trials, best=chosen, importance=self.study.importance()
        )
        atomic.write_json(self.directory / SUMMARY, found)
        print_trials(self.directory, found)
        return next((int(row.notes.get("exit_code") or 1) for row in rows if row.status == "failed"), 0)


def _stop(live: list[_Live], *, patient: bool) -> None:
    """End the running trials; each saves a checkpoint first, and its trial stays running in the storage."""
    for one in live:  # one that waits for an answer would wait for it until it is killed
        one.pipe.close()
    for one in live:
        one.process.join(LEFT_ALONE if patient else 0)
        if one.process.is_alive():
            one.process.terminate()
    for one in live:
        one.process.join(PATIENCE)
        if one.process.is_alive():
            one.process.kill()
