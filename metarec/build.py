"""The one place that turns configuration into objects; parts are found by their exact names (`metarec.parts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarec import parts
from metarec.algorithms import Algorithm, Given
from metarec.algorithms.inner import InnerLoop
from metarec.benches import AnyBench, ImageBench, SequenceBench, item_counts
from metarec.build_steps import COSINE_END as COSINE_END
from metarec.build_steps import OUTER_LR as OUTER_LR
from metarec.build_steps import check_forgets as check_forgets
from metarec.build_steps import forget as forget
from metarec.build_steps import guard as guard
from metarec.build_steps import kind_of as kind_of
from metarec.build_steps import optimizer as optimizer
from metarec.build_steps import outer_lr as outer_lr
from metarec.build_steps import pretrain_lr as pretrain_lr
from metarec.build_steps import pretrain_optimizer as pretrain_optimizer
from metarec.build_steps import pretrain_options as pretrain_options
from metarec.build_steps import schedule as schedule
from metarec.config.schema import (
    Config,
    EvaluationConfig,
    MetaConfig,
    ModelConfig,
    Part,
    SupervisedConfig,
    TrainConfig,
)
from metarec.core.weights import Params
from metarec.data import characters
from metarec.data.batches import Batcher
from metarec.data.episodes import held_out
from metarec.data.history import Stream
from metarec.data.omniglot import Omniglot
from metarec.data.prepare import prepare
from metarec.data.prompt_batches import batcher_of
from metarec.data.prompts import Prompts
from metarec.data.reliability import reliability_of
from metarec.data.source import locate
from metarec.data.spec import DatasetSpec
from metarec.data.store import Prepared
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models import Catalogue
from metarec.objectives import Items
from metarec.objectives.surprise import Surprise
from metarec.options import KLAnchor, Several, SurpriseTerm, matching
from metarec.residual import Residual, several
from metarec.tasks import Model, Objective, evidence_width
from metarec.text_bench import TextBench
from metarec.workbench import Hardware, tell
from metarec.workbench import hardware as hardware

AnyPrepared = Prepared | Omniglot | Prompts


def model(config: ModelConfig, n_items: int, catalogue: Catalogue | None = None) -> Model:
    """Of `n_items` classes or items, without weights; what a model refuses (ValueError) becomes a ConfigError.

    A model that has `build_of` is told what the data set says of its items.
    """
    part = parts.load("model", config.name)
    try:
        made: Model = (
            part.build_of(config, catalogue) if catalogue and hasattr(part, "build_of") else part.build(config, n_items)
        )
    except ValueError as reason:
        raise ConfigError("model", config.name, str(reason), f"see metarec/models/{config.name}.py") from reason
    return made


def catalogue(config: Config, prepared: AnyPrepared) -> Catalogue:
    """What the data set says of what is scored: how many there are, of what kind, and their own ids."""

    def ids() -> list[str]:
        assert isinstance(prepared, Prepared)  # images have no names, and no model asks for them
        return [str(item) for item in prepared.item_ids]

    return Catalogue(prepared.n_items, prepared.kind, ids, data_dir(config), tell)


def objective(config: Part, prepared: AnyPrepared, seed: int, device: torch.device) -> Objective:
    """Popularity is that of the training events alone. Raises ConfigError where the log has too few items to draw from."""

    def counted() -> np.ndarray:
        assert isinstance(prepared, Prepared)  # the rules refuse to draw among classes of images and tokens of text
        return item_counts(prepared)

    made: Objective = parts.load("objective", config.name).build(config, Items(prepared.n_items, counted, seed, device))
    return made


def unanchored(config: TrainConfig) -> dict[str, Any]:
    """The options of the objective that pretraining sees: all but its anchor, and surprise where it is part of it."""
    seen = asdict(config.objective)
    paid = seen.pop("surprise", {})
    if Surprise.at(surprise(config), "pretrain", 0) is not None:
        seen["surprise"] = {name: value for name, value in paid.items() if name != "where"}
    return {name: value for name, value in seen.items() if name != "kl_anchor"}


def surprise(config: TrainConfig) -> SurpriseTerm:
    """`objective.surprise`; of an objective that has no such section, none."""
    found: SurpriseTerm = getattr(config.objective, "surprise", SurpriseTerm())
    return found


def anchor(config: TrainConfig) -> KLAnchor:
    """`objective.kl_anchor`; of an objective that has no such section, none."""
    found: KLAnchor = getattr(config.objective, "kl_anchor", KLAnchor())
    return found


CONTEXT_DROPOUT = 0.3


def dropout(config: TrainConfig) -> float:
    """The rate in the query loss; None in the configuration: as much as contexts want of a model that drops at all."""
    if config.train.dropout is not None:
        return config.train.dropout
    return CONTEXT_DROPOUT if kind_of(config) == "contexts" and hasattr(config.model, "dropout") else 0.0


def with_dropout(model: Any, rate: float) -> Any:
    """The same model with another rate of dropout; the rules refuse a model without any."""
    return replace(model, dropout=rate)


def residual(config: Part, model: Model, base: Params) -> Residual:
    """On the weights `base` of the warm start; adapts what `model` names."""
    made: Residual = parts.load("residual", config.name).build(config, base, model)
    return made


def learnable(config: Part, model: Model) -> dict[str, bool]:
    """Name of everything that the outer loop may train -> whether the inner loop adapts it unless told otherwise."""
    found: dict[str, bool] = parts.load("residual", config.name).learnable(config, model)
    return found


def residual_files(on: Part) -> list[tuple[Any, Any]]:
    """The options of a residual and its file, or those of each of several."""
    return several.files(on) if isinstance(on, Several) else [(on, parts.load("residual", on.name))]


def weight_of(on: Part) -> Callable[[str], str]:
    """Name of what is learned -> the weight that it is a part of, or itself."""
    files = [file for _, file in residual_files(on)]

    def weight(name: str) -> str:
        for file in files:
            name = getattr(file, "weight_of", str)(name)
        return name

    return weight


def _for_all(on: Part, names: Iterable[str]) -> frozenset[str]:
    """What a residual learns for all users alike, with an outer step size of its own: no weights and no contexts."""
    return frozenset(name for name in names if name.startswith(tuple(outer_lrs(on))))


def outer_lrs(on: Part) -> dict[str, float]:
    """Beginning of a name -> the outer step size of what is called so, where a residual asks for its own."""
    return dict(getattr(on, "outer_lrs", {}))


def adapted(config: MetaConfig, on: Part, model: Model) -> frozenset[str]:
    """What an inner loop may move; of some residuals nothing, and never what the model calls `fixed`, one for all tasks.

    Raises ConfigError for a pattern that matches nothing, or something fixed.
    """
    names, fixed = learnable(on, model), getattr(model, "fixed", ())
    if not getattr(on, "adapts", True):
        return frozenset()
    if config.inner.adapt is not None:
        asked = matching("algorithm.inner.adapt", config.inner.adapt, list(names))
        for name in sorted(asked.intersection(fixed)):
            what = f"{name} is one for all tasks: the model learns it and cannot adapt it"
            raise ConfigError("algorithm.inner.adapt", config.inner.adapt, what, "give patterns that leave it out")
        return asked
    chosen = frozenset(name for name, moves in names.items() if moves and name not in fixed)
    if not chosen:
        fix = "use residual=off" + (" with algorithm=maml" if getattr(config, "adapts", "") == "beside" else "")
        raise ConfigError("residual", on.name, "the model has nothing that it could adapt", fix)
    return chosen


def fine_tunable(model: Model) -> frozenset[str] | None:
    """What the fine-tune control moves: all weights (None) but those that the model has for all tasks at once."""
    fixed = getattr(model, "fixed", ())
    return frozenset(model.shapes()) - frozenset(fixed) if fixed else None


CONTEXT_LR, CONTEXT_STEPS = 3.0, 1  # contexts are few and start at zero: they take steps that would wreck whole weights


def algorithm(
    config: MetaConfig,
    on: Part,
    model: Model,
    control: Control,
    *,
    outer_steps: int,
    support_share: float,
    context_lr: float = CONTEXT_LR,
    seed: int = 0,
) -> Algorithm:
    """The inner loop takes what the configuration leaves open (null) from the tuned fine-tune control, where it moves
    whole weights as the control does. Raises ConfigError for options that this model cannot have."""
    section, beside = config.inner, bool(getattr(on, "beside", False))
    names, whose, moving = learnable(on, model), weight_of(on), adapted(config, on, model)
    steps = (CONTEXT_STEPS if beside else control.steps) if section.steps is None else section.steps
    loop = InnerLoop(
        (context_lr if beside else control.lr) if section.lr is None else section.lr,
        steps if moving else 0,
        getattr(on, "l2", 0.0),
        prox=getattr(section, "prox", 0.0),
        clip=section.clip,
        rates=getattr(section, "rates", "fixed"),
        adapted=moving,
        recompute=getattr(section, "recompute", False),
        forget=forget(section, moving, whose, model),
    )
    given = Given(
        loop,
        tuple(names),
        frozenset(name for name in names if whose(name) in model.head),
        tuple(name for name in getattr(model, "norms", ()) if name in names),
        tuple(getattr(model, "statistics_shapes", {})),
        frozenset(name for name in names if whose(name) not in model.shapes()) - _for_all(on, names),
        outer_steps,
        support_share,
        _evidence(config, model),
        products(on, model),
        seed,
    )
    made: Algorithm = parts.load("algorithm", config.name).build(config, given)
    check_forgets(made.inner, names, whose, model)
    return made


def _evidence(config: MetaConfig, model: Model) -> int:
    """Numbers that say what a support pair is; 0 where the algorithm does not ask for them."""
    if not getattr(config, "reads_support", False):
        return 0
    width = evidence_width(model)
    if width is None:
        what = f"algorithm={config.name} reads states, and this model does not say how wide they are (context.shift)"
        raise ConfigError("model", "of this kind", what, "use another model")
    return width


def products(on: Part, model: Model) -> dict[str, tuple[str, str, float]]:
    """Weight -> names of A and B and the factor s, where a residual (or one of several) adds s * B A to weights."""
    return {
        weight: found
        for own, file in residual_files(on) if hasattr(file, "products")
        for weight, found in file.products(own, model).items()
    }  # fmt: skip


def statistics(made: Algorithm, model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the batch-norm statistics that a run keeps for each inner step (MAML++); mostly none."""
    shapes: dict[str, tuple[int, ...]] = getattr(model, "statistics_shapes", {})
    return {name: shape for name, shape in shapes.items() if name in made.inner.kept}


