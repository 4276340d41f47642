"""Where the base weights come from: pretrained once and cached, a checkpoint, a legacy file, or random."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from metarec import build, parts
from metarec.algorithms.inner import RATE
from metarec.benches import AnyBench, SequenceBench
from metarec.config.schema import TrainConfig
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.errors import CheckpointError
from metarec.evaluate import LIKELIHOOD, Control, pair_metrics
from metarec.models.convert import from_state_dict
from metarec.objectives.surprise import Surprise
from metarec.pretrain import loss_of_step, training_pieces, validation_pairs
from metarec.report.progress import progress
from metarec.runs import atomic, checkpoint, disk
from metarec.runs.environment import metarec_version
from metarec.runs.guard import PRETRAIN_FILE
from metarec.runs.history import History, read_history
from metarec.runs.legacy import read_legacy
from metarec.runs.memory import Peak
from metarec.runs.signals import Stop
from metarec.runs.timescales import PRETRAIN_FILE as TIMESCALES
from metarec.runs.timescales import Timescales
from metarec.tasks import Model
from metarec.text_bench import TextBench
from metarec.train import Plan, Progress, Store, Timer, fit, restore
from metarec.verbs import measure as m
from metarec.verbs.tuned import tuned

LEAST_BETWEEN_VALIDATIONS = 50  # steps; an epoch of a small log is only a few


@dataclass(frozen=True)
class WarmStart:
    params: Params
    source: dict[str, Any]  # for the run card and metrics.json


def warm_start(config: TrainConfig, bench: AnyBench, run_dir: Path, stop: Stop) -> WarmStart:
    """The base weights as `warm_start` says: auto (pretrain once, cache), none (random) or a path."""
    fresh = bench.model.init(generator(config.seed, "init"), bench.hardware.dtype)
    if config.warm_start == "none":
        return WarmStart(_to(fresh, bench), {"kind": "none"})
    if config.warm_start != "auto":
        path = Path(config.warm_start).expanduser()
        return WarmStart(_to(_from_path(path, bench), bench), {"kind": "path", "path": str(path)})
    key = cache_key(config, bench)
    directory = build.cache_dir(config) / "pretrained"
    directory.mkdir(parents=True, exist_ok=True)
    lines, events, scales = run_dir / "pretrain_history.jsonl", run_dir / PRETRAIN_FILE, run_dir / TIMESCALES
    with filelock.FileLock(directory / f"{key}.lock"):  # the runs of a sweep pretrain once
        atomic.clean_leftovers(directory, key)
        cached = directory / key
        if cached.exists():
            try:
                tensors, state = checkpoint.load_checkpoint(cached)
            except CheckpointError as error:
                print(f"pretrained weights in the cache are damaged and made again: {error}", flush=True)
            else:
                atomic.write_text(lines, state["history"])
                events.unlink(missing_ok=True)
                if state.get("events") and config.guard.name != "off":
                    atomic.write_text(events, state["events"])
                scales.unlink(missing_ok=True)
                if state.get("timescales"):
                    atomic.write_json(scales, state["timescales"])
                if config.logger.console != "quiet":
                    print(f"warm start: pretrained weights from the cache ({key[:12]})", flush=True)
                return WarmStart(_to(tensors, bench), {"kind": "auto", "key": key, **state["summary"]})
        for path in (lines, events, scales):
            path.unlink(missing_ok=True)
        told: dict[str, Any] = {}
        with History(lines) as history:
            best, at = pretrain(config, bench, fresh, history, events, stop=stop, told=told)
        summary = {"best_step": at.best_step, "steps": at.step, **best_values(config, at, lines)}
        cpu = {name: value.detach().cpu() for name, value in best.items()}
        stored = {"summary": summary, "history": lines.read_text(encoding="utf-8")}
        stored["events"] = events.read_text(encoding="utf-8") if events.exists() else ""
        if told:
            stored["timescales"] = told
            atomic.write_json(scales, told)
        checkpoint.save_checkpoint(directory, key, cpu, stored)
    return WarmStart(best, {"kind": "auto", "key": key, **summary})


def tuned_control(config: TrainConfig, bench: AnyBench, base: Params, source: dict[str, Any]) -> Control:
    """The fine-tune control; tuned once for the same start: cached pretrained weights, or random ones of one seed."""
    if source["kind"] == "path":
        return m.control_of(bench, base, config.logger.console)
    key = source.get("key") or cache_key(config, bench)
    wanted = ("monitor", "ties", "candidates", "task_chunk", "control")
    asked = {name: value for name, value in asdict(config.evaluation).items() if name in wanted}
    return Control(
        **tuned(
            config,
            "control",
            [source["kind"], key, asked],
            lambda: asdict(m.control_of(bench, base, config.logger.console)),
        )
    )


def best_values(config: TrainConfig, at: Progress, lines: Path) -> dict[str, float]:
    """The best validation of pretraining: the monitored figure, and with `pretrain.monitor=perplexity` both there."""
    name = config.evaluation.monitor
    if config.pretrain.monitor == "metric":
        return {f"val_{name}": at.best_value}
    best = next(row for row in read_history(lines) if row["kind"] == "val" and row["step"] == at.best_step)
    return {f"val_{key}": best["zeroshot"][key] for key in (name, "perplexity")}


def cache_key(config: TrainConfig, bench: AnyBench) -> str:
    """Everything that pretraining depends on."""
    on = bench.hardware
    parts = {
        "data": [bench.prepared.fingerprint, config.dataset.history],
        "model": asdict(config.model) | model_files(bench),
        "objective": build.unanchored(config),
        "pretrain": _of_pretraining(config),
        "monitor": [config.evaluation.monitor, config.evaluation.ties],
        "seed": config.seed,
        "hardware": [str(on.device), str(on.dtype), torch.get_num_threads(), *on.changes],
        "versions": [metarec_version(), torch.__version__],
    }
    if (own := build.pretrain_options(config)) is not None:
        parts["optimizer"] = asdict(own)
    # a guard that only watches ends with the same weights as none
    if getattr(config.guard, "on_nonfinite", "stop") != "stop" or _acts_on_spikes(config):
        parts["guard"] = asdict(config.guard)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _of_pretraining(config: TrainConfig) -> dict[str, Any]:
    """The options of pretraining; what it is monitored by stands there only where it is not `evaluation.monitor`, and
    what it steps by apart (`build.pretrain_options`)."""
    options = asdict(config.pretrain) | {"lr": build.pretrain_lr(config)}
    return {
        name: value for name, value in options.items()
        if name != "optimizer" and (name, value) != ("monitor", "metric")
        and not (name in ("steps", "eval_every") and value is None)
    }  # fmt: skip


def model_files(bench: AnyBench) -> dict[str, str]:
    """What the model's start depends on beside its options, as it says itself; mostly nothing."""
    found = getattr(bench.model, "fingerprint", None)
    return {} if found is None else {"files": found}


