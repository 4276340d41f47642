"""What steps weights in both loops: step sizes, optimizer, schedule, guard, out of options. A part of `metarec.build`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from metarec import optimizers, parts, schedules
from metarec.algorithms.forgetting import Forget
from metarec.algorithms.inner import RATE, InnerLoop
from metarec.config.schema import AlgorithmConfig, AnyGuardConfig, NoGuardConfig, OptimizerConfig, TrainConfig
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.runs.guard import Guard, Rules
from metarec.runs.guarded import Guarded
from metarec.tasks import Model


def pretrain_lr(config: TrainConfig) -> float:
    """The step size of pretraining: `pretrain.lr`, or where that is null the model's own."""
    if config.pretrain.lr is not None:
        return config.pretrain.lr
    return float(getattr(config.model, "pretrain_lr", PRETRAIN_LR))


PRETRAIN_LR = 3e-3  # of a model that does not say its own
OUTER_LR = {"contexts": 5e-4, "weights": 3e-4, "images": 1e-3}  # what `optimizer.lr: null` stands for


def outer_lr(config: TrainConfig) -> float:
    """The outer step size that `optimizer.lr: null` stands for: the algorithm's own, or that of what is trained."""
    return float(getattr(config.algorithm, "outer_lr", OUTER_LR[kind_of(config)]))


def kind_of(config: TrainConfig) -> str:
    """What an outer step trains, by which defaults differ."""
    if config.dataset.source == "omniglot":
        return "images"
    return "contexts" if getattr(config.residual, "beside", False) else "weights"


def optimizer(
    config: OptimizerConfig, params: Params, null_lr: float, rates_lr: float | None = None,
    apart: Mapping[str, float] = MappingProxyType({}), model: Model | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """Learned inner step sizes have an outer step size of their own and no weight decay, and so has what a residual takes
    apart (`outer_lrs`). The `model` is asked which of its weights are slow. ConfigError for what cannot be had of them."""
    lr = config.lr if config.lr is not None else null_lr
    others = (RATE, *apart)
    own = [value for name, value in params.items() if value.requires_grad and not name.startswith(others)]
    rates = [value for name, value in params.items() if name.startswith(RATE)]
    leaves: list[dict[str, Any]] = [{"params": own}] if own else []
    if rates:
        leaves.append({"params": rates, "lr": rates_lr or lr, "weight_decay": 0.0})
    for beginning, its_lr in apart.items():
        found = [value for name, value in params.items() if name.startswith(beginning)]
        leaves.append({"params": found, "lr": its_lr, "weight_decay": 0.0})
    trained = {name: value for name, value in params.items() if value.requires_grad}
    given = optimizers.Given(leaves, null_lr, trained, tuple(getattr(model, "slower", ())))
    made: torch.optim.Optimizer = parts.load("optimizer", config.name).build(config, given)
    return made


def pretrain_options(config: TrainConfig) -> OptimizerConfig | None:
    """What pretraining steps by: the run's optimizer with step size and clip of `pretrain`; None for Adam of its own.

    A step size that is written for Adam's steps (the model's own) is none for steps as large as the gradient.
    """
    if config.pretrain.optimizer == "adam":
        return None
    own: Any = config.optimizer
    lr = pretrain_lr(config) if own.adaptive or config.pretrain.lr is not None else own.lr
    found: OptimizerConfig = replace(own, lr=lr, clip_norm=config.pretrain.clip_norm)
    return found


def pretrain_optimizer(config: TrainConfig, params: Params, model: Model) -> torch.optim.Optimizer:
    """The one of pretraining over all weights `params` of the model [*S each]."""
    own = pretrain_options(config)
    if own is None:
        return torch.optim.Adam(params.values(), lr=pretrain_lr(config), weight_decay=config.pretrain.weight_decay)
    return optimizer(own, params, OUTER_LR["weights"], model=model)


COSINE_END = 0.01  # of the outer step size, where MAML++ anneals it


def schedule(config: Any, steps: int, algorithm: AlgorithmConfig | None = None) -> Any:
    """outer step -> factor of the step size over `steps`; MAML++'s cosine stands in for the configured one (`ca`)."""
    if getattr(algorithm, "ca", False):
        return partial(schedules.factor, steps=steps, name="cosine", warmup_steps=0, final_factor=COSINE_END)
    return partial(schedules.factor, steps=steps, **asdict(config))


def guard(
    config: AnyGuardConfig,
    params: Params,
    optimizer: torch.optim.Optimizer,
    path: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> Guarded | None:
    """The guard of one loop over `params` (of any shape), whose events go to `path`; None where it is off."""
    if isinstance(config, NoGuardConfig):
        return None
    options = {name: value for name, value in asdict(config).items() if name != "name"}
    return Guarded(Guard(Rules(**options), path, tell), params, optimizer)


def forget(section: Any, moving: Collection[str], weight_of: Callable[[str], str], model: Model) -> Forget | None:
    """How the inner loop of these options forgets, of what may move in it; None where it takes gradient steps alone."""
    if getattr(section, "rule", "sgd") != "delta" or section.decay == 0:
        return None
    linear = getattr(model, "linear", ())
    names = frozenset(name for name in moving if weight_of(name) in linear)
    return Forget(section.decay, section.form, section.unstable, names)


def check_forgets(loop: InnerLoop, names: Iterable[str], weight_of: Callable[[str], str], model: Model) -> None:
    """ConfigError where a matrix of what the loop moves cannot forget, or nothing of it can."""
    if loop.forget is None:
        return
    shapes, linear = model.shapes(), getattr(model, "linear", ())
    moving = [name for name in names if loop.moves(name)]
    others = [name for name in moving if len(shapes.get(weight_of(name), ())) > 1 and name not in loop.forget.names]
    ways = f"let algorithm.inner.adapt name what can, of {', '.join(linear)}, and vectors" if linear else "use rule=sgd"
    if others:
        which = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        what = f"{which} would adapt, and what a task reads by it is not told: no linear layer alone"
        raise ConfigError("algorithm.inner.rule", "delta", what, ways)
    if moving and not loop.forget.names.intersection(moving):
        what = f"nothing of what adapts is the matrix of a linear layer ({', '.join(moving)}), so nothing would forget"
        raise ConfigError("algorithm.inner.rule", "delta", what, ways)
