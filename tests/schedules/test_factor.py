"""Schedules against their closed forms."""

from __future__ import annotations

import math
from functools import partial

import pytest

from metarec.schedules import factor


def test_constant() -> None:
    assert [factor(step, steps=4, name="constant") for step in range(4)] == [1.0] * 4


def test_linear_ends_at_the_final_factor() -> None:
    line = [factor(step, steps=5, name="linear", final_factor=0.2) for step in range(5)]
    assert line == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine() -> None:
    curve = [factor(step, steps=5, name="cosine", final_factor=0.1) for step in range(5)]
    assert curve == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)])
    assert curve[2] == pytest.approx(0.55)
    assert curve[4] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_one_then_goes_on(name: str) -> None:
    at = partial(factor, steps=10, name=name, warmup_steps=4)
    assert [at(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert at(9) == pytest.approx(1.0 if name == "constant" else 0.0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_short_runs_divide_by_nothing(name: str) -> None:
    assert factor(0, steps=1, name=name) == 1.0
    assert factor(2, steps=3, name=name, warmup_steps=2) == 1.0
    assert factor(2, steps=3, name=name, warmup_steps=3) == 1.0


def test_an_unknown_name() -> None:
    with pytest.raises(KeyError, match="exponential"):
        factor(0, steps=3, name="exponential")
