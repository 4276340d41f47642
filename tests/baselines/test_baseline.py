"""What every row keeps to: its defaults and grid, what it says it reads, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.baselines_reference import spelt

from metarec.baselines import BASELINES
from metarec.baselines.baseline import Baseline
from metarec.errors import ConfigError
from metarec.ragged import Ragged

S = spelt("abc abd ab ca", "ab")


@pytest.mark.parametrize("name", BASELINES)
def test_defaults_lie_in_the_grid_and_every_point_of_it_runs(name: str) -> None:
    row = BASELINES[name]
    assert set(row.space) <= set(row.default)
    for option, values in row.space.items():
        assert row.default[option] in values
        assert len(set(values)) == len(values)
        for value in values:
            assert row(S.log, **{option: value})(S.asked).shape == (1, 1, 5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_reads_the_support_if_it_says_so(name: str) -> None:
    """Under some options; and never else."""
    row, with_support = BASELINES[name], spelt("abc abd ab ca", "ada cbe", n_support=3)
    nothing = Ragged(np.empty(0, np.int64), np.zeros(2, np.int64))
    without = replace(with_support.asked, support=nothing, before=np.zeros(1, np.int64))
    settings: list[dict[str, Any]] = [{}, *({option: value} for option, of in row.space.items() for value in of)]
    same = [
        np.array_equal(row(with_support.log, **options)(with_support.asked), row(with_support.log, **options)(without))
        for options in settings
    ]
    assert all(same) != row.uses_support


@pytest.mark.parametrize("name", BASELINES)
def test_a_log_without_a_clock_is_refused_by_who_needs_one(name: str) -> None:
    row, log = BASELINES[name], replace(S.log, has_clock=False)
    if not row.needs_clock:
        assert row(log)(S.asked).shape == (1, 1, 5)
        return
    reason = row.why_not(False, 5)
    assert reason == "the log has an order and no clock, so nothing is recent"
    with pytest.raises(ConfigError, match=f"baselines: {row.label}: {reason} -- leave it out"):
        row(log)


@pytest.mark.parametrize(
    ("space", "said"), [({"k": (1,)}, "k: its default, None"), ({"l2": (3.0,)}, "l2: its default, 2.0")]
)
def test_a_grid_that_cannot_be_searched_is_refused_where_it_is_written(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Baseline(BASELINES["ease"].fit, default={"l2": 2.0}, space=space)


def test_an_option_that_is_none() -> None:
    with pytest.raises(ConfigError, match="sampel_size: 5: this baseline has no such option -- say sample_size"):
        BASELINES["session_knn"](S.log, sampel_size=5)
    with pytest.raises(ConfigError, match="it has no options"):
        BASELINES["popularity"](S.log, k=5)
