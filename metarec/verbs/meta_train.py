"""The outer loop of a run: warm start, control, residual, algorithm and batches put together, and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarec import build
from metarec.algorithms import Algorithm, inner
from metarec.benches import AnyBench, SequenceBench
from metarec.config.schema import MetaConfig, TrainConfig
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.errors import DivergedError
from metarec.evaluate import Control, monitored, ranks, scored
from metarec.objectives.surprise import Surprise
from metarec.report.progress import progress
from metarec.residual import Residual
from metarec.runs import checkpoint
from metarec.runs.guard import FILE
from metarec.runs.guarded import FIX
from metarec.runs.history import History, Listener
from metarec.runs.memory import Peak
from metarec.runs.memory_need import compared
from metarec.runs.signals import Stop
from metarec.runs.timescales import Timescales
from metarec.train import Plan, Progress, Store, Timer, fit, restore
from metarec.verbs import adapter, memory
from metarec.verbs import measure as m
from metarec.verbs.amortised import coverage
from metarec.verbs.anchoring import Anchoring
from metarec.verbs.naming import named
from metarec.verbs.showing import Showing, Teachers
from metarec.verbs.teachers import teachers_for
from metarec.verbs.user_cost import user_cost
from metarec.verbs.warm_start import tuned_control, warm_start
from metarec.verbs.weighting import Weighting, weighting_of

# of batch norm: updated in each of the first outer steps, then in every second, by batch norm's own momentum; kept more
# rarely they lag behind the weights (every fourth step, on Omniglot: accuracy fell to .30 and rose again)
STATISTICS_FIRST, STATISTICS_EVERY, STATISTICS_MOMENTUM = 200, 2, 0.1
UNTUNED_STEPS = 1  # inner steps in a forecast made before the control is tuned
PROBES = (0.0, 0.25, 0.5, 0.75, 1.0)  # places of a run whose steps are timed: annealed algorithms get slower


@dataclass
class Cost:
    """What meta-training took in this process: of a resumed run, its last part."""

    seconds_per_step: float | None = None
    seconds: float = 0.0
    steps: int = 0
    peak_bytes: int | None = None
    growth_bytes: int | None = None
    estimated_bytes: dict[str, int] | None = None  # before it, by what takes them: `runs.memory_need.Need`
    loss: float | None = None  # mean meta-loss of the last ten steps
    adapted_numbers: int | None = None  # of a user, as `verbs.user_cost` counts them
    adapted_bytes: int | None = None
    pretraining: dict[str, Any] | None = None  # of its steps, where it tells of timescales

    def document(self) -> dict[str, Any]:
        """As ``cost`` of metrics.json; seconds and bytes, null where not measured."""
        return {key: value for key, value in asdict(self).items() if key != "pretraining" or value is not None}


def fixed_state(
    config: TrainConfig, bench: AnyBench, control: Control | None, source: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint keeps beside weights and progress: what a resume or an evaluation must find unchanged."""
    return {
        "config": asdict(config),
        "vocabulary_sha256": bench.prepared.vocabulary_sha256,
        "n_items": bench.prepared.n_items,
        "data_fingerprint": bench.prepared.fingerprint,
        "episodes_sha256": {split: bench.prepared.episodes(split).sha256 for split in ("train", "val", "test")},
        "control": asdict(control) if control else None,
        "warm_start": source,
    }


