"""random: every order of the catalogue is as likely as any other.

The floor of the table, and a check of the ranks: HR@k must come out at k / V of the known targets. The scores are the raw
stream of Philox, which numpy keeps frozen, keyed by (seed, user); query q reads its numbers from q * V on. So a user has the
same scores whoever is asked with him.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import numpy as np

from metarec.baselines.asked import Asked
from metarec.baselines.baseline import Baseline, Scorer
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats


def fit(log: TrainingLog, *, seed: int) -> Scorer:
    """Of the log it needs V only; `seed` is that of the numbers, with a stream for each user."""

    def scores(asked: Asked) -> Floats:
        out = np.empty((len(asked), asked.n_query, log.n_items))
        for own, user in zip(out, asked.user, strict=True):
            stream = np.random.Philox(key=np.array([seed % 2**64, user], dtype=np.uint64))
            own[:] = (stream.random_raw(own.size) >> np.uint64(11)).reshape(own.shape) * 2.0**-53
        return out

    return scores


ROWS = {"random": Baseline(fit, default={"seed": 0})}
