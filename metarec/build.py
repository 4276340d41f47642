"""The one place that turns configuration into objects. Names are looked up exactly; nothing is imported by a string."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarec import models, schedules
from metarec.algorithms import Algorithm
from metarec.algorithms.anil import anil
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.imaml import IMAML
from metarec.algorithms.inner import RATE, InnerLoop
from metarec.algorithms.maml import MAML
from metarec.algorithms.maml_pp import maml_pp
from metarec.algorithms.meta_sgd import meta_sgd
from metarec.algorithms.reptile import Reptile
from metarec.benches import AnyBench, Hardware, ImageBench, SequenceBench, _popularity
from metarec.config.schema import (
    AdamConfig,
    AdamWConfig,
    AlgorithmConfig,
    AnilConfig,
    BceConfig,
    BprMaxConfig,
    ChunkedCrossEntropyConfig,
    Config,
    Conv4Config,
    CrossEntropyConfig,
    EvaluationConfig,
    FomamlConfig,
    GbceConfig,
    Gru4RecConfig,
    HardwareConfig,
    ImamlConfig,
    MamlPpConfig,
    MetaConfig,
    MetaSgdConfig,
    ModelConfig,
    ObjectiveConfig,
    ReptileConfig,
    ResidualConfig,
    ResidualContextConfig,
    ResidualOnConfig,
    SampledSoftmaxConfig,
    SASRecConfig,
    SgdConfig,
    SupervisedConfig,
    TrainConfig,
)
from metarec.core import fused, heap
from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.data.history import Stream
from metarec.data.omniglot import Omniglot
from metarec.data.prepare import prepare
from metarec.data.reliability import reliability_of
from metarec.data.source import locate
from metarec.data.spec import DatasetSpec
from metarec.data.store import Prepared
from metarec.errors import ConfigError, EnvironmentFault
from metarec.evaluate import Control
from metarec.models.conv4 import Conv4
from metarec.models.gru4rec import GRU4Rec
from metarec.models.sasrec import SASRec
from metarec.objectives.bce import BCE
from metarec.objectives.bpr_max import BPRMax
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import cross_entropy
from metarec.objectives.gbce import GBCE
from metarec.objectives.sampled_softmax import SampledSoftmax
from metarec.objectives.standing import Standing
from metarec.residual import Residual
from metarec.residual.context import ContextResidual
from metarec.residual.full import FullResidual
from metarec.residual.off import NoResidual
from metarec.tasks import Model, Objective

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}  # of all but products


def hardware(config: HardwareConfig) -> Hardware:
    """Choose the device, and set threads, determinism and compilation for the process.

    Raises EnvironmentFault for a device that is not there or cannot do the precision.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.device
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
        if name == "mps" and config.precision != "float32":
            name = "cpu"  # mps has no float64, and nobody has seen it multiply in bfloat16
    if not there[name]:
        raise EnvironmentFault(
            "hardware.device", name, "this machine has no such device", "choose hardware=cpu or hardware=auto"
        )
    mixed = config.precision == "bfloat16"
    if mixed and name == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise EnvironmentFault(
            "hardware.precision", "bfloat16", f"{torch.cuda.get_device_name()} does not multiply in it",
            "use hardware.precision=float32",
        )  # fmt: skip
    if config.threads:
        torch.set_num_threads(config.threads)
    elif hasattr(os, "sched_getaffinity"):  # the cores this process may use, not those of the machine
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA asks of deterministic products
    torch.use_deterministic_algorithms(config.deterministic)
    heap.keep_freed()
    compiled = fused.switch(config.compile, torch.device(name), _tell)
    line = f"{name}, {config.precision}, {torch.get_num_threads()} threads{', compiled' if compiled else ''}"
    return Hardware(torch.device(name), DTYPES[config.precision], line, mixed, compiled)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # even when quiet: what was asked for is not done


def model(config: ModelConfig, n_items: int) -> Model:
    if isinstance(config, SASRecConfig):
        return SASRec(
            n_items, config.dim, config.n_layers, config.n_heads, config.dropout, config.max_len, config.ffn_dim,
            config.tie, config.n_prefix,
        )  # fmt: skip
    if isinstance(config, Conv4Config):
        return Conv4(n_items, filters=config.filters, pool=config.pool)
    if isinstance(config, Gru4RecConfig):
        return GRU4Rec(
            n_items, config.embedding_dim, config.hidden_dim, config.dropout, config.n_layers, config.tie,
            config.embedding_dropout,
        )  # fmt: skip
    own = models.own(config.name)
    assert own is not None  # the configuration check has found it
    try:
        made: Model = own.build(config, n_items)
    except ValueError as reason:
        raise ConfigError("model", config.name, str(reason), f"see metarec/models/{config.name}.py") from reason
    return made


MOST_DRAWN = {"sampled_softmax": 1024, "bpr_max": 2048, "bce": 256, "gbce": 256}  # what `null` stands for, at most


