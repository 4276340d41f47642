"""Metrics as functions of the rank of the one relevant item, and two views of whole top-10 lists.

    hr@k   = [rank <= k]                       hit rate; with one relevant item also recall@k
    ndcg@k = [rank <= k] / log2(1 + rank)      the ideal gain of one relevant item is 1
    mrr    = 1 / rank

A target that the vocabulary does not hold has a rank above ``n_items`` and counts as a miss everywhere: at every
cut-off (also where k exceeds a tiny catalogue) and with reciprocal rank 0. That is why every metric takes ``n_items``.

Source: Jarvelin & Kekalainen 2002 (NDCG); Ji et al. 2020, arXiv:2005.13829 (popularity beside accuracy).
Shapes: ranks [...] of integers >= 1; top lists [n, k] of item indices 1..n_items, values below 1 meaning "no item".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Metric = Callable[[npt.ArrayLike, int], Array]


def _found(rank: npt.ArrayLike, n_items: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    ranks = np.asarray(rank)
    if not np.issubdtype(ranks.dtype, np.integer):
        raise TypeError(f"ranks are integers, got {ranks.dtype}")
    if n_items < 1 or (ranks.size and int(ranks.min()) < 1):
        raise ValueError("ranks and n_items start at 1")
    return ranks.astype(np.int64), ranks <= n_items


def hit_rate(rank: npt.ArrayLike, k: int, n_items: int) -> Array:
    """1.0 where the target is among the first ``k``, else 0.0; float64 of the shape of ``rank``."""
    ranks, found = _found(rank, n_items)
    return (found & (ranks <= k)).astype(np.float64)


def ndcg(rank: npt.ArrayLike, k: int, n_items: int) -> Array:
    """1 / log2(1 + rank) where the target is among the first ``k``, else 0.0."""
    ranks, found = _found(rank, n_items)
    return np.where(found & (ranks <= k), 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(rank: npt.ArrayLike, n_items: int) -> Array:
    """1 / rank, and 0.0 for an unknown target."""
    ranks, found = _found(rank, n_items)
    return np.where(found, 1.0 / ranks, 0.0)


def _hit_rate_at(k: int) -> Metric:
    return lambda rank, n_items: hit_rate(rank, k, n_items)


# name -> function(rank, n_items); the names are those of metrics.json, in the order of the table's columns
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "hr@1": _hit_rate_at(1),
        "hr@5": _hit_rate_at(5),
        "hr@10": _hit_rate_at(10),
        "hr@20": _hit_rate_at(20),
        "ndcg@10": lambda rank, n_items: ndcg(rank, 10, n_items),
        "mrr": reciprocal_rank,
    }
)


def coverage(top: npt.ArrayLike, n_items: int) -> float:
    """Share of the catalogue that stands in at least one of the lists ``top`` [n, k]."""
    items = np.unique(np.asarray(top))
    items = items[items >= 1]
    if items.size and int(items[-1]) > n_items:
        raise ValueError(f"item {int(items[-1])} is outside the catalogue of {n_items}")
    return float(items.size) / n_items


def popularity_percentile(top: npt.ArrayLike, popularity: npt.ArrayLike) -> float:
    """Mean popularity percentile (0..1) of the items recommended in ``top`` [n, k].

    ``popularity`` [n_items] counts the training events of item i + 1. The percentile of an item is the share of items
    with fewer events plus half of the share with equally many, itself included, so that picking items evenly from
    the catalogue gives 0.5 and a list of the best sellers comes close to 1.
    """
    counts = np.asarray(popularity)
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    at_most = np.searchsorted(ordered, counts, side="right")
    percentile = (below + at_most) / (2.0 * counts.size)
    items = np.asarray(top).ravel()
    items = items[items >= 1]
    if items.size == 0:
        raise ValueError("no item is recommended")
    return float(percentile[items - 1].mean())
