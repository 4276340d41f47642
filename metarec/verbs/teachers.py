"""`metarec teachers`: adapters that the inner loop finds for training users given more of their history, in a directory.

    DIR/manifest.json, start.safetensors, shard-*.safetensors      the teachers themselves (`runs.teachers`)
    DIR/teachers.json                                              what they gain, and what making them took
    DIR/config.yaml, overrides.json, environment.json              as of every command

A training run asks `teachers_for`: a directory that is named is opened and checked, otherwise they are made once for all
runs that want the same ones, and kept in the cache. Shapes: R users, a number that adapts is [*S].
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from metarec import build, teach
from metarec.algorithms.inner import InnerLoop
from metarec.benches import AnyBench, SequenceBench
from metarec.config.compose import config_to_yaml
from metarec.config.schema import TeachersConfig, TrainConfig
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.data.past import Past
from metarec.errors import ConfigError
from metarec.evaluate import Control, tune_control
from metarec.report.progress import progress
from metarec.report.sheet import Sheet, rich_table
from metarec.report.tables import funnel_table, show
from metarec.residual import Residual
from metarec.runs import atomic, rundir
from metarec.runs.environment import metarec_version
from metarec.runs.lock import hold
from metarec.runs.signals import stop_on_signals
from metarec.runs.teachers import MANIFEST, Teachers, Writer, refuse_filled
from metarec.runs.teachers_terms import Terms, weights_sha256
from metarec.tasks import Tasks
from metarec.verbs.tuned import tuned
from metarec.verbs.warm_start import warm_start
from metarec.workbench import spread

SHARD_USERS, SHARD_BYTES = 512, 2**26  # at most so many of either in a shard, but one batch at least
AGAIN = "go on by `metarec teachers` with the same words and to={}"
RECORD = "teachers.json"
Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Plan:
    """How teachers are made, and of whom."""

    terms: Terms
    loop: InnerLoop
    phi: Params  # what users start from, with what does not adapt
    past: Past  # the training users, those with few pairs first
    tasks: Tasks
    tuning: dict[str, Any] | None  # how step size and steps were chosen, where they were

    @property
    def start(self) -> Params:
        """What adapts, name -> [*S], as all users start."""
        return {name: self.phi[name] for name in self.terms.names}


def run_teachers(config: TeachersConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Make teachers in `config.to`, or in `run_dir`, or go on with those that are there. Raises MetarecError."""
    target = run_dir if config.to is None else Path(config.to).expanduser()
    refuse_filled(target)
    mode = config.logger.console
    say: Say = _silent if mode == "quiet" else _say
    on = build.hardware(config.hardware)
    prepared = build.data(config, config.dataset, say)
    if mode != "quiet":
        show(funnel_table(prepared.funnel, prepared.counts, title=f"{prepared.name}: {prepared.split_note}"))
    bench = build.bench(config, config.evaluation, prepared, on)
    say(f"teachers in {target}; {on.line}")
    _directory(target)
    with hold(target), stop_on_signals(AGAIN.format(target)) as stop:
        atomic.clean_leftovers(target)
        try:
            with tempfile.TemporaryDirectory() as aside:  # for pretraining's history, which belongs to a run
                base = warm_start(config, bench, Path(aside), stop).params
            plan = plan_of(config, bench, base, build.residual(config.residual, bench.model, base))
            made, seconds = make(target, plan, mode)
        except BaseException:
            if target == run_dir and not (target / MANIFEST).exists():
                rundir.empty(target)  # nothing was made: leave nothing behind
            raise
        line, document = made.check(plan.terms), figures(made, plan.tuning)
        if seconds is None:
            print(f"finished before, nothing to do: {line}", flush=True)
            return {"run_dir": str(target), "headline": _headline(document)}
        document |= {"seconds": seconds["making"], "users_made": seconds["users"]}
        rundir.write_run_card(target, config_yaml=config_to_yaml(config), overrides=overrides)
        atomic.write_json(target / RECORD, document)
    if mode != "quiet":
        show(rich_table(_sheet(document, f"{prepared.name}: {config.model.name}, residual={config.residual.name}")))
    print(line, flush=True)
    return {"run_dir": str(target), "headline": _headline(document)}


def check_path(config: TrainConfig) -> None:
    """CheckpointError for an `algorithm.teacher.path` that is no finished directory of teachers, before anything is trained.

    Whether they fit can be told once the frozen weights are there, by `teachers_for`.
    """
    path = getattr(getattr(config.algorithm, "teacher", None), "path", None)
    if path is not None:
        Teachers.open(Path(path).expanduser())


