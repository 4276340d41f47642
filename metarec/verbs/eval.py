"""`metarec eval`: the figures of a checkpoint again, exactly, or with other support sizes, steps and users."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from metarec import build, plain_files
from metarec.benches import AnyBench, AnyEpisodes, ImageBench
from metarec.config.compose import config_from_dict, config_to_yaml
from metarec.config.overrides import given_keys
from metarec.config.schema import EvalConfig, ExportConfig, FilesConfig, SupervisedConfig, TrainConfig
from metarec.core.weights import Params
from metarec.errors import ConfigError, DataError, nearest
from metarec.evaluate import Control
from metarec.report.tables import show
from metarec.runs import atomic, checkpoint, rundir
from metarec.runs.lock import hold
from metarec.runs.signals import stop_on_signals
from metarec.runs.stored import check_state
from metarec.verbs import measure as m
from metarec.verbs import perplexity
from metarec.verbs.curves import check_curves, extras
from metarec.verbs.fits import check_learned, check_start
from metarec.verbs.panel import check_panel, panel
from metarec.verbs.references import reference_of
from metarec.verbs.row_steps import with_row_steps
from metarec.verbs.warm_start import check_vocabulary


def run_eval(config: EvalConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure a checkpoint in a run directory of its own; what `overrides` do not set is as the run was trained."""
    run = opened(config, given_keys(overrides))
    found, trained_as, bench = run.found, run.trained_as, run.bench
    state, prepared = run.state, run.bench.prepared
    as_asked = replace(trained_as, evaluation=config.evaluation, cache_dir=config.cache_dir, logger=FilesConfig())
    check_panel(as_asked, bench)
    check_curves(config.evaluation, bench, config.split)
    episodes = episodes_of(config, run)
    trained = trained_of(config, run)
    run_dir.mkdir(parents=True, exist_ok=True)
    with hold(run_dir), rundir.whole_or_nothing(run_dir), stop_on_signals("evaluate again") as stop:
        rundir.write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=overrides)
        control = Control(**state["control"]) if state["control"] else m.control_of(bench, trained.base, "auto")
        steps = trained_as.evaluation.test_steps if config.steps is None else config.steps
        source = {} if trained.phi is None else state["warm_start"]
        rows = panel(as_asked, bench, trained.base, source, run_dir, stop)
        trained = with_row_steps(as_asked.algorithm, bench, trained, as_asked.logger.console)
        document, columns = m.measure(
            bench, trained, control, rows, episodes, config.split, seed=trained_as.seed, lr=config.lr, steps=steps,
            reference=reference_of(as_asked, bench, trained, episodes, config.split),
        )  # fmt: skip
        more = extras(
            bench, trained, control, rows, config.split, seed=trained_as.seed, steps=steps, mode=as_asked.logger.console
        )
        document = {
            "model": trained_as.model.name,
            "dataset": prepared.name,
            "algorithm": trained_as.algorithm.name,
            "residual": trained_as.residual.name,
            "config": asdict(trained_as),
            **document,
            **more,
            "evaluated": {"checkpoint": str(found), **asdict(config)},
            "seeds": {"run": trained_as.seed, "split": trained_as.dataset.split.seed},
        }
        atomic.write_json(run_dir / "metrics.json", document)
        m.write_per_user(run_dir / "per_user.parquet", columns)
        rundir.seal(run_dir)
    show(m.table(document, f"{prepared.name}: {found.name} of {found.parent.parent}"))
    for line in perplexity.lines(document):
        print(line, flush=True)
    print(f"results in {run_dir}", flush=True)
    return {"run_dir": str(run_dir), "headline": m.headline(document, config.evaluation.monitor)}


@dataclass(frozen=True)
class Opened:
    """A checkpoint with the data it was trained on."""

    found: Path
    tensors: Params
    state: dict[str, Any]
    trained_as: TrainConfig
    bench: AnyBench


def opened(config: EvalConfig | ExportConfig, given: Collection[str]) -> Opened:
    """What `config.ckpt` names; hardware and evaluation of `config` become those of the run where not `given`."""
    assert config.ckpt is not None  # the configuration check asks for it
    found = checkpoint.resolve(Path(config.ckpt).expanduser())
    tensors, state = checkpoint.load_checkpoint(found)
    check_state(found, state)
    trained_as = config_from_dict(state["config"], "train")
    assert isinstance(trained_as, TrainConfig)
    config.hardware = _as_trained("hardware", config.hardware, trained_as.hardware, given)
    config.evaluation = _as_trained("evaluation", config.evaluation, trained_as.evaluation, given)
    on = build.hardware(config.hardware)
    spec = trained_as.dataset
    if config.dataset_path is not None:
        if spec.source == "synthetic":
            what = f"does nothing: the run was trained on dataset={spec.name}, which is generated"
            raise ConfigError("dataset_path", config.dataset_path, what, "drop it")
        spec = replace(spec, path=config.dataset_path, in_data_dir=False)
    if config.data_dir is None:
        config.data_dir = trained_as.data_dir
    prepared = build.data(config, spec, lambda line: print(line, flush=True))
    bench = build.bench(trained_as, config.evaluation, prepared, on)
    check_vocabulary(found, state, bench)
    return Opened(found, tensors, state, trained_as, bench)


