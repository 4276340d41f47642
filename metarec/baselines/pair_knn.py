"""pair_knn: the Session-KNN of the published MARS table, to the last digit.

Neighbours are the training *pairs* in stored order; similarity is the Jaccard index of the sets of the last 3 items of the
two prefixes. The 100 most similar pairs (stable sort, so of equal ones the first stored, and the first stored of all where
fewer share anything) vote for their targets with their similarity. Items are ranked by votes, ties by the earlier first
vote, also where the votes add up to nothing; below them the other targets of training by how often they are one, ties by
the first stored; below these what is never a target. An unknown event keeps its place among the last 3 and equals no item.

The scores give that order without a tie: what the published code leaves to a sort is written out here.

Source: the protocol published with data set doi:10.7910/DVN/BMY3UD.
"""

from __future__ import annotations

import numpy as np

from metarec.baselines.asked import Asked
from metarec.baselines.baseline import Baseline, Scorer
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats, Ints, Ragged, distinct, ranges

LAST, K = 3, 100


def fit(log: TrainingLog) -> Scorer:
    """Pairs with an unknown target are left out; prefixes count by their last `LAST` events."""
    target = np.asarray(log.item[log.pair_event], dtype=np.int64)
    begin, event, target = (part[target > 0] for part in (log.pair_begin, log.pair_event, target))
    first = np.maximum(begin, event - LAST)
    pair = np.repeat(np.arange(len(target)), event - first)
    pair, item, size = _sets(pair, log.item[ranges(first, event - first)].astype(np.int64), len(target))
    holding = Ragged.by_row(item, pair, log.n_items + 1)  # by item: the pairs with it, in stored order

    # every target by frequency, then by first place; then the others by column
    often = np.bincount(target, minlength=log.n_items + 1)[1:]
    place = np.full(log.n_items, len(target))
    np.minimum.at(place, target - 1, np.arange(len(target)))
    unvoted = np.lexsort((place, -often)) + 1

    def order(prefix: Ints) -> Ints:
        """All items, the best first."""
        _, own, n_own = _sets(np.zeros(min(len(prefix), LAST), np.int64), prefix[-LAST:], 1)
        near, common = np.unique(holding.gather(own), return_counts=True)
        similarity = common / (n_own[0] + size[near] - common)
        best = np.argsort(-similarity, kind="stable")[:K]
        near, similarity = near[best], similarity[best]
        if len(near) < K:
            rest = np.setdiff1d(np.arange(min(K + len(near), len(target))), near)[: K - len(near)]
            near, similarity = np.append(near, rest), np.append(similarity, np.zeros(len(rest)))
        voted, at, number = np.unique(target[near], return_index=True, return_inverse=True)
        votes = np.bincount(number, weights=similarity, minlength=len(voted))  # added up in the order of the neighbours
        voted = voted[np.lexsort((at, -votes))]
        return np.concatenate([voted, unvoted[~np.isin(unvoted, voted)]])

    def scores(asked: Asked) -> Floats:
        out = np.empty((len(asked.prefix), log.n_items))
        for row in range(len(out)):
            out[row, order(asked.prefix[row]) - 1] = np.arange(log.n_items, 0, -1)
        return out.reshape(len(asked), asked.n_query, log.n_items)

    return scores


def _sets(row: Ints, item: Ints, n_rows: int) -> tuple[Ints, Ints, Ints]:
    """Events of rows -> (row, item) of each distinct known item, and the size of each row's set.

    Unknown events count towards the size, each as an item of its own.
    """
    known = item > 0
    n = item.max(initial=0) + 1
    own, member = np.divmod(distinct(row[known] * n + item[known]), n)
    size = np.bincount(own, minlength=n_rows) + np.bincount(row[~known], minlength=n_rows)
    return own, member, size


ROWS = {"pair_knn": Baseline(fit, label="pair KNN", in_full=False)}  # only there to be reproduced
