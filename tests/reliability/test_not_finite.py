"""The driver of numbers that are not finite in the size of the suite; and that it sees what it is there to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reliability import not_finite
from reliability.__main__ import drivers

from metarec import evaluate
from metarec.algorithms import inner
from metarec.runs.guarded import Guarded
from metarec.verbs import meta_train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for all, so that the runs to compare with are made once."""
    return tmp_path_factory.mktemp("not_finite")


def test_promises_are_kept(root: Path) -> None:
    assert drivers()["not_finite"] is not_finite
    result = not_finite.run(False, root)
    assert [one for one in result["figures"] if not one["kept"]] == []


def _lets_through(self: Guarded, step: int, *args: Any, **more: Any) -> bool:
    return True


def _of_state(self: Guarded, step: int) -> None:
    return None


def _check_offsets(offsets: Any, place: str) -> None:
    return None


def _no_figure(*args: Any) -> ArithmeticError:
    return ArithmeticError("not asked for")


@pytest.mark.parametrize(
    ("place", "value", "skip", "of", "name", "by", "seen"),
    [
        ("outer gradient", "nan", True, Guarded, "lets_through", _lets_through, "exit code 6"),
        ("optimizer state", "+inf", False, Guarded, "_of_state", _of_state, "weights in memory have moved"),
        ("inner weights", "-inf", False, inner, "check_offsets", _check_offsets, "figures were written"),
        ("inner gradient", "+inf", True, inner, "check_offsets", _check_offsets, "is not that of a run without fault"),
        ("query loss", "nan", False, meta_train, "_refuse", lambda losses: None, "it says"),
        ("metric", "+inf", False, evaluate, "no_figure", _no_figure, "it says"),
    ],
)  # fmt: skip
def test_a_guard_that_lets_it_through_is_seen(
    place: str, value: str, skip: bool, of: Any, name: str, by: Callable[..., Any], seen: str, root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each check taken out."""
    monkeypatch.setattr(of, name, by)
    try:
        wrong = not_finite.case(root, place, value, skip, label="planted-")
    except ArithmeticError:
        wrong = ["it says nothing of a user"]
    assert any(seen in line for line in wrong), wrong


def test_a_bare_nan_in_a_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"loss": 1.0}\n{"loss": NaN}\n')
    (tmp_path / "metrics.json").write_text('{"hr": 1.0}')
    assert not_finite.not_json(tmp_path) == ["history.jsonl: NaN"]
    assert math.isnan(not_finite.VALUES["nan"])
