"""Hit rate: hr@k = [rank <= k]; with one relevant item also recall@k.

Shapes: ranks [...] of integers >= 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from metarec.metrics.ranking import Array, found


def hit_rate(rank: npt.ArrayLike, n_items: int, *, k: int) -> Array:
    """1.0 where the target is among the first ``k``, else 0.0; float64 of the shape of ``rank``."""
    ranks, there = found(rank, n_items)
    return (there & (ranks <= k)).astype(np.float64)