def trainable(params: Params) -> Params:
    """Copies as leaves that take a gradient: training moves them and leaves `params` as they are."""
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def data_dir(config: Config) -> Path | None:
    """Where datasets are that are named by a relative path, ~ expanded; None where nobody said."""
    return Path(config.data_dir).expanduser() if config.data_dir else None


def cache_dir(config: Config) -> Path:
    """Where prepared data is kept between runs, ~ expanded."""
    return Path(config.cache_dir).expanduser()


def data(config: Config, spec: DatasetSpec, report: Any, export: Path | None = None) -> AnyPrepared:
    """Prepared data, out of the cache where it is there; `report` is told of progress.

    Raises ConfigError for an export of images or text, DataError for what cannot be read.
    """
    if spec.source == "omniglot":
        if export is not None:
            raise ConfigError("export", export, "images have no tables to export", "leave it out")
        return Omniglot.load(locate(spec, data_dir(config)), spec.images)
    if spec.source == "prompts":
        if export is not None:
            raise ConfigError("export", export, "text tasks have no tables to export", "leave it out")
        path = None if spec.path is None else locate(spec, data_dir(config))
        return Prompts.load(spec.prompts, path, cache_dir(config), spec.name, report)
    if spec.source == "characters":
        if export is not None:
            raise ConfigError("export", export, "running text has no tables to export", "leave it out")
        return characters.load(spec.characters, locate(spec, data_dir(config)), spec.name)
    return prepare(spec, data_dir=data_dir(config), cache_dir=cache_dir(config), report=report, export_dir=export)


