"""Every row against its slow second version, on random small logs with random options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import baselines_reference as slow
from reference.baselines_reference import Small, check, smalls
from reference.small_logs import quick

from metarec.baselines import BASELINES, NAMES

KNN: dict[str, Any] = {"k": (1, 2, 3, 100), "sample_size": (1, 2, 4, 1000), "support": (False, True),
                       "repeats": (False, True)}  # fmt: skip
WEIGHTS = ("same", "linear", "div", "log", "quadratic")
OPTIONS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "recent_popularity": {"share": (0.01, 0.2, 0.5, 1.0)},
    "repeat_last": {},
    "frequent_prefix": {},
    "frequent_support": {"decay": (1.0, 0.95, 0.9, 0.8, 0.6)},
    "markov": {"window": (1, 2, 4), "smoothing": (0.1, 1.0, 10.0)},
    "session_knn": {**KNN, "similarity": ("cosine", "jaccard")},
    "v_sknn": {**KNN, "weighting": WEIGHTS, "weighting_score": WEIGHTS, "idf_weighting": (0, 1, 5)},
    "ease": {"l2": (0.5, 1.0, 30.0), "support": (False, True), "repeats": (False, True)},
    "pair_knn": {},
    "leaky_popularity": {},
}


@pytest.mark.parametrize("name", OPTIONS)
@quick
@given(data=st.data())
def test_row_equals_its_slow_version(name: str, data: st.DataObject) -> None:
    s: Small = data.draw(smalls())
    options = {key: data.draw(st.sampled_from(values), key) for key, values in OPTIONS[name].items()}
    if name != "markov":
        check(name, getattr(slow, name), s, **options)
    elif s.popularity:  # here the slow version has the scores themselves
        scores = BASELINES[name](s.log, **options)(s.asked)
        for q, found in zip(s.questions, scores.reshape(-1, s.n_items), strict=True):
            np.testing.assert_allclose(found, slow.markov(s, q, **options), rtol=1e-12)


def test_every_row_is_compared_here_or_has_a_test_of_its_own() -> None:
    for name, file in NAMES.items():
        assert name in OPTIONS or (Path(__file__).parent / f"test_{file}.py").is_file(), name
    for name, options in OPTIONS.items():
        assert set(options) == set(BASELINES[name].default)


@pytest.mark.parametrize("name", BASELINES)
@quick
@given(s=smalls())
def test_users_are_scored_alone(name: str, s: Small) -> None:
    """The same scores whoever else is asked, to the bit."""
    row = BASELINES[name]
    if row.why_not(s.has_clock, s.n_items) or not s.popularity:
        return  # refused (test_baseline.py), or there is nothing to learn from
    score = row(s.log)
    together = score(s.asked)
    for t, user in enumerate(s.asked.user):
        alone = score(s.only(int(user)))
        assert np.array_equal(alone[0], together[t])
