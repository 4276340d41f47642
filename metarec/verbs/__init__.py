"""What the verbs do: objects from `build`, plain loops from `train` and `evaluate`, files through `runs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarec.config.reading import CompareRuns, Reading
from metarec.config.schema import CompareConfig, Config, EvalConfig, ExportConfig, PrepareConfig, TeachersConfig


def run_verb(verb: str, config: Config, run_dir: Path, resume: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a verb in `run_dir`; `overrides` are the words typed. Returns {"run_dir", "headline": {name: value}}."""
    from metarec.runs.memory_need import enough_memory

    with enough_memory():
        return _run(config, run_dir, resume, overrides)


def _run(config: Config, run_dir: Path, resume: bool, overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(config, PrepareConfig):
        from metarec.verbs.prepare import run_prepare

        return run_prepare(config, run_dir, overrides)
    if isinstance(config, EvalConfig):
        from metarec.verbs.eval import run_eval

        return run_eval(config, run_dir, overrides)
    if isinstance(config, ExportConfig):
        from metarec.verbs.export import run_export

        return run_export(config, run_dir, overrides)
    if isinstance(config, CompareConfig):
        from metarec.verbs.compare import run_compare

        return run_compare(config, run_dir, resume, overrides)
    if isinstance(config, TeachersConfig):  # ahead of training, whose options it has
        from metarec.verbs.teachers import run_teachers

        return run_teachers(config, run_dir, overrides)
    from metarec.verbs.train import run_train

    return run_train(config, run_dir, resume, overrides)


def read_runs(runs: Sequence[str], options: Reading, overrides: Sequence[str]) -> Path:
    """Compare or report the finished `runs`; `overrides` are the words typed. Returns where the result is."""
    if isinstance(options, CompareRuns):
        from metarec.verbs.compare_runs import compare_runs

        return compare_runs(runs, options, overrides)
    from metarec.verbs.report import run_report

    return run_report(runs, options, overrides)