def bench(config: TrainConfig, evaluation: EvaluationConfig, prepared: AnyPrepared, on: Hardware) -> AnyBench:
    """Model, objective and data put together; reliability is computed only where the support weighs by it."""
    made = model(config.model, prepared.n_items, catalogue(config, prepared))
    cost = objective(config.objective, prepared, config.seed, on.device)
    if isinstance(prepared, Omniglot):
        return ImageBench(prepared, made, cost, on, evaluation)
    if isinstance(prepared, Prompts):
        return TextBench(prepared, batcher_of(prepared, config.model.max_len, on.device), made, cost, on, evaluation)
    inner = None if isinstance(config.algorithm, SupervisedConfig) else config.algorithm.inner
    batcher = Batcher(
        np.asarray(prepared.item),
        np.asarray(prepared.pair_begin),
        np.asarray(prepared.pair_event),
        config.model.max_len,
        reliability_of(prepared) if inner is not None and inner.support_weights == "reliability" else None,
        on.device,
        Stream.of(prepared) if config.dataset.history == "user" else None,
        prepared.n_read,
        bool(getattr(config.residual, "reads_memory", False)),
    )
    share, drawn_by = config.pretrain.hold_out, config.dataset.split.seed
    kept = held_out(prepared.episodes("train"), share, drawn_by) if share else None
    return SequenceBench(prepared, batcher, made, cost, on, evaluation, kept)