def teachers_for(config: TrainConfig, bench: AnyBench, base: Params, over: Residual, say: Say = _say) -> Teachers:
    """The teachers that `algorithm.teacher` asks for, of any shape: those in its `path`, else from the cache.

    In the cache they are made once, and runs of a sweep wait for the one that is making them; what a kill left is gone on
    with. Raises CheckpointError for a directory that does not fit the run, ConfigError for data without users.
    """
    path = config.algorithm.teacher.path  # type: ignore[union-attr]  # the rules ask for it
    if path is not None:
        found = Teachers.open(Path(path).expanduser())
        say(found.check(_terms(config, bench, base, over, Control(found.terms.lr, found.terms.steps, 0.0, []))[0]))
        return found
    plan = plan_of(config, bench, base, over)
    directory = build.cache_dir(config) / "teachers" / plan.terms.key()
    _directory(directory)
    with filelock.FileLock(directory.with_suffix(".lock")), hold(directory):
        atomic.clean_leftovers(directory)
        found, _ = make(directory, plan, config.logger.console)
    say(found.check(plan.terms))
    return found


def plan_of(config: TrainConfig, bench: AnyBench, base: Params, over: Residual) -> Plan:
    """What to make: step size and steps are tuned on validation users where they are not given.

    Raises ConfigError for images and text, which have no history.
    """
    chosen = tune_teacher(config, bench, base, over)
    terms, phi, past = _terms(config, bench, base, over, chosen)
    loop = InnerLoop(terms.lr, terms.steps, adapted=frozenset(terms.names))
    tuning = asdict(chosen) if chosen.tried else None
    return Plan(terms, loop, phi, past, bench.tasks(over), tuning)


