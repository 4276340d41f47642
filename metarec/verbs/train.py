"""`metarec train`: prepare, warm-start, tune the control, meta-train, measure once, write it all down."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metarec import build, strict_json, trackers
from metarec.benches import AnyBench
from metarec.config.compose import config_to_yaml
from metarec.config.overrides import given_keys
from metarec.config.schema import SupervisedConfig, TrainConfig
from metarec.core.seeding import generator
from metarec.errors import ConfigError, MetarecError, Pruned, Stopped
from metarec.evaluate import Control
from metarec.report.plots import plot_curves
from metarec.report.reported import plain
from metarec.report.tables import funnel_table, show
from metarec.report.timescale_plots import plot_timescales
from metarec.runs import atomic, checkpoint, lines, rundir
from metarec.runs.guard import FILE, PRETRAIN_FILE, counted
from metarec.runs.history import History, read_history, truncate_after
from metarec.runs.lock import hold
from metarec.runs.memory import Peak
from metarec.runs.memory_need import enough_memory
from metarec.runs.signals import ShouldStop, Stop, stop_on_signals
from metarec.runs.stored import check_state
from metarec.runs.timescales import PRETRAIN_FILE as PRETRAIN_TIMESCALES
from metarec.trackers.tracker import Tracker, tracked
from metarec.train import Progress, Store, Timer, point_last, step_name
from metarec.verbs import adapter, perplexity
from metarec.verbs import measure as m
from metarec.verbs.curves import check_curves, extras
from metarec.verbs.meta_train import Cost, fixed_state, meta_train
from metarec.verbs.panel import check_panel, panel
from metarec.verbs.references import reference_of
from metarec.verbs.row_steps import with_row_steps
from metarec.verbs.teachers import check_path
from metarec.verbs.tracking import backend_of, group_of
from metarec.verbs.warm_start import best_values, check_vocabulary, pretrain, warm_start


def run_train(
    config: TrainConfig, run_dir: Path, resume: bool, overrides: Sequence[str], should_stop: ShouldStop | None = None
) -> dict[str, Any]:
    """One run in `run_dir`. Raises MetarecError; whatever was saved before stays.

    should_stop: what a search makes of each validation, see `runs.signals.Stop.validated`.
    """
    trackers.require(config.logger.name)
    run_dir.mkdir(parents=True, exist_ok=True)
    with hold(run_dir), stop_on_signals(should_stop=should_stop) as stop:
        if resume:
            if (run_dir / "manifest.json").exists():
                raise ConfigError("resume", run_dir, "the run is finished", "start a new one, or metarec eval ckpt=RUN")
            return _run(config, run_dir, resume, stop)
        try:
            rundir.write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=overrides)
            return _run(config, run_dir, resume, stop, given_keys(overrides))
        except (Stopped, Pruned):
            raise  # the run card is all that a resume needs
        except MetarecError:
            if stop.wanted is None and not (run_dir / "checkpoints").exists():  # nothing trained: leave nothing behind
                rundir.empty(run_dir)
            raise


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """logger.console=quiet."""


def _run(config: TrainConfig, run_dir: Path, resume: bool, stop: Stop, given: Collection[str] = ()) -> dict[str, Any]:
    group = group_of(run_dir, Path(config.output_dir))
    with enough_memory(), tracked(backend_of(config, run_dir), run_dir, group) as tracker:
        return _told(config, run_dir, resume, stop, tracker, given)


def _told(
    config: TrainConfig, run_dir: Path, resume: bool, stop: Stop, tracker: Tracker, given: Collection[str]
) -> dict[str, Any]:
    began = time.time()
    quiet = config.logger.console == "quiet"
    say = _silent if quiet else _say
    on = build.hardware(config.hardware)
    prepared = build.data(config, config.dataset, say)
    if not quiet:
        show(funnel_table(prepared.funnel, prepared.counts, title=f"{prepared.name}: {prepared.split_note}"))
    atomic.write_json(run_dir / "funnel.json", {"steps": prepared.funnel, "counts": prepared.counts})
    bench = build.bench(config, config.evaluation, prepared, on)
    check_panel(config, bench)
    check_path(config)
    check_curves(config.evaluation, bench, config.evaluation.split)
    say(f"run directory {run_dir}; {on.line}")

    found, cost = _resumed(run_dir, bench, say) if resume else None, Cost()
    config = adapter.resolved(config, bench.model, given, found)
    told = run_dir / "history.jsonl"
    notes = {
        "dataset": prepared.name,
        "split": prepared.split_note,
        "counts": prepared.counts,
        "funnel": prepared.funnel,
    }
    tracker.begin(asdict(config), notes, read_history(told) if told.exists() else [])
    scales: dict[str, Any] = {}
    if isinstance(config.algorithm, SupervisedConfig):
        at = _supervised(config, bench, run_dir, found, stop, tracker, cost, scales)
    else:
        at = meta_train(config, config.algorithm, bench, run_dir, found, stop, say, cost, tracker, scales)
    trained_seconds = time.time() - began

    best = checkpoint.resolve(run_dir)
    tensors, state = checkpoint.load_checkpoint(best)
    trained = m.trained_from(bench, config, tensors, Control(**state["control"]) if state["control"] else None)
    control = (
        Control(**state["control"]) if state["control"] else m.control_of(bench, trained.base, config.logger.console)
    )
    source = {} if trained.phi is None else state["warm_start"]
    rows = panel(config, bench, trained.base, source, run_dir, stop)
    trained = with_row_steps(config.algorithm, bench, trained, config.logger.console)
    split = config.evaluation.split
    episodes = bench.episodes(split)
    document, columns = m.measure(
        bench, trained, control, rows, episodes, split, seed=config.seed, steps=config.evaluation.test_steps,
        reference=reference_of(config, bench, trained, episodes, split),
    )  # fmt: skip
    more = extras(
        bench, trained, control, rows, config.evaluation.split, seed=config.seed, steps=config.evaluation.test_steps,
        mode=config.logger.console,
    )  # fmt: skip
    document = {
        "model": config.model.name,
        "dataset": prepared.name,
        "algorithm": config.algorithm.name,
        "residual": config.residual.name,
        "config": asdict(config),
        **document,
        **more,
        **({} if config.reported is None else {"reported": plain(config.reported)}),
        "seeds": {"run": config.seed, "split": config.dataset.split.seed},
        "training": {
            "best_step": at.best_step, "steps": at.step, "stopped_early": at.stopped,
            **_best(config, at, told), "warm_start": state["warm_start"],
        },
        **_guarded(config, run_dir),
        **_timescales(run_dir, scales, cost),
        "checkpoint": best.relative_to(run_dir).as_posix(),
        "cost": cost.document(),
        "seconds": {"until_trained": round(trained_seconds, 1), "total": round(time.time() - began, 1)},
    }  # fmt: skip
    atomic.write_json(run_dir / "metrics.json", document)
    m.write_per_user(run_dir / "per_user.parquet", columns)
    if config.logger.plots:
        drawn = plot_curves(
            read_history(told), run_dir, metric=config.evaluation.monitor,
            title=f"{prepared.name}, {config.algorithm.name}, residual {config.residual.name}", best_step=at.best_step,
            clip_norm=(config.pretrain if isinstance(config.algorithm, SupervisedConfig) else config.optimizer).clip_norm,
        )  # fmt: skip
        if isinstance(drawn, str):
            say(drawn)
        plot_timescales(run_dir, document)
    tracker.finish(document, [run_dir / "config.yaml", run_dir / "metrics.json", *sorted(run_dir.glob("*.png"))])
    rundir.seal(run_dir)
    if not quiet:
        title = f"{prepared.name}: {config.model.name}, {config.algorithm.name}, residual {config.residual.name}"
        show(m.table(document, title))
        for line in perplexity.lines(document):
            say(line)
        say(
            f"best validation at step {at.best_step} of {at.step}; {document['seconds']['total']} s; results in {run_dir}"
        )
    return {"run_dir": str(run_dir), "headline": m.headline(document, config.evaluation.monitor)}


def _resumed(run_dir: Path, bench: AnyBench, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, with history and pointers put back to it; None = start over."""
    directory = run_dir / "checkpoints"
    atomic.clean_leftovers(run_dir)
    if directory.exists():
        atomic.clean_leftovers(directory)
    found, skipped = checkpoint.latest_good(directory, _usable)
    for line in skipped:
        print(line, file=sys.stderr, flush=True)  # even when quiet: work is done again
    if found is None:
        say("no checkpoint to go on from: the run starts from the beginning")
        lines.cut(run_dir, {})
        for path in checkpoint.list_checkpoints(directory):
            checkpoint.discard(path)
        for pointer in checkpoint.POINTERS:  # to what was discarded, or damaged
            checkpoint.unpoint(directory, pointer)
        return None
    _, state = checkpoint.load_checkpoint(found)
    check_vocabulary(found, state, bench)
    progress_state = state["progress"]
    name = _best_name(state)
    for later in checkpoint.list_checkpoints(directory):  # damaged, or of steps that will be done again
        if checkpoint.step_of(later.name) > progress_state["step"]:
            checkpoint.discard(later)
    checkpoint.point(directory, "best", name, step=progress_state["best_step"])
    point_last(directory, found.name, progress_state["step"], progress_state["best_step"], None)
    if "lines" in state:
        lines.cut(run_dir, state["lines"])
    else:  # of a metarec whose checkpoints did not vouch for them
        for growing in lines.GROWING:
            truncate_after(run_dir / growing, progress_state["step"])
    say(f"going on from {found.name}")
    return found


