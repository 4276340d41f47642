"""What a metric of whole lists may know: the lists of one method, the catalogue, and what their users have had.

Items are numbered 1..V; in a list, values below 1 mean "no item".

Shapes: N episodes (one user each), Q queries of each, k = 10 places (fewer in a smaller catalogue), V items, n entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Had(NamedTuple):
    """Who has had what: distinct known items of every row, int64 [n] each, sorted by row, then item."""

    row: Ints
    item: Ints


@dataclass(frozen=True)
class Lists:
    """top int64 [N, Q, k]: the best items of every query, best first. item_counts int64 [V]: training events of each item.

    support_of, prefix_of: make what `support` and `prefix` give; made once for all methods (`evaluate.known`).
    """

    top: Ints
    n_items: int
    item_counts: Ints
    support_of: Callable[[], Had]
    prefix_of: Callable[[], Had]

    @property
    def support(self) -> Had:
        """What the user of each episode has had in the support pairs in use, prefixes and targets; rows 0..N-1."""
        return self.support_of()

    @property
    def prefix(self) -> Had:
        """What stands in each query's own prefix, whole; rows 0..N*Q-1, episode * Q + query."""
        return self.prefix_of()