def objective(config: ObjectiveConfig, prepared: Prepared | Omniglot, seed: int, device: torch.device) -> Objective:
    """Popularity is that of the training events alone. Raises ConfigError where the log has too few items to draw from.

    `seed`: of the items that are drawn where nothing is trained (`objectives.standing`).
    """
    if isinstance(config, CrossEntropyConfig):
        return partial(cross_entropy, label_smoothing=config.label_smoothing)
    if isinstance(config, ChunkedCrossEntropyConfig):
        return ChunkedCrossEntropy(config.chunk, config.label_smoothing)
    assert isinstance(prepared, Prepared)  # the rules refuse to draw among the classes of images
    n = draws(config, prepared.n_items)
    if isinstance(config, SampledSoftmaxConfig):
        by_rank = torch.from_numpy(np.argsort(-_popularity(prepared), kind="stable") + 1)
        return Standing(SampledSoftmax(by_rank.to(device), n), seed)
    if isinstance(config, BprMaxConfig):
        return Standing(BPRMax(torch.from_numpy(_popularity(prepared)), n, config.alpha, config.reg), seed)
    return Standing(GBCE(n, config.t) if isinstance(config, GbceConfig) else BCE(n), seed)


def draws(config: SampledSoftmaxConfig | BprMaxConfig | BceConfig | GbceConfig, n_items: int) -> int:
    """How many items are drawn. Raises ConfigError for more than there are, where none is drawn twice."""
    key = "n_negatives" if isinstance(config, BceConfig | GbceConfig) else "n_samples"
    asked: int | None = getattr(config, key)
    if asked is None:
        return min(MOST_DRAWN[config.name], max(n_items // 4, 1))
    if asked >= n_items and not isinstance(config, BprMaxConfig):
        raise ConfigError(
            f"objective.{key}", asked, f"the training vocabulary has {n_items} items, so nothing would be left to draw",
            "give fewer, or use objective=cross_entropy",
        )  # fmt: skip
    return asked


CONTEXT_DROPOUT = 0.3


def dropout(config: TrainConfig) -> float:
    """The rate in the query loss; None in the configuration: as much as contexts want of a model that drops at all."""
    if config.train.dropout is not None:
        return config.train.dropout
    return CONTEXT_DROPOUT if kind_of(config) == "contexts" and hasattr(config.model, "dropout") else 0.0


def with_dropout(model: Any, rate: float) -> Any:
    """The same model with another rate of dropout; the rules refuse a model without any."""
    return replace(model, dropout=rate)


def residual(config: ResidualConfig, model: Model, base: Params) -> Residual:
    if isinstance(config, ResidualOnConfig):
        return FullResidual(base, config.alpha, config.init_scale)
    if isinstance(config, ResidualContextConfig):
        return ContextResidual(base, model.context_shapes(), config.train_weights)
    return NoResidual(base)


def learnable(config: ResidualConfig, model: Model) -> dict[str, bool]:
    """Name of everything that the outer loop may train -> whether the inner loop adapts it unless told otherwise."""
    names = dict.fromkeys(model.shapes(), True)
    if isinstance(config, ResidualContextConfig):
        weights = dict.fromkeys(names, False) if config.train_weights else {}
        return weights | dict.fromkeys(model.context_shapes(), True)
    return names


def adapted(config: MetaConfig, on: ResidualConfig, model: Model) -> frozenset[str]:
    """What the inner loop moves. Raises ConfigError for a pattern that matches nothing, before anything runs."""
    names = learnable(on, model)
    chosen = frozenset(name for name, moves in names.items() if moves)
    if config.inner.adapt is not None:
        chosen = _matching("algorithm.inner.adapt", config.inner.adapt, list(names))
    elif not chosen:
        raise ConfigError("residual", "context", "the model has no contexts that could adapt", "use residual=off")
    if isinstance(config, AnilConfig):
        if config.head is None:
            head = frozenset(model.head) & names.keys()
            own = [name for name in model.context_shapes() if name in head]
            head = frozenset(own) if isinstance(on, ResidualContextConfig) else head
        else:
            head = _matching("algorithm.head", config.head, list(names))
        if not chosen & head:
            raise ConfigError(
                "algorithm.head", sorted(head), f"nothing of it adapts; what adapts is {sorted(chosen)}",
                "choose the head among what adapts",
            )  # fmt: skip
        chosen = chosen & head
    return chosen


def _matching(key: str, patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    found: set[str] = set()
    for pattern in patterns:
        own = fnmatch.filter(names, pattern)
        if not own:
            raise ConfigError(key, pattern, "matches no weight", f"the names are {', '.join(names)}")
        found.update(own)
    return frozenset(found)


def statistics(config: MetaConfig, model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the batch-norm statistics that a run keeps for each inner step (MAML++); mostly none."""
    if not isinstance(config, MamlPpConfig) or config.bnrs is False:
        return {}
    found: dict[str, tuple[int, ...]] = getattr(model, "statistics_shapes", {})
    return found


CONTEXT_LR, CONTEXT_STEPS = 3.0, 1  # contexts are few and start at zero: they take steps that would wreck whole weights


def algorithm(
    config: MetaConfig, on: ResidualConfig, model: Model, control: Control, *, outer_steps: int, support_share: float
) -> Algorithm:
    """The inner loop takes what the configuration leaves open (null) from the tuned fine-tune control, where it moves
    whole weights as the control does."""
    section = config.inner
    contexts = isinstance(on, ResidualContextConfig)
    lr = (CONTEXT_LR if contexts else control.lr) if section.lr is None else section.lr
    steps = (CONTEXT_STEPS if contexts else control.steps) if section.steps is None else section.steps
    pull = on.l2 if isinstance(on, ResidualOnConfig) else 0.0
    names = adapted(config, on, model)
    loop = InnerLoop(lr, steps, pull, clip=section.clip, adapted=names)
    if isinstance(config, ReptileConfig):
        return Reptile(loop, support_share)
    if isinstance(config, ImamlConfig):
        return IMAML(loop, config.lam, config.cg_steps)
    loop = replace(loop, prox=config.inner.prox, recompute=config.inner.recompute)
    if isinstance(config, MamlPpConfig):
        norms = [name for name in getattr(model, "norms", ()) if name in learnable(on, model)]
        if config.bnwb and not norms:
            raise ConfigError("algorithm.bnwb", True, "the model has no norms that adapt", "drop it")
        return maml_pp(
            loop,
            msl=config.msl,
            lslr=config.lslr,
            da=config.da,
            switch_step=round(config.switch * outer_steps),
            msl_until=round(config.msl_until * outer_steps),
            norms=[] if config.bnwb is False else norms,
            statistics=statistics(config, model),
        )
    loop = replace(loop, rates=config.inner.rates)
    if isinstance(config, AnilConfig):
        return anil(loop, names, config.order)
    if isinstance(config, MetaSgdConfig):
        return meta_sgd(loop, config.order)
    until = round(config.multi_step_until * outer_steps)
    if isinstance(config, FomamlConfig):
        return replace(fomaml(loop), multi_step=config.multi_step, multi_step_until=until)
    return MAML(loop, config.order, round(config.switch * outer_steps), config.multi_step, until)


OUTER_LR = {"contexts": 5e-4, "weights": 3e-4, "images": 1e-3}  # what `optimizer.lr: null` stands for


def kind_of(config: TrainConfig) -> str:
    """What an outer step trains, by which defaults differ."""
    if config.dataset.source == "omniglot":
        return "images"
    return "contexts" if isinstance(config.residual, ResidualContextConfig) else "weights"


def optimizer(
    config: AdamConfig | AdamWConfig | SgdConfig, params: Params, kind: str, rates_lr: float | None = None
) -> torch.optim.Optimizer:
    """Learned inner step sizes have an outer step size of their own and no weight decay."""
    lr = config.lr if config.lr is not None else OUTER_LR[kind]
    own = [value for name, value in params.items() if value.requires_grad and not name.startswith(RATE)]
    rates = [value for name, value in params.items() if name.startswith(RATE)]
    leaves: list[dict[str, Any]] = [{"params": own}] if own else []
    if rates:
        leaves.append({"params": rates, "lr": rates_lr or lr, "weight_decay": 0.0})
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(leaves, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    adam = torch.optim.AdamW if isinstance(config, AdamWConfig) else torch.optim.Adam
    beta1, beta2 = config.betas
    return adam(leaves, lr=lr, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay)


COSINE_END = 0.01  # of the outer step size, where MAML++ anneals it


def schedule(config: Any, steps: int, algorithm: AlgorithmConfig | None = None) -> Any:
    if isinstance(algorithm, MamlPpConfig) and algorithm.ca:
        return partial(schedules.factor, steps=steps, name="cosine", warmup_steps=0, final_factor=COSINE_END)
    return partial(schedules.factor, steps=steps, **asdict(config))


def trainable(params: Params) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def data_dir(config: Config) -> Path | None:
    return Path(config.data_dir).expanduser() if config.data_dir else None


def cache_dir(config: Config) -> Path:
    return Path(config.cache_dir).expanduser()


def data(config: Config, spec: DatasetSpec, report: Any, export: Path | None = None) -> Prepared | Omniglot:
    if spec.source == "omniglot":
        if export is not None:
            raise ConfigError("export", export, "images have no tables to export", "leave it out")
        return Omniglot.load(locate(spec, data_dir(config)), spec.images)
    return prepare(spec, data_dir=data_dir(config), cache_dir=cache_dir(config), report=report, export_dir=export)


def bench(config: TrainConfig, evaluation: EvaluationConfig, prepared: Prepared | Omniglot, on: Hardware) -> AnyBench:
    made, cost = model(config.model, prepared.n_items), objective(config.objective, prepared, config.seed, on.device)
    if isinstance(prepared, Omniglot):
        return ImageBench(prepared, made, cost, on, evaluation)
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
    )
    return SequenceBench(prepared, batcher, made, cost, on, evaluation)