def _acts_on_spikes(config: TrainConfig) -> bool:
    return getattr(config.guard, "on_spike", "off") not in ("off", "warn")


def pretrain(
    config: TrainConfig, bench: AnyBench, start: Params, history: History | None, events: Path, *, stop: Stop,
    store: Store | None = None, resume_from: Path | None = None, told: dict[str, Any] | None = None,
    timer: Timer | None = None,
) -> tuple[Params, Progress]:  # fmt: skip
    """Train on the sessions of the training users, the best weights by validation; `events`: the guard's file.

    `told` is filled in where there is something to tell of timescales: that, and under `cost` time and memory of a step.
    """
    options = config.pretrain
    params = build.trainable(_to(start, bench))
    if isinstance(bench, TextBench):
        pieces, pairs = bench.pieces(options.batch_size, config.seed), bench.validation_pairs()
    else:
        assert isinstance(bench, SequenceBench)  # the rules refuse to pretrain on images
        pieces = training_pieces(
            bench.prepared, config.model.max_len, options.batch_size, config.seed, bench.batcher.stream, bench.unread
        )
        pairs = validation_pairs(bench.prepared)
    per_epoch, by_perplexity = pieces.steps_per_epoch, options.monitor == "perplexity"
    steps = options.steps or max(options.epochs * per_epoch, options.min_steps)
    by_epochs = max(options.eval_every_epochs * per_epoch, LEAST_BETWEEN_VALIDATIONS)
    plan = Plan(
        steps=steps,
        eval_every=min(options.eval_every or by_epochs, steps),
        patience=options.patience,
        checkpoint_every=max(config.train.checkpoint_every, per_epoch),
        clip_norm=options.clip_norm,
        monitor=LIKELIHOOD if by_perplexity else config.evaluation.monitor,
        log_every=config.logger.every,
    )
    optimizer = build.pretrain_optimizer(config, params, bench.model)
    surprise = partial(Surprise.at, build.surprise(config), "pretrain")
    watch = Timescales.of(optimizer, surprise(0) is not None)
    timer, peak = timer or Timer(), None if watch is None else Peak(bench.hardware.device)
    tasks, device, ties = bench.tasks(), bench.hardware.device, config.evaluation.ties
    guard = build.guard(config.guard, params, optimizer, events, lambda line: bar.note(f"pretrain: {line}"))
    at = None
    if resume_from:
        at, tensors, stored = restore(resume_from, params, optimizer)
        if guard is not None:
            guard.load(tensors, stored.get("guard"))
        if watch is not None:
            watch.load(tensors)
    if store is not None and store.lines_of is not None:
        weights = sum(value.numel() * value.element_size() for value in params.values())
        needed = disk.checkpoints_bytes(3 * weights, plan.steps, at.step if at else 0, plan.checkpoint_every)  # Adam
        disk.refuse(store.lines_of, needed, "or set output_dir to another disk")
    with progress(plan.steps, "pretrain", config.logger.console, done=at.step if at else 0) as bar:

        def on_step(step: int, shown: Any) -> None:
            if "loss" in shown:
                bar.advance(1, loss=shown["loss"])
            elif not shown:  # a step that the guard left out
                bar.advance(1)
            else:
                bar.note(f"pretrain step {step}/{plan.steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))

        at, best = fit(
            params, loss_of_step(tasks, bench.batcher, pieces, params, device, surprise), optimizer, lambda step: 1.0, plan,
            lambda: pair_metrics(tasks, bench.batcher, pairs, params, ties, device, likelihood=by_perplexity),
            at=at, store=store, history=history, on_step=on_step, stop=stop, guard=guard,
            timer=timer, watch=watch,
        )  # fmt: skip
    if told is not None and watch is not None and peak is not None:
        cost = {"seconds_per_step": timer.per_step, "seconds": timer.seconds, "steps": timer.steps}
        memory = {"peak_bytes": peak.bytes, "growth_bytes": peak.growth}
        told.update(watch.document(at.step), cost={**cost, **memory})
    return best, at


def _from_path(path: Path, bench: AnyBench) -> Params:
    """A metarec run or checkpoint (its weights without adaptation), or a legacy file."""
    shapes = bench.model.shapes()
    if path.is_file() and path.suffix in (".pth", ".pt"):
        return from_state_dict(read_legacy(path), shapes, path, bench.hardware.dtype)
    found = checkpoint.resolve(path)
    tensors, state = checkpoint.load_checkpoint(found)
    check_vocabulary(found, state, bench)
    return from_state_dict(theta(tensors, state, bench.model), shapes, found, bench.hardware.dtype)


def theta(tensors: Params, state: dict[str, Any], model: Model) -> Params:
    """The model's weights of a run's checkpoint without adaptation.

    What is no weight stays behind: step sizes, what stands beside the weights, and statistics of batch norms.
    """
    statistics = getattr(model, "statistics_shapes", {})
    base = {name.removeprefix("base/"): value for name, value in tensors.items() if name.startswith("base/")}
    phi = {}
    for name, value in tensors.items():
        name = name.removeprefix("phi/") if name.startswith("phi/") else ""
        if name and not name.startswith(RATE) and name not in statistics:
            shared = base.get(name, value)
            phi[name] = value[0] if value.dim() > shared.dim() else value  # learned for each step: as before the first
    options: dict[str, Any] = state["config"]["residual"]
    on = parts.filled("residual", options)
    if on is None:
        raise CheckpointError("residual", options["name"], "of another version of metarec", "train anew")
    composed = build.residual(on, model, base).compose(phi)
    return {name: value for name, value in composed.items() if isinstance(value, Tensor) and (name in base or not base)}


def check_vocabulary(path: Path, state: dict[str, Any], bench: AnyBench) -> None:
    """CheckpointError unless the checkpoint was trained on this very vocabulary."""
    stored = state.get("vocabulary_sha256")
    if stored != bench.prepared.vocabulary_sha256:
        raise CheckpointError(
            path, f"vocabulary {str(stored)[:12]} of {state.get('n_items')} items",
            f"the dataset has vocabulary {bench.prepared.vocabulary_sha256[:12]} of {bench.prepared.n_items} items",
            "use the dataset, split and seed that it was trained with, or train anew",
        )  # fmt: skip


def _to(params: Params, bench: AnyBench) -> Params:
    """On the device, in the model's own order: a file has another one, and sums and draws over all weights follow it."""
    return {name: params[name].to(bench.hardware.device, bench.hardware.dtype) for name in bench.model.shapes()}
