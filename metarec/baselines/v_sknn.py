"""v_sknn: Session-KNN in which the later events of the session count more, and rare items more than common ones.

    sim(s, n)  = sum over the items of s in n of weight(age)
    score(j)   = sum over the k most similar sessions n that hold j of
                 sim(s, n) * decay(age of the latest item of s in n) * (1 + idf_weighting * idf(j))
    idf(j)     = ln(sessions / sessions that hold j)

An item that occurs more than once in s has the age of its last event: 0 for the last event of the session, L events long.

| | weight(age) | decay(age) |
|---|---|---|
| same | 1 | 1 |
| linear | 1 - age / 10, at least 0 | 1 - (age + 1) / 10, at least 0 |
| div | (L - age) / L | 1 / (age + 1) |
| log | 1 / log10(age + 1.7) | 1 / log10(age + 2.7) |
| quadratic | ((L - age) / L)^2 | 1 / (age + 1)^2 |

Sampling, ties, `repeats` and what stands below as in `session_knn`; a session of similarity 0 is no neighbour.

Source: Ludewig & Jannach 2018, arXiv:1803.09587, sec. 3.2 (V-SKNN); weights, options and grid: session-rec. Three things are
not as in that code: its linear decay goes below 0 from the 11th item on, its linear weight is 0 from the 11th event of the
*session* on, and its idf counts the events of an item in place of its sessions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from metarec.baselines.baseline import Baseline, Scorer, scored
from metarec.baselines.log import TrainingLog
from metarec.baselines.neighbours import SessionIndex, most_similar
from metarec.baselines.repeats import latest_first
from metarec.ragged import Floats, Ints

WEIGHTS: dict[str, Callable[[Ints, int], Floats]] = {  # (age, events of the session)
    "same": lambda age, length: np.ones(len(age)),
    "linear": lambda age, length: np.maximum(1 - age / 10, 0),
    "div": lambda age, length: (length - age) / length,
    "log": lambda age, length: 1 / np.log10(age + 1.7),
    "quadratic": lambda age, length: ((length - age) / length) ** 2,
}
DECAYS: dict[str, Callable[[Ints], Floats]] = {
    "same": lambda age: np.ones(len(age)),
    "linear": lambda age: np.maximum(1 - (age + 1) / 10, 0),
    "div": lambda age: 1 / (age + 1),
    "log": lambda age: 1 / np.log10(age + 2.7),
    "quadratic": lambda age: 1 / (age + 1) ** 2,
}


def fit(
    log: TrainingLog, *, k: int, sample_size: int, weighting: str, weighting_score: str, idf_weighting: float,
    support: bool, repeats: bool,
) -> Scorer:  # fmt: skip
    """`support`: put the user's support in front of the session. `repeats`: its own items may be voted for."""
    index, weight_of, decay_of = SessionIndex.of(log), WEIGHTS[weighting], DECAYS[weighting_score]
    holding = np.maximum(index.sessions.sizes, 1)
    rare = 1 + idf_weighting * np.log(max(len(index.items), 1) / holding)

    def votes(history: Ints) -> tuple[Ints, Floats]:
        items, age = latest_first(history)
        found = index.find(items, sample_size)
        if not len(found.session):
            return found.session, np.empty(0)
        similar = np.add.reduceat(weight_of(age, len(history))[found.hit], found.start)
        near = most_similar(similar, k)
        latest = age[found.hit[found.start[near]]]  # the first common item is the latest
        return index.votes(found.session[near], similar[near] * decay_of(latest), rare, None if repeats else items)

    return lambda asked: scored(asked, log.below_one, asked.histories(support), votes)


ROWS = {
    "v_sknn": Baseline(
        fit,
        default={
            "k": 100, "sample_size": 1000, "weighting": "div", "weighting_score": "div", "idf_weighting": 0,
            "support": False, "repeats": True,
        },
        space={
            "k": (50, 100, 500, 1000, 1500),
            "sample_size": (500, 1000, 2500, 5000, 10000),
            "weighting": ("same", "linear", "div", "log", "quadratic"),
            "weighting_score": ("same", "linear", "div", "log", "quadratic"),
            "idf_weighting": (0, 1, 2, 5, 10),
            "support": (False, True),
            "repeats": (True, False),
        },
        uses_support=True,
        label="V-SKNN",
    )
}  # fmt: skip
