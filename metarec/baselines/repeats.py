"""repeat_last, frequent_prefix, frequent_support: people come back to what they had.

    repeat_last        the items of the prefix, the latest first
    frequent_prefix    how often an item occurs in the prefix                              ties by popularity
    frequent_support   sum of decay^age over its events in support and prefix              ties by the later event

Age counts known events from the end, 0 for the last one. decay=1 is a plain count; a small one comes down to the latest
items first. Whatever does not occur stands below, by popularity.

Source: frequent_prefix is S-POP of Hidasi et al. 2016, arXiv:1511.06939, sec. 4 (there too ties go by popularity); repeats
as a strong row: Anderson et al. 2014, "The dynamics of repeat consumption".
"""

from __future__ import annotations

import numpy as np

from metarec.baselines.baseline import Baseline, Scorer, levels, scored
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats, Ints


def latest_first(history: Ints) -> tuple[Ints, Ints]:
    """Distinct items of a history, the latest first, and the age of the last event of each.

    history [E] -> [D], [D], D of them distinct.
    """
    items, age = np.unique(history[::-1], return_index=True)
    order = np.argsort(age)
    return items[order], age[order]


def fit_last(log: TrainingLog) -> Scorer:
    """Reads the prefix alone; has no options."""

    def votes(history: Ints) -> tuple[Ints, Floats]:
        items, _ = latest_first(history)
        return items, np.arange(len(items), 0, -1.0)

    return lambda asked: scored(asked, log.below_one, asked.histories(False), votes)


def fit_prefix(log: TrainingLog) -> Scorer:
    """Reads the prefix alone; a count, with no decay and no options."""

    def votes(history: Ints) -> tuple[Ints, Floats]:
        items, counts = np.unique(history, return_counts=True)
        return items, counts.astype(np.float64)

    return lambda asked: scored(asked, log.below_one, asked.histories(False), votes)


def fit_support(log: TrainingLog, *, decay: float) -> Scorer:
    """`decay` in (0, 1]: what an event counts against the one behind it."""

    def votes(history: Ints) -> tuple[Ints, Floats]:
        items, age, place = np.unique(history[::-1], return_index=True, return_inverse=True)
        level = levels(np.bincount(place, weights=decay ** np.arange(len(history))))
        standing = np.empty(len(items))
        standing[np.lexsort((-age, level))] = np.arange(1.0, len(items) + 1)
        return items, standing

    return lambda asked: scored(asked, log.below_one, asked.histories(True), votes)


ROWS = {
    "repeat_last": Baseline(fit_last),
    "frequent_prefix": Baseline(fit_prefix, label="frequent in prefix"),
    "frequent_support": Baseline(
        fit_support,
        default={"decay": 1.0},
        space={"decay": (1.0, 0.98, 0.95, 0.9, 0.8, 0.6)},
        label="frequent in support",
        uses_support=True,
    ),
}
