"""Reciprocal rank, whose mean is the MRR: 1 / rank, not cut off.

Shapes: ranks [...] of integers >= 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from metarec.metrics.ranking import Array, found


def reciprocal_rank(rank: npt.ArrayLike, n_items: int) -> Array:
    """1 / rank, and 0.0 for an unknown target."""
    ranks, there = found(rank, n_items)
    return np.where(there, 1.0 / ranks, 0.0)
