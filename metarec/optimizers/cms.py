"""CMS, a continuum of timescales: every parameter belongs to one level, and a level steps once in a chunk of steps.

    G_l <- G_l + g                                      at every step t = 1, 2, ...
    w_l <- base(w_l, G_l or G_l / C_l),   G_l <- 0      where t mod C_l = 0;     lr_l = lr, lr / C_l or lr / sqrt(C_l)

`base` is Adam, AdamW or SGD with moments of its own for each parameter, so with all C_l = 1 this is the base, bit for bit.
With delta_adam or delta_sgd a matrix forgets as well when it steps, along all that it has read in the chunk (`delta`);
`lr_scale` does not scale what it forgets.
How gradients of a chunk are reduced (sum, mean) and how a level's step size is scaled are two choices. Adam does not see
the first, but for eps; with it `lr_scale: inverse` makes a level slow twice over, C_l times rarer steps of a C_l-th: in T
steps it moves T lr / C_l^2, and the level at 256 is frozen.

t counts the gradients that the optimizer was given (a guard may leave steps out). What is pending, and t, stand in the
optimizer's state, so a run that is resumed in mid-chunk ends with the same bits. `flush`: behind the last step of a training
the levels in mid-chunk step with what they have.

**Levels** are lists of shell patterns over the names of what is trained. Unless told otherwise: learned inner step sizes are
of the second level, weights that the model calls slower (`slower`) of theirs, everything else of the first.

Source: Behrouz et al. 2025, Nested Learning, the continuum memory system. Shapes: parameters are of any shape [*S].
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarec.errors import ConfigError
from metarec.optimizers import Given
from metarec.optimizers.base import base_of, step
from metarec.optimizers.delta import Delta, matrices_of
from metarec.options import Refusal, matching, ranged

RATES = "rates/*"  # learned inner step sizes
SLOWER = (("medium.*",), ("slow.*",))  # of a model that does not say: its levels stand in its names
SGD_LR = 0.1  # what `lr: null` stands for with base=sgd
# slots: the gradients since the last step [*S], and t; of a level's first parameter: its number of steps, and t at the last
OWN = ("pending", "seen", "updates", "stepped")


@dataclass
class Config:
    """conf/optimizer/cms.yaml"""

    name: str = "cms"
    base: str = ranged("adam", choices=["adam", "adamw", "sgd", "delta_adam", "delta_sgd"])
    lr: float | None = ranged(None, min=0, exclusive=["min"])  # None = that of adam, with base=sgd 0.1
    chunks: list[int] = ranged([1, 16, 256], min=1)
    levels: list[list[str]] | None = None  # None = as the model says
    grad_reduction: str = ranged("sum", choices=["sum", "mean"])
    lr_scale: str = ranged("none", choices=["none", "inverse", "sqrt"])
    flush: bool = True
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    momentum: float = ranged(0.0, min=0, max=1, exclusive=["max"])
    weight_decay: float = ranged(0.0, min=0)
    decay: float = ranged(1e-3, min=0)  # these three of the delta rule
    form: str = ranged("explicit", choices=["explicit", "proximal"])
    unstable: str = ranged("stop", choices=["stop", "clip"])
    clip_norm: float = ranged(10.0, min=0)

    asks_names: ClassVar[bool] = True

    @property
    def adaptive(self) -> bool:
        """Whether the size of a step does not follow that of the gradient."""
        return self.base not in ("sgd", "delta_sgd")

    @property
    def slots(self) -> int:
        """Numbers kept for every number trained: the base's, and what is pending (of the first level often nothing)."""
        return (2 if self.adaptive else int(self.momentum > 0)) + int(max(self.chunks) > 1)

    def refused(self) -> Iterator[Refusal]:
        """Another number of levels than of chunks."""
        if self.levels is not None and len(self.levels) != len(self.chunks):
            what = f"{len(self.levels)} levels, and optimizer.chunks has {len(self.chunks)} sizes"
            yield "levels", what, "give a chunk size for each level"


