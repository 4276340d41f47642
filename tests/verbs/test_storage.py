"""Trials in the storage: what is drawn follows from seed and trials alone, whichever process draws, and never twice."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="searching needs metarec[sweep]")

from metarec.config.search import Search, read_search
from metarec.errors import EnvironmentFault
from metarec.verbs.storage import Row, Study

LR, STEPS = "optimizer.lr=tag(log,interval(1e-4,1e-1))", "algorithm.inner.steps=1,3,5"


def asked(*words: str, n_trials: int = 8, startup: int = 3) -> Search:
    options = (f"hydra.sweeper.n_trials={n_trials}", f"hydra.sweeper.startup_trials={startup}")
    return read_search(["hydra/sweeper=optuna", *words, *options], None)


def quality(row: Row) -> float:
    """Best at lr = 0.01, three steps."""
    lr, steps = row.params.get("optimizer.lr", 0.01), row.params.get("algorithm.inner.steps", "3")
    return -abs(math.log10(lr) + 2) - 0.1 * abs(int(steps) - 3)


def run(study: Study, value: Callable[[Row], float] = quality) -> None:
    while (row := study.draw()) is not None:
        study.tell(row.number, "ok", value(row), {})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_process_for_every_trial_draws_what_one_process_draws(tmp_path: Path, sampler: str) -> None:
    search = asked(LR, STEPS, f"hydra.sweeper.sampler={sampler}")
    whole = Study(tmp_path / "whole.sqlite", search)
    run(whole)
    for _ in range(4):  # as if killed after every second trial, once between draw and end
        part = Study(tmp_path / "part.sqlite", search)
        for row in [row for row in part.rows() if row.status == "running"]:
            part.tell(row.number, "ok", quality(row), {})
        for _ in range(2):
            row = part.draw()
            assert row is not None
            if len(part.rows()) != 4:
                part.tell(row.number, "ok", quality(row), {})
    part = Study(tmp_path / "part.sqlite", search)
    assert [(row.number, row.params, row.value) for row in part.rows()] == [
        (row.number, row.params, row.value) for row in whole.rows()
    ]
    assert part.draw() is None
    other = Study(tmp_path / "other.sqlite", asked(LR, STEPS, "hydra.sweeper.seed=2"))
    run(other)
    assert other.rows()[0].params != whole.rows()[0].params


def test_all_of_a_trial_is_in_the_file_when_it_is_drawn(tmp_path: Path) -> None:
    """Read with sqlite3 alone: a running trial with its parameters, and after its end the value."""
    path = tmp_path / "study.sqlite"
    study = Study(path, asked(LR, STEPS))
    row = study.draw()
    assert row is not None
    with sqlite3.connect(path) as file:
        assert file.execute("select number, state from trials").fetchall() == [(0, "RUNNING")]
        found = dict(file.execute("select param_name, param_value from trial_params").fetchall())
    assert found["optimizer.lr"] == row.params["optimizer.lr"]
    assert ("1", "3", "5")[int(found["algorithm.inner.steps"])] == row.params["algorithm.inner.steps"]
    study.tell(0, "ok", 0.25, {"directory": "trials/0"})
    with sqlite3.connect(path) as file:
        assert file.execute("select value from trial_values").fetchall() == [(0.25,)]
        assert file.execute("select state from trials").fetchall() == [("COMPLETE",)]
    assert study.rows()[0].notes == {"directory": "trials/0"}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_small_space_is_tried_whole_and_nothing_twice(tmp_path: Path, sampler: str) -> None:
    search = asked(STEPS, "train.dropout=range(0,0.5,0.125)", f"hydra.sweeper.sampler={sampler}", n_trials=99)
    study = Study(tmp_path / "study.sqlite", search)
    run(study)
    found = [(row.params["algorithm.inner.steps"], row.params["train.dropout"]) for row in study.rows()]
    everything = [(steps, dropout) for steps in ("1", "3", "5") for dropout in (0.0, 0.125, 0.25, 0.375)]
    assert sorted(found) == everything
    assert (found == everything) == (sampler == "grid")


def test_tpe_finds_more_than_chance(tmp_path: Path) -> None:
    """9 of its 20 later draws lie within a third of a decade of the best step size: of random ones 4.4, and 9 once in 50."""
    study = Study(tmp_path / "study.sqlite", asked(LR, n_trials=28, startup=8))
    run(study)
    later = [abs(math.log10(row.params["optimizer.lr"]) + 2) for row in study.rows()[8:]]
    assert sum(distance < 1 / 3 for distance in later) >= 9
    assert study.best() == max(study.rows(), key=quality)


def test_whole_numbers_lie_in_their_steps_and_logarithms_are_even(tmp_path: Path) -> None:
    words = ("algorithm.inner.steps=range(1,10,4)", LR, "hydra.sweeper.sampler=random")
    study = Study(tmp_path / "study.sqlite", asked(*words, n_trials=30))
    run(study)
    assert {row.params["algorithm.inner.steps"] for row in study.rows()} == {1, 5, 9}
    decade = [math.floor(math.log10(row.params["optimizer.lr"])) for row in study.rows()]
    assert all(decade.count(where) >= 5 for where in (-4, -3, -2))  # 10 expected of each


def test_a_failed_trial_has_no_value_and_is_never_the_best(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.sqlite", asked(LR, n_trials=3))
    for status, value in (("failed", None), ("ok", -5.0), ("pruned", None)):
        row = study.draw()
        assert row is not None
        study.report(row.number, 10, 1.0)
        study.tell(row.number, status, value, {"error": "why"} if status == "failed" else {})
    assert [(row.status, row.value) for row in study.rows()] == [("failed", None), ("ok", -5.0), ("pruned", 1.0)]
    assert study.rows()[0].notes == {"error": "why"}
    best = study.best()
    assert best is not None
    assert best.number == 1


def test_the_median_prunes_what_is_behind_half_of_the_trials(tmp_path: Path) -> None:
    """By hand: after trials with .3 and .5 at step 100 the median is .4."""
    study = Study(tmp_path / "study.sqlite", asked(LR, "hydra.sweeper.pruner=median", n_trials=4, startup=2))
    for value in (0.3, 0.5):
        row = study.draw()
        assert row is not None
        assert not study.report(row.number, 100, value)
        study.tell(row.number, "ok", value, {})
    for value, pruned in ((0.39, True), (0.41, False)):
        row = study.draw()
        assert row is not None
        assert study.report(row.number, 100, value) is pruned
        assert study.report(row.number, 100, 0.9) is pruned  # told again after a kill: the first word counts
        study.tell(row.number, "pruned" if pruned else "ok", None if pruned else value, {})


def test_hyperband_prunes_some_and_never_the_best(tmp_path: Path) -> None:
    words = (LR, "hydra.sweeper.pruner=hyperband", "train.steps=900", "train.eval_every=100")
    study = Study(tmp_path / "study.sqlite", asked(*words, n_trials=16, startup=16))
    while (row := study.draw()) is not None:
        stopped = any(study.report(row.number, step, quality(row)) for step in (100, 300, 900))
        study.tell(row.number, "pruned" if stopped else "ok", None if stopped else quality(row), {})
    rows = study.rows()
    assert 3 <= sum(row.status == "pruned" for row in rows) <= 13
    assert max(rows, key=quality).status == "ok"


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.sqlite", asked(LR, "train.dropout=interval(0,0.5)", n_trials=20, startup=20))
    assert study.importance() is None
    run(study, lambda row: -abs(math.log10(row.params["optimizer.lr"]) + 2))
    found = study.importance()
    assert found is not None
    assert found["optimizer.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_a_file_that_is_no_storage(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" * 100)
    with pytest.raises(EnvironmentFault, match="not usable as the storage of a search"):
        Study(path, asked(LR))
    assert path.read_text() == "user,item\n" * 100


def test_notes_stay(tmp_path: Path) -> None:
    Study(tmp_path / "study.sqlite", asked(LR)).note("directory", "here")
    assert Study(tmp_path / "study.sqlite", asked(LR)).notes == {"directory": "here"}
    assert Study(tmp_path / "study.sqlite", asked(LR, "hydra.sweeper.study_name=other")).notes == {}
