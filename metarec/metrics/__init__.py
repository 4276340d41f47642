"""The figures of every table, in its order: a file of this folder and a line here for each (docs/new_metric.md).

    METRICS   name -> metric of ranks: f(rank [...], n_items) -> float64 [...], of the rank of the one relevant item
    LISTS     name -> metric of lists: f(lists) -> float, of all top-10 lists of a method (`metrics.lists.Lists`)

The function has the name of its file, and is imported when it is first asked for: help, completion and refusals know the
names without numpy. Names are those of metrics.json. Configuration, tables and tests go through these two mappings and
have no list of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy.typing as npt

    from metarec.metrics.lists import Lists

F = TypeVar("F", bound=Callable[..., Any])


class Entry(NamedTuple):
    """`heading`: what a table calls it. `k`: the cut-off that the function is given, where it has one."""

    file: str
    heading: str
    k: int | None = None


OF_RANKS: Mapping[str, Entry] = {
    "hr@1": Entry("hit_rate", "HR@1", k=1),
    "hr@5": Entry("hit_rate", "HR@5", k=5),
    "hr@10": Entry("hit_rate", "HR@10", k=10),
    "hr@20": Entry("hit_rate", "HR@20", k=20),
    "ndcg@10": Entry("ndcg", "NDCG@10", k=10),
    "mrr": Entry("reciprocal_rank", "MRR"),
}

OF_LISTS: Mapping[str, Entry] = {
    "coverage@10": Entry("coverage", "coverage@10"),
    "popularity_percentile@10": Entry("popularity_percentile", "popularity percentile of the top 10"),
}


class Functions(Mapping[str, F], Generic[F]):
    """The entries' functions by name; read-only."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> F:
        file, _, k = self._entries[name]
        function: Any = getattr(import_module(f"{__name__}.{file}"), file)
        return function if k is None else partial(function, k=k)  # type: ignore[return-value]

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without an import

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METRICS: Mapping[str, Callable[[npt.ArrayLike, int], npt.NDArray[Any]]] = Functions(OF_RANKS)
LISTS: Mapping[str, Callable[[Lists], float | None]] = Functions(OF_LISTS)


def heading(name: str) -> str:
    """What tables call a metric; one that is not known (of another version) by its name."""
    entry = OF_RANKS.get(name) or OF_LISTS.get(name)
    return name.upper() if entry is None else entry.heading
