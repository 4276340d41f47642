"""ease: a linear autoencoder of whole users, in closed form.

    B = argmin ||X - X B||^2 + l2 ||B||^2  with diag B = 0,   that is   B = I - P diag(1 / diag P),  P = (X^T X + l2 I)^-1
    score(j) = sum over the distinct items i of the history of B[i, j]

X [users, V] is binary: what each training user had in any training session. Scores may be negative. Those that agree to nine
digits of the largest are equal, and ordered by popularity, as everything is where the history is empty. An item is never its
own neighbour, but others of the history speak for it; where nobody has an item twice, `repeats=False` puts what the history
holds below all others.

P is dense, 8 V^2 bytes, and an inversion takes a few of them and V^3 operations: hence the largest catalogue, `MAX_ITEMS`.

Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", arXiv:1905.03375, eq. 8. There the history is all
that a user had (`support=True`), and what it holds is never recommended (`repeats=False`).
"""

from __future__ import annotations

import numpy as np

from metarec.baselines.baseline import DIGITS, Baseline, Scorer, scored
from metarec.baselines.log import TrainingLog
from metarec.ragged import Floats, Ints, Ragged, distinct

MAX_ITEMS = 10_000  # 0.8 GB a matrix; an inversion takes about 4 GB and three minutes on one core

SMALL = 1e-6  # where all scores are below, they differ by rounding alone


def fit(log: TrainingLog, *, l2: float, support: bool, repeats: bool) -> Scorer:
    """`l2` > 0, in users. `support`: put the user's support in front of the prefix. `repeats`: its items are scored too."""
    weights = weights_of(log, l2)
    every = np.arange(1, log.n_items + 1)

    def votes(history: Ints) -> tuple[Ints, Floats]:
        own = distinct(history)
        score = weights[own - 1].sum(axis=0)
        level: Floats = np.rint(score * (DIGITS / max(np.abs(score).max(), SMALL)))
        if not repeats:
            level[own - 1] = -DIGITS - 1.0
        return every, level

    return lambda asked: scored(asked, log.below_one, asked.histories(support), votes)


def weights_of(log: TrainingLog, l2: float) -> Floats:
    """[V, V]: `item_weights` of a log; the last one is kept, for settings that differ in the rest only."""
    return log.once("ease", lambda: item_weights(common_users(log), l2), of=l2)


def common_users(log: TrainingLog) -> Floats:
    """[V, V], X^T X: how many training users had both items."""
    had = log.user[log.sessions.owners()] * log.n_items + log.sessions.values - 1
    user, item = np.divmod(distinct(had), log.n_items)
    out = np.zeros((log.n_items, log.n_items))
    for own in Ragged.by_row(user, item, int(log.user.max(initial=-1)) + 1):
        out[own[:, None], own] += 1.0
    return out


def item_weights(common: Floats, l2: float) -> Floats:
    """[V, V], B: column j the weights that predict item j from the others."""
    inverse = np.asarray(np.linalg.inv(common + l2 * np.eye(len(common))), np.float64)
    np.divide(inverse, -np.diag(inverse), out=inverse)
    np.fill_diagonal(inverse, 0.0)
    return inverse


ROWS = {
    "ease": Baseline(
        fit,
        default={"l2": 100.0, "support": True, "repeats": True},
        space={"l2": (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0), "support": (True, False), "repeats": (True, False)},
        max_items=MAX_ITEMS,
        uses_support=True,
        label="EASE",
    )
}
