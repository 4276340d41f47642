"""markov: what followed the last item of the prefix in the training sessions.

    score(j | last = i) = sum over d = 1..window of n_d(i, j) / d  +  smoothing * share of j in the training events

n_d(i, j) counts how often j stands d events behind i in one session. window=1 is the first-order Markov chain, its counts
smoothed by a Dirichlet prior of mass `smoothing` around popularity (below 1, it decides between equal counts alone);
a wider window is sequential rules with weight 1/d.

Source: Kamehkhosh, Jannach & Ludewig 2017 (sequential rules), as in Ludewig & Jannach 2018, arXiv:1803.09587, sec. 3.1.
"""

from __future__ import annotations

import numpy as np

from metarec.baselines.baseline import Baseline, Scorer, scored
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats, Ints, running


def fit(log: TrainingLog, *, window: int, smoothing: float) -> Scorer:
    """`window` >= 1, in known events; `smoothing` > 0, in events."""
    item, session, n = log.sessions.values, log.sessions.owners(), log.n_items + 1
    arcs, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for distance in range(1, window + 1):
        inside = session[distance:] == session[:-distance]
        arc, count = np.unique((item[:-distance] * n + item[distance:])[inside], return_counts=True)
        arcs.append(arc)
        weights.append(count / distance)
    arc, place = np.unique(np.concatenate(arcs), return_inverse=True)
    weight: Floats = np.bincount(place, weights=np.concatenate(weights), minlength=len(arc)).astype(np.float64)
    successor, offsets = arc % n, running(np.bincount(arc // n, minlength=n))
    base = smoothing * log.popularity / max(len(item), 1)

    def votes(history: Ints) -> tuple[Ints, Floats]:
        own = slice(offsets[history[-1]], offsets[history[-1] + 1])
        return successor[own], weight[own]

    return lambda asked: scored(asked, base, asked.histories(False), votes)


ROWS = {
    "markov": Baseline(
        fit,
        default={"window": 1, "smoothing": 0.1},
        space={"window": (1, 2, 3, 5, 10), "smoothing": (0.1, 1.0, 10.0, 100.0)},
        label="Markov, first order",
    )
}