def episodes_of(config: EvalConfig | ExportConfig, run: Opened) -> AnyEpisodes:
    """The episodes of the chosen users of the split, with the chosen support. Raises ConfigError and DataError."""
    bench, prepared = run.bench, run.bench.prepared
    if config.n_support is not None and config.n_support > prepared.n_support:
        raise ConfigError(
            "n_support", config.n_support, f"the stored episodes have {prepared.n_support} support pairs",
            f"give 0 to {prepared.n_support}, or train with dataset.episodes.n_support={config.n_support}",
        )  # fmt: skip
    if config.n_support is not None and isinstance(bench, ImageBench):
        what = "an episode of images has its shots fixed"
        raise ConfigError("n_support", config.n_support, what, "train with another dataset.images.n_shot")
    return bench.episodes(config.split, n_support=config.n_support, rows=_rows(config, bench))


def trained_of(config: EvalConfig | ExportConfig, run: Opened) -> m.Trained:
    """What the checkpoint holds, on the device. Raises ConfigError for steps or a step size that it cannot take."""
    trained_as = run.trained_as
    if isinstance(trained_as.algorithm, SupervisedConfig) and (config.steps is not None or config.lr is not None):
        raise ConfigError(
            "steps" if config.steps is not None else "lr", config.steps if config.steps is not None else config.lr,
            "the checkpoint was trained with algorithm=supervised and has no inner loop", "leave it out",
        )  # fmt: skip
    if not getattr(trained_as.residual, "adapts", True) and (config.steps or config.lr is not None):
        raise ConfigError(
            "steps" if config.steps else "lr", config.steps or config.lr,
            f"the checkpoint was trained with residual={trained_as.residual.name}, where nothing adapts", "leave it out",
        )  # fmt: skip
    control = run.state["control"]
    check_start(run.found, run.tensors, run.bench, trained_as)
    trained = m.trained_from(run.bench, trained_as, run.tensors, Control(**control) if control else None)
    check_learned(run.found, trained, run.bench, trained_as)
    if config.lr is not None and trained.algorithm is not None and trained.algorithm.inner.rates != "fixed":
        raise ConfigError(
            "lr", config.lr, "the run learned a step size for every weight", "leave it out, or evaluate other steps"
        )
    return trained


def _as_trained(group: str, now: Any, then: Any, given: Collection[str]) -> Any:
    """`then` with the keys that were given now; the whole of `now` where another choice of the group was."""
    if group in given:
        return now
    changed = {f.name: getattr(now, f.name) for f in fields(now) if _is_given(f"{group}.{f.name}", given)}
    return replace(then, **changed)


def _is_given(key: str, given: Collection[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in given)


def _listed(path: Path) -> list[str]:
    """The ids of a text file, one a line; DataError where it is none or lists nobody."""
    fix = "give a text file with one id a line"
    try:
        found = [line.strip() for line in plain_files.read_text(path, "utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as reason:
        why = reason.strerror if isinstance(reason, OSError) else f"byte {reason.start}: {reason.reason}"
        raise DataError(path, why, "not a readable list of users", fix) from reason
    if not any(found):
        raise DataError(path, "empty", "it lists no user", fix)
    return [user for user in found if user]


def _rows(config: EvalConfig | ExportConfig, bench: AnyBench) -> np.ndarray | None:
    """The rows of the wanted users; None = all. DataError names the first user that has no episode in the split."""
    if config.users is None:
        return None
    wanted = _listed(Path(config.users).expanduser()) if isinstance(config.users, str) else list(config.users)
    ids = bench.user_ids(bench.episodes(config.split).user).tolist()
    of: dict[str, list[int]] = {}  # a domain has several episodes
    for number, user in enumerate(ids):
        of.setdefault(user, []).append(number)
    missing = [user for user in wanted if user not in of]
    if missing:
        name = missing[0]
        near = nearest(name, list(of)[:10_000])
        raise DataError(
            "users", name, f"no episode of this user in the {config.split} split ({len(of)} users have one)",
            f"did you mean {near}?" if near else "give ids of that split",
        )  # fmt: skip
    return np.array(sorted({row for user in wanted for row in of[user]}), dtype=np.int64)