def meta_train(
    config: TrainConfig,
    options: MetaConfig,
    bench: AnyBench,
    run_dir: Path,
    found: Path | None,
    stop: Stop,
    say: Callable[[str], None],
    cost: Cost,
    tracker: Listener,
    told: dict[str, Any],
) -> Progress:
    """Meta-train in `run_dir`, from the checkpoint `found` on where there is one; `cost` is filled in, and `told`
    with what there is to tell of timescales."""
    # what the model cannot have is refused before anything is pretrained; its step size comes from the control later
    nominal = m.algorithm_of(bench, config, options, Control(1.0, UNTUNED_STEPS, 0.0, []))
    statistics = build.statistics(nominal, bench.model)
    if getattr(config.optimizer, "asks_names", False):
        _ask_optimizer(config, options, bench, nominal)
    first = memory.expected(config, bench, nominal, say, weights_are_there=False)
    stored: dict[str, Any] = {}
    if found:
        tensors, stored = checkpoint.load_checkpoint(found)
    memory.room_on_disk(
        config, run_dir, first, config.train.steps, stored["progress"]["step"] if found else 0, pretrains=not found
    )
    if found:
        on = bench.hardware
        # in the model's own order, as at the first start: sums and draws over all weights follow it
        base = {name: tensors[f"base/{name}"].to(on.device, on.dtype) for name in bench.model.shapes()}
        control, source = Control(**stored["control"]), stored["warm_start"]
    else:
        warm = warm_start(config, bench, run_dir, stop)
        base, source = warm.params, warm.source
        control = tuned_control(config, bench, base, source)
        if control.tried:
            say(f"fine-tune control: step size {control.lr:g}, {control.steps} steps "
                f"(validation {config.evaluation.monitor} {control.value:.4f})")  # fmt: skip
    peak = Peak(bench.hardware.device)
    tuned = m.algorithm_of(bench, config, options, control)
    need = memory.expected(config, bench, tuned, say, weights_are_there=True)
    say(f"{need.line()} (peak so far {peak.bytes / 2**20:,.0f})")
    over = build.residual(config.residual, bench.model, base)
    tasks, section = bench.tasks(over), config.train
    teachers, taught = taught_by(config, bench, base, over, say)
    weighting = weighting_of(options)

    def start(steps: int) -> tuple[Algorithm, Params]:
        algorithm = m.algorithm_of(bench, config, options, control, steps)
        like = next(iter(base.values()))
        moments = {name: like.new_full(shape, float(name.endswith("var"))) for name, shape in statistics.items()}
        begun = adapter.start(
            config.residual, over, bench.model, generator(config.seed, "residual"), anew=found is None
        )
        phi = build.trainable(algorithm.learned(begun | moments))
        for name in (*statistics, *getattr(over, "fixed", ())):
            phi[name].requires_grad_(False)
        return algorithm, phi

    def losses_at(algorithm: Algorithm, phi: Params, step: int) -> Iterator[Tensor]:
        if statistics and (step < STATISTICS_FIRST or step % STATISTICS_EVERY == 0):
            _keep_statistics(config, bench, over, algorithm, phi, weighting, set(statistics), step)
        yield from _losses(config, taught, over, algorithm, phi, weighting, teachers, step)

    steps = int(stored.get("outer_steps", section.steps))
    if section.minutes is not None and not found:
        algorithm, phi = start(section.steps)
        steps = _steps_in(section.minutes * 60, lambda step: losses_at(algorithm, phi, step), section.steps)
        say(f"{steps:,} outer steps in {section.minutes:g} minutes, by the speed of the first ones")
    algorithm, phi = start(steps)

    def trained() -> m.Trained:
        now = {name: value.detach() for name, value in phi.items()}
        return m.Trained(base, now, over, algorithm, weighting, build.anchor(config))

    user = user_cost(bench, trained(), config.evaluation.test_steps)
    cost.adapted_numbers, cost.adapted_bytes = user.numbers, user.bytes
    if user.numbers:
        say(user.line)
    if line := coverage(algorithm, phi):
        say(line)
    if line := remembered(config, bench):
        say(line)
    optimizer = _optimizer(config, options, bench, phi)
    watch = Timescales.of(optimizer, Surprise.at(build.surprise(config), "outer", 0) is not None)
    guard = build.guard(config.guard, phi, optimizer, run_dir / FILE, lambda line: bar.note(f"meta-train: {line}"))
    at = None
    if found:
        at, tensors, stored = restore(found, phi, optimizer)
        if guard is not None:
            guard.load(tensors, stored.get("guard"))
        if watch is not None:
            watch.load(tensors)
    validation = bench.episodes("val")

    def validate() -> dict[str, float]:
        method = m.adapted(bench, trained(), steps=config.evaluation.test_steps)
        with named(bench, validation.user):
            found, _ = ranks(validation, scored(tasks, method), config.evaluation.ties, bench.seen())
            return monitored(found, bench.prepared.n_items)

    plan = Plan(
        steps, min(section.eval_every, steps), section.patience, section.checkpoint_every,
        config.optimizer.clip_norm, config.evaluation.monitor, config.logger.every, "fewshot", section.min_gain,
    )  # fmt: skip
    # a frozen base stands in every checkpoint: it is what the control and the residual start from
    fixed = {f"base/{name}": value for name, value in base.items()}
    state = fixed_state(config, bench, control, source) | {"outer_steps": steps}
    store, timer, recent = Store(run_dir / "checkpoints", fixed, state, run_dir), Timer(), list[float]()
    with (
        History(run_dir / "history.jsonl", tracker) as history,
        progress(plan.steps, "meta-train", config.logger.console, done=at.step if at else 0) as bar,
    ):

        def on_step(step: int, shown: Any) -> None:
            if "loss" in shown:
                recent.append(shown["loss"])
                bar.advance(1, loss=shown["loss"])
            elif not shown:  # a step that the guard left out
                bar.advance(1)
            else:
                bar.note(f"meta-train step {step}/{plan.steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))

        at, _ = fit(
            phi, lambda step: losses_at(algorithm, phi, step), optimizer,
            build.schedule(config.schedule, steps, options), plan, validate,
            at=at, store=store, history=history, on_step=on_step, stop=stop, timer=timer, guard=guard, watch=watch,
        )  # fmt: skip
    if watch is not None:
        told.update(watch.document(at.step))
    cost.seconds_per_step, cost.seconds, cost.steps = timer.per_step, timer.seconds, timer.steps
    cost.peak_bytes, cost.growth_bytes, cost.estimated_bytes = peak.bytes, peak.growth, need.document()
    say(compared(need, peak.growth, peak.bytes))
    cost.loss = sum(recent[-10:]) / len(recent[-10:]) if recent else None
    return at


def taught_by(
    config: TrainConfig, bench: AnyBench, base: Params, over: Residual, say: Callable[[str], None]
) -> tuple[Teachers | None, AnyBench]:
    """The teachers that the algorithm's losses ask for, and the bench that draws from their users alone; mostly none.

    Raises CheckpointError for teachers that do not fit, ConfigError for data without users.
    """
    loss = getattr(config.algorithm, "loss", None)
    if not getattr(loss, "taught", False):
        return None, bench
    found = teachers_for(config, bench, base, over, say)
    assert isinstance(bench, SequenceBench)  # others have no teachers
    return found, replace(bench, taught=found.users.numpy())


def _ask_optimizer(config: TrainConfig, options: MetaConfig, bench: AnyBench, algorithm: Algorithm) -> None:
    """ConfigError for what the outer optimizer cannot make of what will be trained, of which names and shapes are known."""
    base = {name: torch.empty(shape, device="meta") for name, shape in bench.model.shapes().items()}  # no numbers
    over = build.residual(config.residual, bench.model, base)
    phi = build.trainable(algorithm.learned(over.init(generator(config.seed, "residual"))))
    for name in getattr(over, "fixed", ()):
        phi[name].requires_grad_(False)
    _optimizer(config, options, bench, phi)


def _optimizer(config: TrainConfig, options: MetaConfig, bench: AnyBench, phi: Params) -> torch.optim.Optimizer:
    """The outer one, over what of phi [*S each] is trained."""
    return build.optimizer(
        config.optimizer, phi, build.outer_lr(config), getattr(options.inner, "rates_lr", None),
        build.outer_lrs(config.residual), bench.model,
    )  # fmt: skip


def remembered(config: TrainConfig, bench: AnyBench) -> str | None:
    """What a memory keeps of a user, for the reader; None where there is none."""
    if not getattr(config.residual, "reads_memory", False) or not isinstance(bench, SequenceBench):
        return None
    most = max(bench.most_remembered(split) for split in ("val", "test"))
    keys = any(getattr(part, "keys", False) for part in getattr(config.residual, "parts", [config.residual]))
    width = bench.model.context_shapes().get("context.shift") if keys else None
    of_keys = f"; keys of {width[0]} numbers each" if width else ""
    return f"memory: up to {most:,} events a user ({8 * most:,} bytes of items{of_keys})"


def _losses(
    config: TrainConfig,
    bench: AnyBench,
    over: Residual,
    algorithm: Algorithm,
    phi: Params,
    weighting: Weighting,
    teachers: Teachers | None,
    step: int,
) -> Iterator[Tensor]:
    """The meta-loss of an outer step in chunks of tasks: each is differentiated before the next is made.

    An objective that draws items draws new ones in every outer step, others for support and query (a query judged against
    the support's negatives would reward having learned these), and the same for all chunks: the size of a chunk changes
    nothing but which units are dropped.
    """
    rate, device, tasks = build.dropout(config), bench.hardware.device, bench.tasks(over)
    anchoring = Anchoring.of(build.anchor(config), bench, over, algorithm.inner)
    showing = Showing.of(bench, over, algorithm, teachers)
    query_tasks = replace(tasks, model=build.with_dropout(bench.model, rate)) if rate else tasks
    for number, batch in enumerate(bench.training_batches(config.train, config.seed, step)):
        items = generator(config.seed, "support items", step, device)
        inside, outside = anchoring.support(phi, batch.support), anchoring.query(phi, batch.query)
        surprise = Surprise.at(build.surprise(config), "outer", step)
        in_loop = surprise if getattr(config.algorithm, "joint", False) else None
        support = tasks.loss(batch.support, None, weighting.weights(batch), items, inside, surprise=in_loop)
        dropped = generator(config.seed, f"query {number}", step, device) if rate else None
        if getattr(over, "dropout", 0.0):  # of what a residual's own factors read
            of_factors = generator(config.seed, f"factors {number}", step, device)
            dropping = over.dropping(of_factors)  # type: ignore[attr-defined]
            query_tasks = replace(query_tasks, compose=dropping, compose_on=None)  # which a query has no use for
        drawn = generator(config.seed, "query items", step, device)
        query = query_tasks.loss(batch.query, dropped, None, drawn, outside, recorded=True, surprise=surprise)
        support, query = showing.support(batch, support), showing.query(batch, query)
        with named(bench, batch.user):
            losses = algorithm.meta_losses(phi, support, query, batch.n_tasks, step)
            loss = losses.sum() / config.train.meta_batch_size
            if not math.isfinite(float(loss.detach())):  # which is read next in any case
                _refuse(losses.detach())
        yield loss


def _refuse(losses: Tensor) -> None:
    """DivergedError, of a task, for meta-losses [T] that are not finite; one by one they may be."""
    for task in (~torch.isfinite(losses)).nonzero().flatten().tolist():
        what, fix = "the loss is not finite; the weights are as before this step", FIX
        raise DivergedError(f"task {task} of the batch", float(losses[task]), what, fix, task=task)


def _keep_statistics(
    config: TrainConfig,
    bench: AnyBench,
    over: Residual,
    algorithm: Algorithm,
    phi: Params,
    weighting: Weighting,
    statistics: set[str],
    step: int,
) -> None:
    """Move the running statistics of every inner step towards those of this step's tasks (MAML++'s BNRS), in place.

    Each step's images are taken under the weights that the inner loop has then, and each norm by its own batch.
    """
    model: Any = bench.model
    tasks, share = bench.tasks(over), max(STATISTICS_MOMENTUM, 1 / (step + 1))
    learned = {name: value for name, value in phi.items() if name not in statistics}
    anchoring = Anchoring.of(build.anchor(config), bench, over, algorithm.inner)
    with torch.no_grad():
        for name in statistics:
            phi[name].mul_(1 - share)
        for batch in bench.training_batches(config.train, config.seed, step):
            of_chunk = share * batch.n_tasks / config.train.meta_batch_size
            anchor = anchoring.support(learned, batch.support)
            support = tasks.loss(batch.support, None, weighting.weights(batch), anchor=anchor)
            found = inner.path(support, learned, batch.n_tasks, algorithm.inner)
            for number, weights in enumerate(found):
                part = batch.support if number < algorithm.inner.steps else batch.query
                for name, value in model.statistics(tasks.compose(weights), part.inputs).items():
                    phi[name][number].add_(value, alpha=of_chunk)


def _steps_in(seconds: float, losses: Callable[[int], Iterator[Tensor]], nominal: int) -> int:
    """How many outer steps fit, from the time of steps along a run of `nominal` ones."""
    times = []
    for place in (0.0, *PROBES):
        began = time.perf_counter()
        for loss in losses(round(place * max(nominal - 1, 0))):
            torch.autograd.backward(loss)
        times.append(time.perf_counter() - began)
    return max(1, int(seconds / (sum(times[1:]) / len(PROBES))))  # the first one warmed up
