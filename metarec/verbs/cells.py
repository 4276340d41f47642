"""The cells of a survey: every data set x model x residual x algorithm of a comparison, and the runs that each is made of.

A cell first tries its settings (`tune`): runs of one seed that are measured on validation and never on test. The best by the
monitored validation figure is then run with every seed and measured on test once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from metarec.config.check import checked, raise_all
from metarec.config.fields import group_schema
from metarec.config.overrides import check_words
from metarec.config.schema import CompareConfig, TrainConfig
from metarec.errors import ConfigError
from metarec.verbs.variants import Variant

# keys of a comparison that are no keys of a run
OWN = (
    "algorithms", "seeds", "inner", "resume", "datasets", "models", "residuals", "variants", "parallel", "tune",
    "contrasts", "metric", "reported",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """`names`: of its data set, model, residual (or variant) and algorithm; `config`: a run of it but for seed and
    setting."""

    names: tuple[str, str, str, str]
    config: TrainConfig

    @property
    def name(self) -> str:
        """Of the directory and of the job: the four joined by "_"."""
        return "_".join(self.names)

    @property
    def block(self) -> tuple[str, str]:
        """What is compared with one another: the same data set and model."""
        return self.names[:2]

    def run(self, seed: int, setting: dict[str, float], *, whole_panel: bool) -> TrainConfig:
        """The run that is measured on test. The rows of the panel do not depend on algorithm and residual, so one cell
        of a block brings them for all."""
        config = with_setting(self.config, setting)
        evaluation = config.evaluation if whole_panel else replace(config.evaluation, panel="none")
        return replace(config, seed=seed, evaluation=evaluation)

    def trial(self, seed: int, setting: dict[str, float]) -> TrainConfig:
        """The run of a setting that is measured on validation alone."""
        config = with_setting(self.config, setting)
        evaluation = replace(
            config.evaluation, panel="none", split="val", ks=None, grid=False, latency=False, divergence=False
        )
        return replace(config, seed=seed, evaluation=evaluation, logger=replace(config.logger, plots=False))


def with_setting(config: TrainConfig, setting: dict[str, float]) -> TrainConfig:
    """`outer_lr` and `inner_lr` of a setting, where they are; any other option as it was."""
    algorithm: Any = config.algorithm
    if "inner_lr" in setting:
        algorithm = replace(algorithm, inner=replace(algorithm.inner, lr=setting["inner_lr"]))
    optimizer: Any = config.optimizer
    if "outer_lr" in setting:
        optimizer = replace(optimizer, lr=setting["outer_lr"])
    return replace(config, algorithm=algorithm, optimizer=optimizer)


def is_survey(config: CompareConfig) -> bool:
    """Whether a comparison is over more than algorithms and seeds, or tunes anything."""
    axes = config.datasets, config.models, config.residuals, config.variants
    return any((*axes, settings(config) != [{}], config.parallel > 1))


def settings(config: CompareConfig, residual: Any = None) -> list[dict[str, float]]:
    """What every cell tries: outer step sizes x inner step sizes; [{}] where nothing is tuned.

    With a `residual` only those that do something with it: a memory alone takes no inner step, and its numbers have an outer
    step size of their own.
    """
    adapts = getattr(residual, "adapts", True)
    axes: dict[str, Sequence[float]] = {}
    if config.tune.outer_lrs and (adapts or not getattr(residual, "frozen", False)):
        axes["outer_lr"] = config.tune.outer_lrs
    if config.tune.inner_lrs and adapts:
        axes["inner_lr"] = config.tune.inner_lrs
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def cells(config: CompareConfig) -> list[Cell]:
    """Every cell, all of them checked before the first one runs. Raises ConfigError naming the cell.

    Cells of one data set stand far apart, so that several that run at once do not wait for the same pretrained model.
    """
    datasets = {name: _chosen("dataset", name, config) for name in config.datasets or [config.dataset.name]}
    models = {name: _chosen("model", name, config) for name in config.models or [config.model.name]}
    shared = {f.name: getattr(config, f.name) for f in fields(CompareConfig) if f.name not in OWN}
    found, errors = list[Cell](), list[ConfigError]()
    blocks: dict[str, list[tuple[str, Any]]] = {}
    for (kind, residual, variant), model, dataset in itertools.product(_kinds(config), models, datasets):
        name = (dataset, model, *kind)
        try:
            job = TrainConfig(
                **{**shared, "dataset": datasets[dataset], "model": models[model], "residual": residual},
                algorithm=algorithm_of(kind[1], config), seed=config.seeds[0],
            )  # fmt: skip
            if variant is not None:
                job = variant.over(job)
                if job.evaluation.monitor != config.evaluation.monitor:
                    what = "is the same for all runs of a comparison"
                    fix = f"give evaluation.monitor={job.evaluation.monitor} to metarec compare itself"
                    raise ConfigError("evaluation.monitor", job.evaluation.monitor, what, fix)
                data = _apart(_own("dataset", dataset, job, datasets), kind[0], asdict(job.dataset), blocks)
                name = (data, _own("model", model, job, models), *kind)
            if config.contrasts is None and is_survey(config) and job.algorithm.name == "supervised":
                what = "adapts nothing, so there is nothing of ours to set beside the baselines"
                fix = "say which variants are compared: contrasts=[[A,B]]"
                raise ConfigError("algorithm", "supervised", what, fix)
            for setting in settings(config, job.residual):
                checked("train", asdict(with_setting(job, setting)))
            found.append(Cell(name, job))
        except ConfigError as error:
            told = f"{', '.join(name)}: " if is_survey(config) else ""
            for one in getattr(error, "errors", [error]):
                errors.append(ConfigError(one.where, one.value, f"{told}{one.what}", one.fix))
    raise_all(errors)
    _contrasted(config, found)
    return found


def _contrasted(config: CompareConfig, found: Sequence[Cell]) -> None:
    """ConfigError for a contrast whose two variants never meet: on one data set, with one model and algorithm."""
    met = {(*cell.block, cell.names[3], cell.names[2]) for cell in found}
    for of, against in config.contrasts or []:
        if not any((*rest, against) in met for *rest, name in met if name == of):
            what = "the two are never run on the same data with the same model and algorithm"
            raise ConfigError(
                "contrasts", f"[{of},{against}]", what, "compare variants of one algorithm and one data set"
            )


def _own(group: str, name: str, job: TrainConfig, axis: Mapping[str, Any]) -> str:
    """The name of a variant's data set or model; ConfigError where it would be the same under each of several."""
    own = str(getattr(job, group).name)
    if own == axis[name].name:
        return name
    if len(axis) > 1:
        raise ConfigError(
            f"{group}s", ",".join(axis), f"the variant has {group}={own} of its own", "drop one of the two"
        )
    return own


