"""The one place that turns configuration into objects. Names are looked up exactly; nothing is imported by a string."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarec import schedules
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.config.schema import (
    AdamConfig,
    AdamWConfig,
    Config,
    CrossEntropyConfig,
    EvaluationConfig,
    FomamlConfig,
    Gru4RecConfig,
    HardwareConfig,
    ResidualOffConfig,
    ResidualOnConfig,
    SgdConfig,
    TrainConfig,
)
from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.data.prepare import prepare
from metarec.data.store import Prepared
from metarec.errors import EnvironmentFault
from metarec.evaluate import Control, Episodes
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.full import FullResidual
from metarec.residual.off import NoResidual
from metarec.tasks import Model, Tasks

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Hardware:
    device: torch.device
    dtype: torch.dtype
    line: str  # for the reader


def hardware(config: HardwareConfig) -> Hardware:
    """Choose the device and set threads and determinism for the process. Raises EnvironmentFault for a device not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.device
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
        if name == "mps" and config.precision == "float64":
            name = "cpu"  # mps has no float64
    if not there[name]:
        raise EnvironmentFault(
            "hardware.device", name, "this machine has no such device", "choose hardware=cpu or hardware=auto"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    elif hasattr(os, "sched_getaffinity"):  # the cores this process may use, not those of the machine
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA asks of deterministic products
    torch.use_deterministic_algorithms(config.deterministic)
    line = f"{name}, {config.precision}, {torch.get_num_threads()} threads"
    return Hardware(torch.device(name), DTYPES[config.precision], line)


def model(config: Gru4RecConfig, n_items: int) -> GRU4Rec:
    return GRU4Rec(n_items, config.embedding_dim, config.hidden_dim, config.dropout)


def objective(config: CrossEntropyConfig) -> Any:
    return partial(cross_entropy, label_smoothing=config.label_smoothing)


def residual(config: ResidualOnConfig | ResidualOffConfig, base: Params) -> NoResidual | FullResidual:
    if isinstance(config, ResidualOnConfig):
        return FullResidual(base, config.alpha, config.init_scale)
    return NoResidual(base)


def algorithm(config: FomamlConfig, on: ResidualOnConfig | ResidualOffConfig, control: Control) -> MAML:
    """The inner loop takes what the configuration leaves open (null) from the tuned fine-tune control."""
    lr = control.lr if config.inner.lr is None else config.inner.lr
    steps = control.steps if config.inner.steps is None else config.inner.steps
    pull = on.l2 if isinstance(on, ResidualOnConfig) else 0.0
    return fomaml(InnerLoop(lr, steps, pull))


def optimizer(config: AdamConfig | AdamWConfig | SgdConfig, params: Params) -> torch.optim.Optimizer:
    leaves = list(params.values())
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(leaves, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if isinstance(config, AdamWConfig) else torch.optim.Adam
    beta1, beta2 = config.betas
    return kind(leaves, lr=config.lr, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay)


def schedule(config: Any, steps: int) -> Any:
    return partial(schedules.factor, steps=steps, **asdict(config))


def trainable(params: Params) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def data_dir(config: Config) -> Path | None:
    return Path(config.data_dir).expanduser() if config.data_dir else None


def cache_dir(config: Config) -> Path:
    return Path(config.cache_dir).expanduser()


def data(config: Config, spec: Any, report: Any, export: Path | None = None) -> Prepared:
    return prepare(spec, data_dir=data_dir(config), cache_dir=cache_dir(config), report=report, export_dir=export)


@dataclass(frozen=True)
class Bench:
    """What every method of a run is measured with."""

    prepared: Prepared
    batcher: Batcher
    model: Model
    objective: Any
    hardware: Hardware
    evaluation: EvaluationConfig

    def tasks(self, over: NoResidual | FullResidual | None = None) -> Tasks:
        """Losses and logits over the model's own weights, or over a residual's."""
        return Tasks(self.model, self.objective, (lambda phi: phi) if over is None else over.compose)

    def episodes(self, split: str, *, n_support: int | None = None, rows: np.ndarray | None = None) -> Episodes:
        ranges = self.prepared.episodes(split)
        return Episodes(
            self.batcher,
            ranges,
            np.arange(len(ranges.user)) if rows is None else rows,
            ranges.n_support if n_support is None else n_support,
            self.evaluation.task_chunk,
            self.hardware.device,
        )


def bench(config: TrainConfig, evaluation: EvaluationConfig, prepared: Prepared, on: Hardware) -> Bench:
    batcher = Batcher(
        np.asarray(prepared.item),
        np.asarray(prepared.pair_begin),
        np.asarray(prepared.pair_event),
        config.model.max_len,
    )
    return Bench(prepared, batcher, model(config.model, prepared.n_items), objective(config.objective), on, evaluation)
