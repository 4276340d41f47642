"""Whole runs with surprise: in pretraining, in the outer loop, in both, and not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import Work, metrics, tiny, without_paths

from metarec.errors import ConfigError

NESTED = ("model=nested", "model.dim=8", "model.dropout=0")
SURPRISE = ("objective.surprise.fast=0.05", "objective.surprise.medium=0.01")


def words(*more: str) -> tuple[str, ...]:
    return (*NESTED, "model.max_len=20", *more)


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in history(run) if row["kind"] == "train"]


def pretrained(run: Path) -> Any:
    return metrics(run)["training"]["warm_start"]["key"]


def of_nested(work: Work, *more: str) -> Path:
    own = [w for w in tiny(*words(*more)) if not w.startswith("model.")]
    return work._run("train", *own, *words(*more))


def test_a_weight_of_nothing_is_the_run_without(work: Work) -> None:
    one, other = of_nested(work), of_nested(work, "objective.surprise.fast=0", "objective.surprise.slow=0.0")
    assert history(one) == history(other)
    figures = [{k: v for k, v in without_paths(metrics(run)).items() if k != "config"} for run in (one, other)]
    assert figures[0] == figures[1]


def test_where_it_acts(work: Work) -> None:
    plain = of_nested(work)
    outer = of_nested(work, *SURPRISE, "objective.surprise.where=outer")
    before = of_nested(work, *SURPRISE, "objective.surprise.where=pretrain")
    both = of_nested(work, *SURPRISE)
    assert pretrained(outer) == pretrained(plain)  # made once, for both
    assert pretrained(before) == pretrained(both) != pretrained(plain)
    assert losses(outer)[0] > losses(plain)[0]  # the first step has the same weights, and pays more
    assert losses(both)[0] > losses(before)[0]


@pytest.mark.parametrize("algorithm", ["reptile", "imaml", "maml", "meta_sgd"])
def test_other_algorithms(work: Work, algorithm: str) -> None:
    more = (*SURPRISE, "objective.surprise.where=outer", f"algorithm={algorithm}", "residual=off", "train.steps=2")
    run = of_nested(work, *more)
    assert metrics(run)["training"]["steps"] == 2


def test_supervised_and_every_other_step(work: Work) -> None:
    more = ("algorithm=supervised", "pretrain.epochs=1")
    plain, often, seldom = (
        losses(of_nested(work, *more, *own)) for own in ((), SURPRISE, (*SURPRISE, "objective.surprise.every=2"))
    )
    assert often[0] == seldom[0] > plain[0]
    assert often[1] > seldom[1] != plain[1]  # it pays nothing there, with weights that the first step moved


def test_a_level_that_a_model_lacks_is_refused(work: Work) -> None:
    with pytest.raises(
        ConfigError, match=r"objective.surprise.medium: 0.01: model=gru4rec has no such level, only fast"
    ):
        work._run("train", "objective.surprise.medium=0.01")