def build(config: Config, given: Given) -> CMS:
    """A group of parameters for each level of each group given. ConfigError for levels that are no partition."""
    level = levels(config, given)
    lr = config.lr if config.lr is not None else (given.lr if config.adaptive else SGD_LR)
    number = {value: level[name] for name, value in given.params.items()}
    groups = []
    for group in given.groups:
        for at, chunk in enumerate(config.chunks):
            own = [value for value in group["params"] if number[value] == at]
            if own:
                scaled = group.get("lr", lr) / {"none": 1, "inverse": chunk, "sqrt": chunk**0.5}[config.lr_scale]
                groups.append({**group, "params": own, "lr": scaled})
    base: torch.optim.Optimizer = base_of(
        config.base.removeprefix("delta_"), groups, lr=lr, betas=config.betas, eps=config.eps, momentum=config.momentum,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    if config.base.startswith("delta_"):
        base = Delta(base, matrices_of(given, config.decay), config.decay, config.form, config.unstable)
    chunks = {value: config.chunks[at] for value, at in number.items()}
    return CMS(base, chunks, config.grad_reduction, config.flush, number)


def levels(config: Config, given: Given) -> dict[str, int]:
    """Name -> number of its level, 0 the fastest; of every parameter one. ConfigError where that cannot be."""
    names = list(given.params)
    if config.levels is None:
        found = {name: min(_usual(name, given.slower or SLOWER), len(config.chunks) - 1) for name in names}
        if len(config.chunks) > 1 and not any(found.values()):
            what = f"nothing that is trained is slow ({', '.join(names)}), so this would be optimizer={config.base}"
            fix = f"use optimizer={config.base}, or give optimizer.levels=[[PATTERN],...], a list for each chunk size"
            raise ConfigError("optimizer.levels", "null", what, fix)
        return found
    of_level = [matching("optimizer.levels", patterns, names, "trained parameter") for patterns in config.levels]
    for name in names:
        its = [str(at + 1) for at, own in enumerate(of_level) if name in own]
        if len(its) != 1:
            what = f"stands in levels {' and '.join(its)}, and must have one" if its else "stands in no level"
            raise ConfigError("optimizer.levels", name, what, "change the patterns so that exactly one level has it")
    return {name: next(at for at, own in enumerate(of_level) if name in own) for name in names}


def _usual(name: str, slower: tuple[tuple[str, ...], ...]) -> int:
    if fnmatch.fnmatchcase(name, RATES):
        return 1
    return next(
        (at for at, own in enumerate(slower, 1) if any(fnmatch.fnmatchcase(name, pattern) for pattern in own)), 0
    )


class CMS(torch.optim.Optimizer):
    """`chunk`, `level`: C of each parameter, and the number of its level. Groups and state are the base's own, so a step
    size set here is set there."""

    def __init__(
        self, base: torch.optim.Optimizer, chunk: Mapping[Tensor, int], grad_reduction: str, flush: bool,
        level: Mapping[Tensor, int],
    ) -> None:  # fmt: skip
        super().__init__(base.param_groups, {})
        self.level, self.first = dict(level), {at: value for value, at in reversed(list(level.items()))}
        self.base, self.chunk, self.grad_reduction, self.flush = base, dict(chunk), grad_reduction, flush
        self.state = base.state

    def recording(self) -> AbstractContextManager[None]:
        """Around the losses of a step, where the base is to see what matrices read."""
        return self.base.recording() if isinstance(self.base, Delta) else nullcontext()

    def shown(self) -> dict[str, float]:
        """Of a base with the delta rule, for history.jsonl."""
        return self.base.shown() if isinstance(self.base, Delta) else {}

    @property
    def seen(self) -> int:
        """t: how many gradients there were."""
        return max(
            (int(self.state[value]["seen"]) for value in self.chunk if "seen" in self.state.get(value, {})), default=0
        )

    def timescales(self) -> dict[str, dict[str, Any]]:
        """`levels`: by number from 1, C, how many parameters and numbers, updates, and gradients since the last."""
        out, now = {}, self.seen
        for at, first in sorted(self.first.items()):
            state, own = self.state.get(first, {}), [value for value, level in self.level.items() if level == at]
            out[str(at + 1)] = {
                "chunk": self.chunk[first], "parameters": len(own), "numbers": sum(value.numel() for value in own),
                "updates": int(state.get("updates", 0)), "since": now - int(state.get("stepped", 0)),
            }  # fmt: skip
        return {"levels": out, **(self.base.timescales() if isinstance(self.base, Delta) else {})}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the gradients that stand at the parameters; of those whose chunk is not full nothing moves."""
        assert closure is None
        now = self.seen + 1
        seen = torch.tensor(now)
        for value, chunk in self.chunk.items():
            state = self.state[value]
            state["seen"] = seen
            if chunk == 1:
                continue
            if value.grad is not None:
                state["pending"] = state["pending"].add_(value.grad) if "pending" in state else value.grad
            value.grad = None if now % chunk else self._reduced(state, chunk)
        self._step(now, {value for value, chunk in self.chunk.items() if not now % chunk})

    @torch.no_grad()
    def finish(self) -> None:
        """With `flush`: one step of what is pending, of each level in mid-chunk."""
        if not self.flush or not any("pending" in state for state in self.state.values()):
            return
        now = self.seen
        for value, chunk in self.chunk.items():
            value.grad = self._reduced(self.state[value], now % chunk)
        self._step(now, {value for value, chunk in self.chunk.items() if now % chunk})

    def _step(self, now: int, due: Collection[Tensor]) -> None:
        """The base's step, of what has a gradient, and whose level then has stepped at t = now; `due`: whose chunk ends."""
        if isinstance(self.base, Delta):
            self.base.due = {name for name, value in self.base.matrices.items() if value in due}
        step(self.base, OWN)
        for at in {self.level[value] for value in self.level if value.grad is not None}:
            state = self.state[self.first[at]]
            state["updates"], state["stepped"] = torch.tensor(int(state.get("updates", 0)) + 1), torch.tensor(now)

    def _reduced(self, state: dict[str, Tensor], count: int) -> Tensor | None:
        """What is pending of `count` steps, taken away; None where no loss has used the parameter."""
        pending = state.pop("pending", None)
        return pending if pending is None or self.grad_reduction == "sum" else pending / count
