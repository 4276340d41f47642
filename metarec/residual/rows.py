"""Rows: a user is a delta of the item rows that his support touches, on frozen pretrained weights.

    theta_t[i] = theta_base[i] + alpha * (delta[i] + d_t[i])       rows i of the item tables
    d_t[i] = 0 unless item i stands in the support of t, as an event of a prefix or as a label

Item tables are the input embedding and the output layer with its bias (`item_rows` of a model). A row that no support item
has is the base's, bit for bit. The gradient of an output layer has all rows; the inner loop sees those of the support alone,
which is a constant mask, so gradients of any order are exact for the function that is computed. What a task keeps is its
rows (`core.offsets.Rows`); no table is copied for it.

delta is 0 and stays 0 (`learn_start` off): then step sizes are what the outer loop learns; or it is learned for all rows.

Source: a sparse difference over frozen weights, Guo, Rush & Kim 2021 (diff pruning), arXiv:2012.07463; there what may
differ is learned, here it is what the support touches.
Shapes: T tasks, U items that a support touches, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarec.core.batch import ImageBatch, PairBatch
from metarec.core.weights import FastWeight, Params, Weights
from metarec.options import Refusal, matching
from metarec.residual import Named
from metarec.residual.on import FullResidual


@dataclass
class Config:
    """conf/residual/rows.yaml"""

    name: str = "rows"
    alpha: float = 1.0
    targets: list[str] | None = None  # None = all item tables
    learn_start: bool = False

    frozen: ClassVar[bool] = True
    of_support: ClassVar[bool] = True  # what adapts depends on the support pairs

    def refused(self) -> Iterator[Refusal]:
        """alpha 0: the model would stay the pretrained one whatever is learned."""
        if self.alpha == 0:
            yield "alpha", "with alpha 0 no weight can move", "give a value other than 0"


def tables(config: Config, model: Named) -> dict[str, int]:
    """Name of each item table that adapts -> what is taken off an item's number to give its row (0 or 1).

    Raises ConfigError for a pattern that matches none.
    """
    there: Mapping[str, int] = getattr(model, "item_rows", {})
    if config.targets is None:
        return dict(there)
    chosen = matching("residual.targets", config.targets, there, "item table")
    return {name: less for name, less in there.items() if name in chosen}


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """A delta for every item table, and all of them adapt."""
    return dict.fromkeys(tables(config, model), True)


def build(config: Config, base: Params, model: Named) -> RowsResidual:
    """The tables are those of `targets`; null: all that the model names."""
    return RowsResidual(base, tables(config, model), config.alpha, config.learn_start)


@dataclass(frozen=True)
class RowsResidual:
    base: Params
    tables: Mapping[str, int]
    alpha: float = 1.0
    learn_start: bool = False

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names that the outer loop does not train."""
        return () if self.learn_start else tuple(self.tables)

    def most_rows(self, pairs: PairBatch | ImageBatch) -> int:
        """The most rows that a task of these support pairs has of a table."""
        return int(touched(pairs)[1].sum(1).max())

    def init(self, generator: torch.Generator) -> Params:
        """Zero for every table; nothing is drawn."""
        return {name: torch.zeros_like(self.base[name]) for name in self.tables}

    def compose(self, phi: Weights) -> Weights:
        """base + alpha * delta, as `residual.on` has it."""
        return FullResidual(self.base, self.alpha).compose(phi)

    def compose_on(self, pairs: PairBatch | ImageBatch) -> Callable[[Weights], Weights]:
        """`compose` for a loss of these pairs: each task's own gradient of a table has the rows of its items alone."""
        items, real = touched(pairs)

        def compose(phi: Weights) -> Weights:
            own = dict(phi)
            for name, less in self.tables.items():
                weight = phi[name]
                if isinstance(weight, FastWeight):
                    own[name] = weight.within(items - less, real)
            return self.compose(own)

        return compose


def touched(pairs: PairBatch | ImageBatch) -> tuple[Tensor, Tensor]:
    """The items of each task's prefixes and labels: int64 [T, U], rising, the largest repeated as filling; bool [T, U],
    which are none. A task without any has filling alone, of item 1. Unknown targets, breaks and padding are no items.
    """
    assert isinstance(pairs, PairBatch)  # no model of images names an item table
    found = torch.cat([pairs.sequences.items, pairs.target.clamp(min=0)], 1).sort(1).values
    new = found > 0
    new[:, 1:] &= found[:, 1:] != found[:, :-1]
    counts = new.sum(1, keepdim=True)
    width = max(int(counts.max()), 1) if counts.numel() else 1
    first = new.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    real = torch.arange(width, device=found.device) < counts
    return torch.where(real, found.gather(1, first), found[:, -1:].clamp(min=1)), real
