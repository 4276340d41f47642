"""The rows beside a generator's few-shot take steps that were tuned on validation users, each from its own start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reference.generated_run import WORDS, At, open_at
from reference.tiny_runs import Work, metrics

from metarec.evaluate import Control, monitored, ranks, scored
from metarec.verbs import measure as m
from metarec.verbs.row_steps import with_row_steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return Work(tmp_path_factory.mktemp("tuned"), cache).train(*WORDS)


@pytest.fixture(scope="module")
def at(run: Path, cache: Path) -> At:
    return open_at(run, cache)


def value_of(at: At, lr: float, steps: int, generated: bool) -> float:
    """The monitored figure on the tuning users, by the method that the rows use."""
    episodes = at.bench.episodes("val", rows=at.bench.tuning_rows())
    method = scored(
        at.bench.tasks(at.trained.residual), m.adapted(at.bench, at.trained, lr=lr, steps=steps, generated=generated)
    )
    found, _ = ranks(episodes, method, at.bench.evaluation.ties, at.bench.seen())
    return monitored(found, at.bench.n_items)[at.bench.evaluation.monitor]


def test_each_row_has_the_best_of_its_grid_from_its_own_start(at: At) -> None:
    found = with_row_steps(at.run.trained_as.algorithm, at.bench, at.trained, "quiet").row_steps
    assert set(found) == {"inner_loop", "refined"}
    for row, generated in (("inner_loop", False), ("refined", True)):
        tried = {(one["lr"], one["steps"]): one["ndcg@10"] for one in found[row].tried}
        assert {lr for lr, _ in tried} == {0.1, 3.0, 10.0}
        assert {steps for _, steps in tried} == ({3} if generated else {1, 2})
        assert max(tried.values()) == found[row].value == tried[found[row].lr, found[row].steps]
        for (lr, steps), value in tried.items():
            assert value == pytest.approx(value_of(at, lr, steps, generated), abs=1e-12)


def test_the_rows_take_the_steps_that_were_tuned_for_them(at: At, run: Path) -> None:
    assert {"inner_loop", "refined"} <= set(metrics(run)["tuning"])
    asked = {"inner_loop": Control(20.0, 2, 0.0, []), "refined": Control(30.0, 3, 0.0, [])}
    scorers = m.scorers(at.bench, replace(at.trained, row_steps=asked), at.control)
    usual = m.scorers(at.bench, at.trained, at.control)
    for row, one in asked.items():
        method = m.adapted(at.bench, at.trained, lr=one.lr, steps=one.steps, generated=row == "refined")
        by_hand = at.ranks(scored(at.bench.tasks(at.trained.residual), method))
        assert (at.ranks(scorers[row]) == by_hand).all()
        assert (at.ranks(usual[row]) != by_hand).any()


def test_what_is_given_is_taken_and_nothing_is_tuned(work: Work) -> None:
    run = work.train(*WORDS, "algorithm.inner.lr=0.2", "algorithm.inner.steps=2")
    assert {"inner_loop", "refined"} & set(metrics(run)["tuning"]) == set()
