"""What every metric of a rank is and begins with: which ranks are allowed, and which targets can be found at all.

A metric of ranks is a function of the rank of the one relevant item, 1 is best. Two laws hold for each of them, and are
tested over all (tests/metrics/test_ranks.py, test_ranking.py): an oracle has exactly 1.0, and a target that the vocabulary
does not hold counts as a miss, 0.0. Such a target has a rank above ``n_items``, which a cut-off alone does not see where k
exceeds a tiny catalogue. That is why every metric takes ``n_items``.

Shapes: ranks [...] of integers >= 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Metric = Callable[[npt.ArrayLike, int], Array]


def found(rank: npt.ArrayLike, n_items: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The ranks as int64, and which of them are those of items in the catalogue; raises TypeError, ValueError."""
    ranks = np.asarray(rank)
    if not np.issubdtype(ranks.dtype, np.integer):
        raise TypeError(f"ranks are integers, got {ranks.dtype}")
    if n_items < 1 or (ranks.size and int(ranks.min()) < 1):
        raise ValueError("ranks and n_items start at 1")
    return ranks.astype(np.int64), ranks <= n_items
