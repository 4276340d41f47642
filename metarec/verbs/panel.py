"""The rows that a run is compared with, each tuned on validation with the budget of the fine-tune control."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from metarec import build
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.baselines import BASELINES
from metarec.baselines.source import source_hash
from metarec.benches import AnyBench, ImageBench, SequenceBench
from metarec.config.schema import OF_A_MODEL, TrainConfig
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.data.history import Stream
from metarec.errors import ConfigError
from metarec.evaluate import scored, tune_control
from metarec.panel import Judge, Panel, Row, baseline_row, in_context_row, training_log
from metarec.report.progress import progress
from metarec.runs.signals import Stop
from metarec.text_bench import TextBench
from metarec.verbs.measure import control_tuning
from metarec.verbs.tuned import tuned
from metarec.verbs.warm_start import model_files, warm_start

QUICK = ("popularity", "frequent_support", "in_context")
WHY_IMAGES = "an image has no history"
WHY_TEXT = "text tasks have no log"
WHY_ONE = "every user is one sequence, so a prefix holds the support already"
WHY_HISTORY = "dataset.history=user: every row reads the support in front of the prefix already"


def panel(
    config: TrainConfig, bench: AnyBench, base: Params, source: dict[str, Any], run_dir: Path, stop: Stop
) -> Panel:
    """The rows of `evaluation.panel`, in its order. What cannot be here is left out with the reason; where it was asked
    for by name, ConfigError."""
    asked = config.evaluation.panel
    found, make = Panel(), _Rows(config, bench, base, source, run_dir, stop)
    for name in rows_of(asked):
        reason = _why_not(name, bench)
        if reason is None:
            found.rows[name] = make(name)
        elif isinstance(asked, str):
            found.left_out[name] = reason
        else:
            raise ConfigError("evaluation.panel", name, reason, "leave it out")
    return found


def rows_of(asked: str | list[str]) -> tuple[str, ...]:
    """The rows of a panel by its name, or of a list, each once."""
    if not isinstance(asked, str):
        return tuple(dict.fromkeys(asked))
    full = (*(name for name, row in BASELINES.items() if row.in_full), *OF_A_MODEL)
    return {"quick": QUICK, "full": full, "none": ()}[asked]


def check_panel(config: TrainConfig, bench: AnyBench) -> None:
    """ConfigError for a row that was asked for by name and cannot be, before anything is trained."""
    if not isinstance(config.evaluation.panel, str):
        for name in config.evaluation.panel:
            if reason := _why_not(name, bench):
                raise ConfigError("evaluation.panel", name, reason, "leave it out")


def _why_not(name: str, bench: AnyBench) -> str | None:
    if isinstance(bench, ImageBench):
        return None if name in ("head_only", "scratch") else WHY_IMAGES
    if isinstance(bench, TextBench):
        return None if name in ("head_only", "scratch") else WHY_TEXT
    if name in BASELINES:
        return BASELINES[name].why_not(bench.prepared.has_clock, bench.n_items)
    if name in ("in_context", "in_context_user"):
        if bench.batcher.stream is not None:
            return WHY_HISTORY
        if (np.diff(bench.prepared.user_sessions) <= 1).all():
            return WHY_ONE
    return None


class _Rows:
    """Makes one row after another; what they share is made once."""

    def __init__(
        self, config: TrainConfig, bench: AnyBench, base: Params, source: dict[str, Any], run_dir: Path, stop: Stop
    ) -> None:
        self.config, self.bench, self.base, self.source = config, bench, base, source
        self.run_dir, self.stop = run_dir, stop
        evaluation = config.evaluation
        grid = evaluation.control
        self.judge = Judge(
            bench.episodes("val", rows=bench.tuning_rows()), evaluation.monitor, evaluation.ties, bench.seen(),
            bench.n_items, len(set(grid.lrs)) * len(set(grid.steps)), config.seed,
        )  # fmt: skip
        self.log = training_log(bench.prepared) if isinstance(bench, SequenceBench) else None

    def __call__(self, name: str) -> Row:
        if name in BASELINES:
            return self._baseline(name)
        if name == "in_context":
            return self._in_context()
        if name == "in_context_user":
            return self._in_context_user()
        return self._fine_tuned(name)

    def _depends_on(self, name: str) -> list[Any]:
        evaluation, prepared = self.config.evaluation, self.bench.prepared
        how = [evaluation.monitor, evaluation.ties, evaluation.candidates, asdict(evaluation.control)]
        return [
            name,
            prepared.fingerprint,
            self.config.dataset.history,
            prepared.episodes("val").sha256,
            how,
            self.config.seed,
        ]

    def _baseline(self, name: str) -> Row:
        assert isinstance(self.bench, SequenceBench)
        assert self.log is not None
        log, batcher, judge = self.log, self.bench.batcher, self.judge
        baseline = BASELINES[name]
        default = {option: baseline.default[option] for option in baseline.space}  # the others stay as they are
        if not baseline.space:
            return baseline_row(name, log, batcher, baseline.default)

        def choose() -> dict[str, Any]:
            with progress(judge.n_settings(baseline.space), f"tune {name}", self.config.logger.console) as bar:
                return judge.choose(
                    baseline.space, default, lambda options: baseline_row(name, log, batcher, options).scorer,
                    lambda: bar.advance(1),
                )  # fmt: skip

        space = {option: list(values) for option, values in baseline.space.items()}
        record = tuned(self.config, "panel", [*self._depends_on(name), space, source_hash(name)], choose)
        return replace(baseline_row(name, log, batcher, record["chosen"]), tuning=record)

    def _in_context(self) -> Row:
        bench = self.bench
        assert isinstance(bench, SequenceBench)
        return in_context_row(bench.tasks(), self.base, bench.batcher, self.judge, bench.prepared.n_support)

    def _in_context_user(self) -> Row:
        """A second model, pretrained on whole histories under the same options, read with the support in front."""
        bench = self.bench
        assert isinstance(bench, SequenceBench)
        config = replace(self.config, dataset=replace(self.config.dataset, history="user"), warm_start="auto")
        own = replace(bench, batcher=replace(bench.batcher, stream=Stream.of(bench.prepared), recall=False))
        history = self.run_dir / "in_context_user"
        history.mkdir(exist_ok=True)
        base = warm_start(config, own, history, self.stop).params
        return in_context_row(own.tasks(), base, own.batcher, None, bench.prepared.n_support)

    def _fine_tuned(self, name: str) -> Row:
        """head_only: the control with all but the head held. scratch: the control from random weights."""
        bench, grid = self.bench, self.config.evaluation.control
        start, adapted = self.base, build.fine_tunable(bench.model)
        key: Any = self.source.get("key")
        if name == "head_only":
            adapted = frozenset(bench.model.head) & self.base.keys()
        else:
            fresh = bench.model.init(generator(self.config.seed, "scratch"), bench.hardware.dtype)
            start = {weight: value.to(bench.hardware.device) for weight, value in fresh.items()}
            key = asdict(self.config.model) | model_files(bench)

        def choose() -> dict[str, Any]:
            with progress(len(set(grid.lrs)), f"tune {name}", self.config.logger.console) as bar:
                found = tune_control(
                    bench.tasks(), start, self.judge.episodes, grid.lrs, grid.steps, self.judge.metric, self.judge.ties,
                    lambda lr: bar.advance(1, lr=lr), adapted=adapted, seen=self.judge.seen,
                )  # fmt: skip
            return control_tuning(found, bench)

        on = bench.hardware
        more = [key, build.unanchored(self.config), str(on.device), str(on.dtype), *on.changes]
        record = choose() if key is None else tuned(self.config, "panel", [*self._depends_on(name), more], choose)
        loop = InnerLoop(record["chosen"]["lr"], int(record["chosen"]["steps"]), adapted=adapted)
        tasks, plain = bench.tasks(), MAML(loop)
        method = scored(tasks, lambda batch: plain.adapt(start, tasks.loss(batch.support), batch.n_tasks))
        return Row(method, record)