def _apart(dataset: str, variant: str, options: Any, blocks: dict[str, list[tuple[str, Any]]]) -> str:
    """The data set's name; for a variant with other options of it than the first one has, a name apart: its test episodes
    may be others, so its figures are compared with its own rows only."""
    known = blocks.setdefault(dataset, [(dataset, options)])
    for name, own in known:
        if own == options:
            return name
    known.append((f"{dataset}-{variant}", options))
    return known[-1][0]


def _kinds(config: CompareConfig) -> list[tuple[tuple[str, str], Any, Variant | None]]:
    """What is run on every data set with every model: (name of residual or variant, algorithm), residual, variant."""
    algorithms = list(dict.fromkeys(config.algorithms))
    if config.variants is None:
        residuals = {name: _chosen("residual", name, config) for name in config.residuals or [config.residual.name]}
        return [((r, a), residuals[r], None) for r, a in itertools.product(residuals, algorithms)]
    found: list[tuple[tuple[str, str], Any, Variant | None]] = []
    for name, text in config.variants.items():
        variant = Variant(name, text, config)
        own = algorithms if variant.algorithm is None else [variant.algorithm]
        found += [((name, algorithm), config.residual, variant) for algorithm in own]
    return found


def algorithm_of(name: str, config: CompareConfig) -> Any:
    """The options of an algorithm's own file, with what all algorithms of the comparison have in common."""
    schema = group_schema("algorithm", name)
    assert schema is not None  # the configuration check knows the names
    algorithm = schema()
    for key in ("lr", "steps"):
        if getattr(config.inner, key) is not None:
            setattr(algorithm.inner, key, getattr(config.inner, key))
    return algorithm


def _chosen(group: str, name: str, config: CompareConfig) -> Any:
    """The options of `group`=`name`: as composed where that is the chosen one, else as its file has them."""
    own = getattr(config, group)
    if own.name == name:
        return own
    words = [f"{group}={name}", *([f"data_dir={config.data_dir}"] if config.data_dir else [])]
    (job,) = check_words("train", words, rules=False).jobs
    found = getattr(job.config, group)
    if group == "dataset":  # what the survey says of all its data sets
        found = replace(found, history=config.dataset.history, episodes=config.dataset.episodes)
    return found
