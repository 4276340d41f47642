"""The settings of a row of the panel: the whole grid or distinct draws, the default first, a function of the seed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarec.search import settings

SPACE = {"window": [1, 2, 3], "decay": [0.5, 0.9], "sample": [None, 100]}
GRID = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]
BIG = {"a": list(range(40)), "b": list(range(40)), "c": list(range(40))}


def key(setting: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(setting.values())


@pytest.mark.parametrize("budget", [12, 13, 1000])
def test_a_grid_within_the_budget_is_tried_whole_in_its_order(budget: int) -> None:
    assert settings(SPACE, budget, seed=1) == GRID
    assert settings(SPACE, budget, seed=2) == GRID


def test_the_default_comes_first() -> None:
    default = {"decay": 0.9, "window": 2, "sample": 100}
    whole = settings(SPACE, 12, 1, default)
    assert whole[0] == default
    assert whole[1:] == [setting for setting in GRID if setting != default]
    assert settings(SPACE, 5, 1, default)[0] == default
    assert settings(SPACE, 1, 1) == GRID[:1]
    assert list(whole[0]) == list(SPACE)  # in the order of the space, as every other


@given(
    st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=4),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_settings_are_distinct_members_of_the_grid_and_fill_the_budget(
    space: dict[str, list[int]], budget: int, seed: int
) -> None:
    found = settings(space, budget, seed)
    size = math.prod(len(set(values)) for values in space.values())
    assert len({key(setting) for setting in found}) == len(found) == min(budget, size)
    assert all(setting[name] in values for setting in found for name, values in space.items())
    assert found == settings(space, budget, seed)


def test_another_seed_draws_others_and_a_larger_budget_adds() -> None:
    short, long, other = settings(BIG, 8, 1), settings(BIG, 20, 1), settings(BIG, 20, 2)
    assert long[:8] == short
    assert other[0] == long[0] and not {key(s) for s in other[1:]} & {key(s) for s in long[1:]}


def test_draws_do_not_depend_on_the_state_of_the_process() -> None:
    """Written down once: a change of these changes which settings every published run tried."""
    import torch

    torch.manual_seed(5)
    assert [key(setting) for setting in settings(BIG, 4, 7)] == [(0, 0, 0), (20, 32, 37), (35, 23, 27), (17, 30, 33)]


def test_every_setting_is_equally_likely() -> None:
    """3 draws of 11 besides the default, over 3000 seeds: each about 818 times; chi squared with 10 degrees < 30."""
    seen = Counter(key(setting) for seed in range(3000) for setting in settings(SPACE, 4, seed)[1:])
    expected = 3000 * 3 / 11
    assert len(seen) == 11
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 30


@pytest.mark.parametrize(
    ("space", "budget", "default", "said"),
    [
        ({"a": []}, 1, None, "a: .* has no value"),
        ({"a": [1]}, 0, None, "budget 0"),
        ({"a": [1]}, 1, {"a": 2}, "has no default"),
        ({"a": [1], "b": [1]}, 1, {"a": 1}, "are not the options"),
    ],
)
def test_what_cannot_be_searched(space: Any, budget: int, default: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(space, budget, 1, default)
