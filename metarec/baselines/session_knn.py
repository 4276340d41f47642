"""session_knn: what the training sessions hold that share most items with this one.

    score(j) = sum over the k most similar sessions n that hold j of sim(s, n)
    cosine   |s and n| / sqrt(|s| |n|)          jaccard   |s and n| / |s or n|          of the sets of items

Neighbours are looked for among the `sample_size` newest sessions that share an item; of equally similar ones the newer is
nearer. Items without votes stand below, by popularity, which also decides between equal votes. Neighbours hold the items of
the session itself, and so vote for them first; where nobody has an item twice, `repeats=False` takes these votes away.

Source: Jannach & Ludewig 2017; Ludewig & Jannach 2018, arXiv:1803.09587, sec. 3.2 (SKNN); options and grid: session-rec. Its
cosine divides by sqrt(|s|) and *multiplies* by sqrt(|n|); here it is the cosine of the paper.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from metarec.baselines.baseline import Baseline, Scorer, scored
from metarec.baselines.log import TrainingLog
from metarec.baselines.neighbours import SessionIndex, most_similar
from metarec.ragged import Floats, Ints

# (common items, items of this session, items of the other ones)
SIMILARITIES: dict[str, Callable[[Ints, int, Ints], Floats]] = {
    "cosine": lambda common, own, other: common / np.sqrt(own * other),
    "jaccard": lambda common, own, other: common / (own + other - common),
}


def fit(log: TrainingLog, *, k: int, sample_size: int, similarity: str, support: bool, repeats: bool) -> Scorer:
    """`support`: put the user's support in front of the session. `repeats`: its own items may be voted for."""
    index, measure = SessionIndex.of(log), SIMILARITIES[similarity]
    size = index.items.sizes

    def votes(history: Ints) -> tuple[Ints, Floats]:
        items = np.unique(history)
        found = index.find(items, sample_size)
        similar = measure(found.common, len(items), size[found.session])
        near = most_similar(similar, k)
        return index.votes(found.session[near], similar[near], without=None if repeats else items)

    return lambda asked: scored(asked, log.below_one, asked.histories(support), votes)


ROWS = {
    "session_knn": Baseline(
        fit,
        default={"k": 100, "sample_size": 1000, "similarity": "cosine", "support": False, "repeats": True},
        space={
            "k": (50, 100, 500, 1000, 1500),
            "sample_size": (500, 1000, 2500, 5000, 10000),
            "similarity": ("cosine", "jaccard"),
            "support": (False, True),
            "repeats": (True, False),
        },
        uses_support=True,
        label="Session-KNN",
    )
}
