"""Normalised discounted cumulative gain: ndcg@k = [rank <= k] / log2(1 + rank); the ideal gain of one relevant item is 1.

Source: Jarvelin & Kekalainen 2002.
Shapes: ranks [...] of integers >= 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from metarec.metrics.ranking import Array, found


def ndcg(rank: npt.ArrayLike, n_items: int, *, k: int) -> Array:
    """1 / log2(1 + rank) where the target is among the first ``k``, else 0.0."""
    ranks, there = found(rank, n_items)
    return np.where(there & (ranks <= k), 1.0 / np.log2(1.0 + ranks), 0.0)