def make(path: Path, plan: Plan, mode: str) -> tuple[Teachers, dict[str, Any] | None]:
    """The teachers of `plan` in the directory `path`, which is held: what is whole there is kept, the rest is made.

    With them seconds of making and how many users were made; None where all were there.
    """
    writer, began, count = Writer(path, plan.terms, plan.start), time.perf_counter(), 0
    if writer.was_finished:
        return writer.finish(), None
    n, size = plan.terms.n_users, plan.terms.shard_users
    own = {number: np.arange(number * size, min((number + 1) * size, n)) for number in writer.missing}
    with progress(n, "teachers", mode, done=n - sum(map(len, own.values()))) as bar:
        for number, rows in own.items():
            parts = []
            for part in teach.found(plan.tasks, plan.phi, plan.past.of(rows), plan.loop):
                parts.append({name: value.cpu() for name, value in part.items()})
                count += len(part["user"])
                before, after = (float(part[f"loss_{when}"].mean()) for when in ("before", "after"))
                bar.advance(len(part["user"]), before=before, after=after)
            writer.add(number, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return writer.finish(), {"making": time.perf_counter() - began, "users": count}


def _terms(
    config: TrainConfig, bench: AnyBench, base: Params, over: Residual, chosen: Control
) -> tuple[Terms, Params, Past]:
    """What teachers of this run follow from, what their users start from, and the users."""
    asked = _asked(config)
    bench = _of_users(bench)
    moving, phi = _start(config, bench, over)
    users = bench.past("train", most=asked.pairs)
    if asked.users is not None:
        users = users.of(spread(len(users), asked.users))
    most = teach.most_pairs(bench.n_items, bench.hardware.device)
    past = replace(users.by_length(), chunk=asked.chunk, most=most)
    names = {name: list(phi[name].shape) for name in phi if name in moving}
    number = sum(phi[name].numel() * phi[name].element_size() for name in names)
    products = build.products(config.residual, bench.model).items()
    batches = max(min(SHARD_USERS, SHARD_BYTES // max(number, 1)) // asked.chunk, 1)
    on, prepared = bench.hardware, bench.prepared
    terms = Terms(
        vocabulary_sha256=prepared.vocabulary_sha256, data_fingerprint=prepared.fingerprint,
        base_sha256=weights_sha256(base), start_sha256=weights_sha256({name: phi[name] for name in names}),
        residual={key: value for key, value in asdict(config.residual).items() if key != "dropout"}, names=names,
        products={weight: list(found) for weight, found in products if {*found[:2]} <= names.keys()},
        steps=chosen.steps, lr=chosen.lr, pairs=asked.pairs, n_query=past.n_query, n_users=len(past),
        shard_users=batches * asked.chunk,
        others={
            "seed": config.seed, "chunk": asked.chunk, "most_pairs": most, "users_sha256": _digest(past),
            "model": asdict(config.model),
            "objective": build.unanchored(config), "precision": [str(on.dtype), *on.changes],
            "hardware": [on.device.type, torch.get_num_threads()], "versions": [metarec_version(), torch.__version__],
        },
    )  # fmt: skip
    return terms.tidy(), phi, past


def tune_teacher(config: TrainConfig, bench: AnyBench, base: Params, over: Residual) -> Control:
    """Step size and steps, as given or by `evaluation.monitor` over validation users with all their earlier pairs."""
    asked, bench = _asked(config), _of_users(bench)
    if asked.lr is not None and asked.steps is not None:
        return Control(asked.lr, asked.steps, 0.0, [])
    moving, phi = _start(config, bench, over)
    grid, judge = bench.evaluation.control, bench.evaluation
    lrs = sorted({*grid.lrs, *teach.MORE_LRS}) if asked.lr is None else [asked.lr]
    steps = list(teach.STEPS) if asked.steps is None else [asked.steps]
    past = bench.past("val", bench.tuning_rows(), asked.pairs)

    def choose() -> dict[str, Any]:
        with progress(len(lrs), "tune teachers", config.logger.console) as bar:
            return asdict(tune_control(
                bench.tasks(over), phi, past, lrs, steps, judge.monitor, judge.ties, lambda lr: bar.advance(1, lr=lr),
                adapted=moving, seen=bench.seen(),
            ))  # fmt: skip

    nominal, _, _ = _terms(config, bench, base, over, Control(1.0, 1, 0.0, []))
    rest = {name: value for name, value in asdict(nominal).items() if name not in ("n_users", "shard_users", "others")}
    others = {
        name: value for name, value in nominal.others.items() if name not in ("chunk", "most_pairs", "users_sha256")
    }
    by = [judge.monitor, judge.ties, judge.candidates, judge.task_chunk, lrs, steps, grid.users, _digest(past)]
    return Control(**tuned(config, "teacher", [rest, others, by], choose))


def _start(config: TrainConfig, bench: SequenceBench, over: Residual) -> tuple[frozenset[str], Params]:
    """The names of what adapts, and what every user starts from, [*S] each, what does not adapt among it."""
    moving = build.adapted(config.algorithm, config.residual, bench.model)  # type: ignore[arg-type]
    return moving, over.init(generator(config.seed, "residual"))


def _asked(config: TrainConfig) -> Any:
    return config.algorithm.teacher  # type: ignore[union-attr]  # the rules ask for it


def _of_users(bench: AnyBench) -> SequenceBench:
    if not isinstance(bench, SequenceBench):
        fix = "use a data set of users and items"
        raise ConfigError("dataset.source", "images or text", "a task has no history beyond its support", fix)
    return bench


def _digest(past: Past) -> str:
    """Of whose pairs, and which."""
    found = hashlib.sha256()
    for part in (past.user, past.first, past.middle):
        found.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return found.hexdigest()


def figures(made: Teachers, tuning: dict[str, Any] | None) -> dict[str, Any]:
    """What teachers.json says of them, but for the time."""
    shards, users = made.shards, len(made)
    total = {key: sum(shard[key] for shard in shards) for key in ("sum_before", "sum_after", "fell", "pairs", "size")}
    return {
        "users": users,
        "pairs_mean": total["pairs"] / users,
        "lr": made.terms.lr,
        "steps": made.terms.steps,
        "loss_before": total["sum_before"] / users,
        "loss_after": total["sum_after"] / users,
        "fell": total["fell"] / users,
        "bytes": total["size"],
        "modules": {name: made.sizes[name] for name in made.modules},
        "tuning": tuning,
    }


def _headline(document: dict[str, Any]) -> dict[str, float]:
    return {"loss_before": document["loss_before"], "loss_after": document["loss_after"]}


def _sheet(document: dict[str, Any], caption: str) -> Sheet:
    seconds, users = document["seconds"], document["users_made"]
    row = (
        f"{document['users']:,}", f"{document['pairs_mean']:.1f}", f"{document['steps']} x {document['lr']:g}",
        f"{document['loss_before']:.4f} -> {document['loss_after']:.4f}", f"{document['fell']:.1%}",
        f"{seconds:.1f}", f"{users / seconds:,.0f}", f"{document['bytes'] / 2**20:,.1f}",
    )  # fmt: skip
    columns = ("users", "pairs", "steps x size", "query loss", "fell", "seconds", "users/s", "MiB")
    notes = () if users == document["users"] else (f"{users:,} of them made now, the others before",)
    return Sheet(caption, columns, [row], notes=notes)


def _directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.fault(path, error) from error


def _silent(line: str) -> None:
    """logger.console=quiet."""
