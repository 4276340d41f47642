"""The registry: defaults, grids, what is refused; and the settings that a tuner tries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference.baselines_reference import spelt

from metarec.baselines import BASELINES
from metarec.errors import ConfigError

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


def test_names_and_needs() -> None:
    names = """random popularity recent_popularity repeat_last frequent_prefix frequent_support markov session_knn v_sknn
        ease pair_knn leaky_popularity""".split()
    assert list(BASELINES) == names
    assert [name for name in names if BASELINES[name].needs_clock] == ["recent_popularity"]
    of_support = ["frequent_support", "session_knn", "v_sknn", "ease"]
    assert [name for name in names if BASELINES[name].uses_support] == of_support


def test_an_option_that_is_none() -> None:
    with pytest.raises(ConfigError, match="sampel_size: 5: this baseline has no such option -- say sample_size"):
        BASELINES["session_knn"](S.log, sampel_size=5)
    with pytest.raises(ConfigError, match="it has no options"):
        BASELINES["popularity"](S.log, k=5)


def test_a_log_without_a_clock() -> None:
    with pytest.raises(ConfigError, match="goes by the time of events"):
        BASELINES["recent_popularity"](replace(S.log, has_clock=False))
