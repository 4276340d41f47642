"""How popular what is recommended is: the mean popularity percentile (0..1) of the items in all lists.

The percentile of an item is the share of items with fewer training events plus half of the share with equally many, itself
included, so that picking items evenly from the catalogue gives 0.5 and a list of the best sellers comes close to 1.

Source: Ji et al. 2020, arXiv:2005.13829 (popularity beside accuracy).
"""

from __future__ import annotations

import numpy as np

from metarec.metrics.lists import Lists


def popularity_percentile(lists: Lists) -> float:
    """Mean over all places of all lists; raises ValueError where there is no item in them."""
    counts = lists.item_counts
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    at_most = np.searchsorted(ordered, counts, side="right")
    percentile = (below + at_most) / (2.0 * counts.size)
    items = lists.top.ravel()
    items = items[items >= 1]
    if items.size == 0:
        raise ValueError("no item is recommended")
    return float(percentile[items - 1].mean())
