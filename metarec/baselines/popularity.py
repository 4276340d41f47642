"""popularity, recent_popularity and leaky_popularity: the same list for everybody, by how often items occur.

Popularity at the time of asking is another thing than popularity over all time, and the stronger competitor of the two where
taste moves; so `recent_popularity` counts the latest share of the training events alone. Items that tie there, as all that
do not occur there do, are ordered by popularity over all time.

`leaky_popularity` counts every event of the log, the test targets among them. It knows what it is asked about and is no
baseline: it is here because published tables hold it (S3-Rec's, Zhou et al. 2020, arXiv:2008.07873) and can be reproduced by
nothing else.

Source: Ji et al. 2020, arXiv:2005.13829.
"""

from __future__ import annotations

import math

import numpy as np

from metarec.baselines.asked import Asked
from metarec.baselines.baseline import Baseline, Scorer
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats


def fit(log: TrainingLog) -> Scorer:
    """Counts training events over all time; nothing of the asker is read."""
    return _same_for_all(log.below_one)


def fit_leaky(log: TrainingLog) -> Scorer:
    """Counts the events of the whole log, those of validation and test users and the targets themselves among them."""
    item = np.asarray(log.item, dtype=np.int64)
    return _same_for_all(np.bincount(item[item > 0] - 1, minlength=log.n_items).astype(np.float64))


def fit_recent(log: TrainingLog, *, share: float) -> Scorer:
    """`share` in (0, 1]: of the training events, the latest; those of one time come in together."""
    time = log.event_time
    wanted = math.ceil(share * len(time))
    since = np.partition(time, len(time) - wanted)[len(time) - wanted]
    recent = np.bincount(log.sessions.values[time >= since] - 1, minlength=log.n_items)
    return _same_for_all(recent + log.below_one)


def _same_for_all(scores: Floats) -> Scorer:
    def asked_of(asked: Asked) -> Floats:
        return np.tile(scores, (len(asked), asked.n_query, 1))

    return asked_of


ROWS = {
    "popularity": Baseline(fit),
    "recent_popularity": Baseline(
        fit_recent, default={"share": 0.1}, space={"share": (0.01, 0.03, 0.1, 0.3)}, needs_clock=True
    ),
    "leaky_popularity": Baseline(fit_leaky, in_full=False),  # only there to be reproduced
}
