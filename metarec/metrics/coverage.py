"""Catalogue coverage: the share of all items that somebody is recommended.

Source: Herlocker et al. 2004, sec. 5.2.1.
"""

from __future__ import annotations

import numpy as np

from metarec.metrics.lists import Lists


def coverage(lists: Lists) -> float:
    """Share of the catalogue that stands in at least one list."""
    items = np.unique(lists.top)
    items = items[items >= 1]
    if items.size and int(items[-1]) > lists.n_items:
        raise ValueError(f"item {int(items[-1])} is outside the catalogue of {lists.n_items}")
    return float(items.size) / lists.n_items