def _usable(path: Path) -> None:
    """CheckpointError unless a run can go on from `path`: it, the best checkpoint at that time, and what the
    histories held then are whole."""
    _, state = checkpoint.load_checkpoint(path)
    check_state(path, state)
    best = path.parent / _best_name(state)
    if best != path:
        check_state(best, checkpoint.load_checkpoint(best)[1])
    lines.check(path.parent.parent, state.get("lines", {}))


def _guarded(config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """What the guard did in each loop, as its files say; nothing where it is off."""
    if config.guard.name == "off":
        return {}
    files = {"training": run_dir / FILE, "pretraining": run_dir / PRETRAIN_FILE}
    return {"guard": {loop: counted(read_history(path) if path.exists() else []) for loop, path in files.items()}}


def _timescales(run_dir: Path, scales: dict[str, Any], cost: Cost) -> dict[str, Any]:
    """What each loop tells of its timescales; nothing where none does. What a step of pretraining took stands in `cost`."""
    path = run_dir / PRETRAIN_TIMESCALES
    before = strict_json.loads(path.read_bytes()) if path.exists() else {}
    cost.pretraining = before.pop("cost", None)
    found = {"training": scales, "pretraining": before}
    return {"timescales": {loop: own for loop, own in found.items() if own}} if scales or before else {}


def _best(config: TrainConfig, at: Progress, told: Path) -> dict[str, float]:
    """The best validation of what this run trained."""
    if isinstance(config.algorithm, SupervisedConfig):
        return best_values(config, at, told)
    return {f"val_{config.evaluation.monitor}": at.best_value}


def _best_name(state: dict[str, Any]) -> str:
    return step_name(state["progress"]["best_step"])


def _supervised(
    config: TrainConfig, bench: AnyBench, run_dir: Path, found: Path | None, stop: Stop, tracker: Tracker,
    cost: Cost, told: dict[str, Any],
) -> Progress:  # fmt: skip
    if config.warm_start == "auto":
        start, source = bench.model.init(generator(config.seed, "init"), bench.hardware.dtype), {"kind": "none"}
    else:
        warm = warm_start(config, bench, run_dir, stop)
        start, source = warm.params, warm.source
    store = Store(run_dir / "checkpoints", {}, fixed_state(config, bench, None, source), run_dir)
    peak, timer = Peak(bench.hardware.device), Timer()
    with History(run_dir / "history.jsonl", tracker) as history:
        _, at = pretrain(
            config, bench, start, history, run_dir / FILE, stop=stop, store=store, resume_from=found, timer=timer,
            told=told,
        )  # fmt: skip
    told.pop("cost", None)
    cost.seconds_per_step, cost.seconds, cost.steps = timer.per_step, timer.seconds, timer.steps
    cost.peak_bytes, cost.growth_bytes = peak.bytes, peak.growth
    return at
