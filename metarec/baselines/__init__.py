"""The rows of the panel that are not neural: counts and neighbours. One source, one file; docs/baselines.md compares.

A row knows plain arrays and nothing else: `TrainingLog` is what it learns from, `Asked` what it is asked, and it returns one
score for every item (`baseline.Scorer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metarec.baselines.baseline import Baseline
from metarec.baselines.chance import RANDOM
from metarec.baselines.ease import EASE
from metarec.baselines.markov import MARKOV
from metarec.baselines.pair_knn import PAIR_KNN
from metarec.baselines.popularity import LEAKY_POPULARITY, POPULARITY, RECENT_POPULARITY
from metarec.baselines.repeats import FREQUENT_PREFIX, FREQUENT_SUPPORT, REPEAT_LAST
from metarec.baselines.session_knn import SESSION_KNN
from metarec.baselines.v_sknn import V_SKNN

BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "random": RANDOM,
        "popularity": POPULARITY,
        "recent_popularity": RECENT_POPULARITY,
        "repeat_last": REPEAT_LAST,
        "frequent_prefix": FREQUENT_PREFIX,
        "frequent_support": FREQUENT_SUPPORT,
        "markov": MARKOV,
        "session_knn": SESSION_KNN,
        "v_sknn": V_SKNN,
        "ease": EASE,
        "pair_knn": PAIR_KNN,
        "leaky_popularity": LEAKY_POPULARITY,
    }
)
