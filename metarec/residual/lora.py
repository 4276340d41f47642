"""LoRA: a residual of low rank on chosen matrices of frozen pretrained weights.

    theta = theta_base + s * B A        B [out, r], A [r, in];   s = alpha / r, or alpha / sqrt(r)

A and B are meta-learned and adapted, theta_base never moves. B = 0 at the start, so the model before training is the
pretrained one, bit for bit; A is random, N(0, 1 / in), so that A x is about as large as x. No matrix is written for a task:
operators read the factors one after the other (`core.weights.Factored`). The recurrent matrix of a GRU is the exception: its
recurrence reads a matrix a task whatever has adapted it, so there the product is written.

`adapter` names a file of factors to start from, and then rank, alpha, scaling and targets are its. No file is read here:
`metarec.verbs.adapter` fills in the options and gives the factors.

Targets, unless told otherwise: every matrix that is no table of embeddings or positions, none of the model's head, and no
recurrent matrix. With the factor alpha / r the update shrinks as r grows, with alpha / sqrt(r) it keeps its size. `dropout`
drops units of what the factors read (`lora_dropout` of the authors' code), in the query loss of training alone: there
B_t A_t multiplies a thinned x, and theta_base the whole.

Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen 2022, arXiv:2106.09685, sec. 4.1; alpha / sqrt(r): Kalajdzievski
2023, arXiv:2312.03732. Shapes: T tasks, r rank; a matrix is [out, in].
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from metarec.core.states import dropout
from metarec.core.weights import Factored, Params, Weight, Weights, fast
from metarec.errors import ConfigError
from metarec.options import matching, ranged
from metarec.residual import Named

A, B = ".lora_a", ".lora_b"  # what the names of the factors end with
NOT_BY_DEFAULT = ("*embedding*", "position*", "*weight_hh*")  # looked up, or written out a matrix a task


@dataclass
class Config:
    """conf/residual/lora.yaml"""

    name: str = "lora"
    rank: int = ranged(8, min=1)
    alpha: float = ranged(16.0, min=0, exclusive=["min"])
    scaling: str = ranged("alpha/r", choices=["alpha/r", "alpha/sqrt(r)"])
    targets: list[str] | None = None  # None = all matrices but tables, the head and recurrent ones
    adapter: str | None = ranged(None, path=True)  # None = A drawn, B zero; else the directory of an adapter file
    dropout: float = ranged(0.0, min=0, max=1, exclusive=["max"])

    frozen: ClassVar[bool] = True


def targets(config: Config, model: Named) -> dict[str, tuple[int, int]]:
    """Name -> shape (out, in) of the matrices that have factors.

    Raises ConfigError for a pattern that matches none, and for a rank above a matrix' smaller side.
    """
    fixed, left = getattr(model, "fixed", ()), (*model.head, *getattr(model, "tables", ()))
    matrices = {
        name: (shape[0], shape[1]) for name, shape in model.shapes().items() if len(shape) == 2 and name not in fixed
    }
    if config.targets is None:
        chosen = frozenset(
            name for name in matrices
            if name not in left and not any(fnmatch.fnmatch(name, skipped) for skipped in NOT_BY_DEFAULT)
        )  # fmt: skip
    else:
        chosen = matching("residual.targets", config.targets, matrices, "matrix")
    found = {name: shape for name, shape in matrices.items() if name in chosen}
    for name, (out, width) in found.items():
        if config.rank > min(out, width):
            what = f"is above the smaller side of {name} [{out}, {width}], so B A could be any matrix"
            fix = f"give {min(out, width)} or less, choose residual.targets, or use residual=on"
            raise ConfigError("residual.rank", config.rank, what, fix)
        if config.dropout and any(fnmatch.fnmatch(name, other) for other in NOT_BY_DEFAULT):
            what = (
                f"{name} reads no activation that could be dropped: it is looked up, or written out for the recurrence"
            )
            raise ConfigError(
                "residual.dropout", config.dropout, what, "drop it, or leave this out of residual.targets"
            )
    return found


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """Two factors for every target, and all of them adapt."""
    return {name + factor: True for name in targets(config, model) for factor in (A, B)}


def learned_shapes(config: Config, model: Named) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every factor, A [r, in] and B [out, r], known before any weight is there."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (out, width) in targets(config, model).items():
        found[name + A], found[name + B] = (config.rank, width), (out, config.rank)
    return found


def products(config: Config, model: Named) -> dict[str, tuple[str, str, float]]:
    """Weight -> names of its A [r, in] and B [out, r], and s, of s * B A."""
    return {name: (name + A, name + B, scale_of(config)) for name in targets(config, model)}


def scale_of(config: Config) -> float:
    """s, as `scaling` has it."""
    return config.alpha / (config.rank if config.scaling == "alpha/r" else config.rank**0.5)


def weight_of(name: str) -> str:
    """The weight that a factor belongs to, by name; of any other name itself."""
    return name.removesuffix(A).removesuffix(B)


def build(config: Config, base: Params, model: Named) -> LowRankResidual:
    """Factors for `targets`; null: as the file says. Raises ConfigError for a pattern or a rank that does not fit."""
    return LowRankResidual(base, targets(config, model), config.rank, scale_of(config), config.dropout)


@dataclass(frozen=True)
class LowRankResidual:
    base: Params
    targets: Mapping[str, tuple[int, int]]
    rank: int
    scale: float  # s
    dropout: float = 0.0  # of what the factors read

    def init(self, generator: torch.Generator) -> Params:
        """A ~ N(0, 1 / in) [r, in] and B = 0 [out, r] for every target."""
        phi: Params = {}
        for name, (out, width) in self.targets.items():
            like = self.base[name]
            drawn = torch.randn(self.rank, width, generator=generator, dtype=like.dtype)
            phi[name + A] = (drawn * width**-0.5).to(like.device)
            phi[name + B] = like.new_zeros(out, self.rank)
        return phi

    def dropping(self, generator: torch.Generator) -> Callable[[Weights], Weights]:
        """`compose` with dropout on: of each target's own units, a function of the generator's state now.

        Whoever reads a target, and however often, sees the same units dropped, so a loss stays a function of phi.
        """
        seeds = torch.randint(2**62, (len(self.targets),), generator=generator.clone_state(), device=generator.device)
        drops = {
            name: partial(dropped, rate=self.dropout, seed=seed, device=generator.device)
            for name, seed in zip(self.targets, seeds.tolist(), strict=True)
        }

        def compose(phi: Weights) -> Weights:
            theta = dict(self.compose(phi))
            for name, drop in drops.items():
                weight = theta[name]
                assert isinstance(weight, Factored)  # phi are fast weights in a loss of tasks
                theta[name] = replace(weight, drop=drop)
            return theta

        return compose

    def compose(self, phi: Weights) -> Weights:
        """The base, with s * B A on the targets: factored where a factor is a fast weight, else the sum [out, in].

        What is no factor, such as statistics, stays as it is.
        """
        theta: dict[str, Weight] = dict(self.base)
        for name, weight in phi.items():
            if weight_of(name) not in self.targets:
                theta[name] = weight
        for name in self.targets:
            a, b = phi[name + A], phi[name + B]
            factored = Factored(self.base[name], fast(a), fast(b), self.scale)
            theta[name] = factored.dense() if isinstance(a, Tensor) and isinstance(b, Tensor) else factored
        return theta


def dropped(x: Tensor, rate: float, seed: int, device: torch.device) -> Tensor:
    """x [T, N, in] with units dropped by numbers that follow from `seed` and the shape alone."""
    return dropout(x, rate, torch.Generator(device).manual_seed(seed))


def merged(theta: Weights, task: int | None = None) -> Params:
    """Composed weights as those of an ordinary model, [*S] each: of one task, or None as all tasks start.

    What comes out needs no residual: the model gives the same scores by it (tests/residual/test_lora.py).
    """
    found: Params = {}
    for name, weight in theta.items():
        if isinstance(weight, Factored):
            found[name] = weight.of_task(task)
        else:
            w = fast(weight)
            found[name] = w.shared if task is None or w.offset is None else w.dense()[task]
    return found
