"""One row for each query target under every method: what all figures of a run are made of.

Shapes: n targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from metarec.metrics import METRICS
from metarec.metrics.finite import no_figure

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TargetRecords:
    """One row for each query target [n]; the same rows for every method.

    user, episode, position: row of the user, of the episode, place of the target in its query set (int64 [n]).
    repeat: the target is already in its prefix or in the support (bool [n]).
    ranks: method -> rank int64 [n]; above ``n_items`` where the target is unknown, for every method alike.
    history: number of events that the user has before the query (int64 [n]; None: no slices by it).
    popularity: training events of the target (int64 [n], of an unknown one anything), with ``item_counts``: those of
        every item (int64 [n_items]), which say how much is much (None: no slices by it).
    """

    user: Ints
    episode: Ints
    position: Ints
    repeat: npt.NDArray[np.bool_]
    ranks: Mapping[str, Ints]
    n_items: int
    history: Ints | None = None
    popularity: Ints | None = None
    item_counts: Ints | None = None

    def __post_init__(self) -> None:
        columns = {"episode": self.episode, "position": self.position, "repeat": self.repeat, **self.ranks}
        columns |= {
            name: column
            for name, column in (("history", self.history), ("popularity", self.popularity))
            if column is not None
        }
        wrong = [name for name, column in columns.items() if column.shape != self.user.shape]
        if self.user.ndim != 1 or self.user.size == 0 or not self.ranks or wrong:
            raise ValueError(f"records need one row a target and one method or more; {self.user.shape}, wrong: {wrong}")
        differing = [name for name, rank in self.ranks.items() if not np.array_equal(rank > self.n_items, self.unknown)]
        if differing:
            raise ValueError(f"methods disagree on which targets are unknown: {differing}")
        if (self.popularity is None) != (self.item_counts is None):
            raise ValueError("popularity and item_counts go together: targets are popular among all items")
        if self.item_counts is not None and self.item_counts.shape != (self.n_items,):
            raise ValueError(f"item_counts of shape {self.item_counts.shape}: one for each of {self.n_items} items")

    @cached_property
    def unknown(self) -> npt.NDArray[np.bool_]:
        """Targets outside the vocabulary, bool [n]."""
        unknown: npt.NDArray[np.bool_] = next(iter(self.ranks.values())) > self.n_items
        return unknown

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """Metric values [n, methods x metrics], metrics fastest; DivergedError, of a user, where one is not finite."""
        columns = [metric(rank, self.n_items) for rank in self.ranks.values() for metric in METRICS.values()]
        values: npt.NDArray[np.float64] = np.stack(columns, axis=1)
        finite = np.isfinite(values)
        if not bool(finite.all()):
            row, column = np.argwhere(~finite)[0].tolist()
            method, metric = list(self.ranks)[column // len(METRICS)], list(METRICS)[column % len(METRICS)]
            error = no_figure(f"{method}, {metric} of target {row}", values[row, column])
            error.user = int(self.user[row])
            raise error
        return values

    def column(self, method: str, metric: str) -> int:
        """The column of ``values`` that holds ``metric`` of ``method``."""
        return list(self.ranks).index(method) * len(METRICS) + list(METRICS).index(metric)

    def columns(self, method: str) -> slice:
        """The columns of ``values`` that hold the metrics of ``method``, in the order of ``METRICS``."""
        first = self.column(method, next(iter(METRICS)))
        return slice(first, first + len(METRICS))
