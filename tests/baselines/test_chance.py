"""random is chance, and a pure function of seed and user."""

from __future__ import annotations

import numpy as np
import torch
from reference.baselines_reference import spelt

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.metrics.hit_rate import hit_rate
from metarec.metrics.ranks import rank_of_target
from metarec.ragged import Ragged

V, T, Q = 50, 400, 5
RANDOM = BASELINES["random"]
LOG = spelt("ab", "ab", n_items=V).log


def asked(users: np.ndarray) -> Asked:
    n = len(users) * Q
    empty = Ragged(np.empty(0, np.int64), np.zeros(n + 1, np.int64))
    return Asked(users, Q, empty, Ragged(empty.values, np.zeros(len(users) + 1, np.int64)), np.zeros(n, np.int64))


def test_hit_rate_is_that_of_chance() -> None:
    """Four standard deviations of a binomial with 2,000 draws."""
    scores = torch.from_numpy(RANDOM(LOG)(asked(np.arange(T))))
    target = torch.arange(T * Q).reshape(T, Q) % V + 1
    rank = rank_of_target(scores, target).numpy()
    for k in (1, 10, 25):
        chance = k / V
        assert abs(hit_rate(rank, V, k=k).mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / (T * Q))
    assert abs(rank.mean() - (V + 1) / 2) < 4 * V / np.sqrt(12 * T * Q)


def test_the_numbers_are_those_of_numpy() -> None:
    """And a user has the same ones in any company."""
    found = RANDOM(LOG, seed=7)(asked(np.array([3, 900])))
    for user, own in zip((3, 900), found, strict=True):
        key = np.array([7, user], dtype=np.uint64)
        assert np.array_equal(own, np.random.Generator(np.random.Philox(key=key)).random((Q, V)))
    assert np.array_equal(RANDOM(LOG, seed=7)(asked(np.array([900])))[0], found[1])
    assert not np.array_equal(RANDOM(LOG, seed=8)(asked(np.array([900])))[0], found[1])
