"""Whole runs that tell of their timescales: killed, from the cache, by the guard, on their page; and runs that do not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import Work, assert_same_run, ended, metrics, tiny, wait_for

from metarec import cli
from metarec.report.finished import read_run
from metarec.report.timescales import over_time
from metarec.report.timescales import timescales as section_of
from metarec.runs.history import read_history
from metarec.runs.rundir import verify

NESTED = ("model=nested", "model.dim=8", "model.dropout=0", "model.max_len=20")
SURPRISE = ("objective.surprise.fast=0.05", "objective.surprise.medium=0.01")
CMS = ("optimizer=cms", "optimizer.chunks=[1,3,16]")
RUN = ("residual=off", "pretrain.optimizer=run")


def words(*more: str) -> list[str]:
    own = [word for word in tiny(*more) if not word.startswith("model.")]
    if any(word.startswith("optimizer=") for word in more) and "algorithm=supervised" not in more:
        own = [word for word in own if not word.startswith("optimizer.lr")] + ["optimizer.lr=0.01"]
    given = {word.split("=")[0] for word in more}
    return [word for word in own if word.split("=")[0] not in given] + [*NESTED, *more]


def train(work: Work, *more: str) -> Path:
    return work._run("train", *words(*more))


def lines(run: Path, name: str = "history.jsonl") -> list[dict[str, Any]]:
    return [line for line in read_history(run / name) if line["kind"] == "train"]


def test_updates_surprise_and_cost_of_both_loops(work: Work) -> None:
    """T steps: floor(T / C) updates and one of the flush; the means of the lines are those of metrics.json."""
    run = train(work, *RUN, *CMS, *SURPRISE, "train.steps=8", "pretrain.patience=0")
    document = metrics(run)
    found = document["timescales"]
    assert list(found) == ["training", "pretraining"]
    for loop, name in (("training", "history.jsonl"), ("pretraining", "pretrain_history.jsonl")):
        own, told = found[loop], lines(run, name)
        steps = own["steps"]
        assert steps == told[-1]["step"]
        for level, chunk in zip("123", (1, 3, 16), strict=True):
            assert own["levels"][level]["updates"] == steps // chunk + (steps % chunk > 0)
            assert own["levels"][level]["since"] == 0
            for line in told[:-1]:
                assert line["timescales"]["updates"][level] == line["step"] // chunk
                assert line["timescales"]["since"][level] == line["step"] % chunk
        assert own["surprise"].keys() == {"fast", "medium"} == told[0]["timescales"]["surprise"].keys()
    mean = sum(line["timescales"]["surprise"]["fast"]["term"] for line in lines(run)) / 8  # of equal numbers of pairs
    assert found["training"]["surprise"]["fast"]["term"] == pytest.approx(mean, rel=1e-6)
    assert document["cost"]["pretraining"]["seconds_per_step"] > 0
    assert document["cost"]["pretraining"]["steps"] == found["pretraining"]["steps"] - 1
    assert "cost" not in found["pretraining"]


def test_pretraining_from_the_cache_tells_what_it_saw(work: Work) -> None:
    """A second run of other outer steps has the figures of the first's pretraining, time and memory included."""
    options = (*RUN, "optimizer=delta_adam", "optimizer.decay=0.01", *SURPRISE, "seed=31")
    first, second = train(work, *options), train(work, *options, "train.steps=4")
    one, other = metrics(first), metrics(second)
    assert one["timescales"]["pretraining"] == other["timescales"]["pretraining"]
    assert one["timescales"]["pretraining"]["largest"]
    assert one["cost"]["pretraining"] == other["cost"]["pretraining"]
    name = "pretrain_timescales.json"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    verify(second)


@pytest.mark.parametrize(
    "more",
    [
        (*RUN, "optimizer=delta_adam", *SURPRISE, "objective.surprise.every=2"),
        ("algorithm=supervised", "pretrain.optimizer=run", *CMS, *SURPRISE),
    ],
    ids=["outer loop, delta", "supervised, cms"],
)  # fmt: skip
def test_killed_and_resumed_it_tells_the_same(more: tuple[str, ...], work: Work, tmp_path: Path) -> None:
    """Lines are five steps apart, checkpoints three, so sums are in mid-air when it dies."""
    sizes = ("train.steps=40", "train.eval_every=9", "train.checkpoint_every=3", "train.patience=0", "logger.every=5")
    if "algorithm=supervised" in more:
        sizes = ("pretrain.epochs=8", "pretrain.patience=0", "pretrain.batch_size=64", "logger.every=7")
    process = work.start(*work.words("train", *words(*more, *sizes)))
    path = lambda: next(iter(work.directories("train")), tmp_path) / "history.jsonl"  # noqa: E731
    enough = 18 if "algorithm=supervised" in more else 8
    wait_for(lambda: path().exists() and path().read_bytes().count(b"\n") > enough, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    assert cli.main(["train", f"resume={run}"]) == 0
    other = train(Work(tmp_path / "whole", work.cache), *more, *sizes)
    assert_same_run(run, other)
    assert metrics(run)["timescales"] == metrics(other)["timescales"]
    assert _tables(run) == _tables(other)


def _tables(run: Path) -> list[Any]:
    """Every table of the section but those of time and memory."""
    found = section_of(read_run(run, "run"))
    assert found is not None
    return [block.rows for block in found.blocks if hasattr(block, "rows") and "Time" not in block.caption]


def test_a_run_with_none_of_the_three_writes_nothing(work: Work) -> None:
    for more in (("optimizer=adam",), ("optimizer=delta_adam", "optimizer.decay=0"), ("optimizer=adam", "guard=off")):
        run = train(work, "residual=off", *more)
        document = metrics(run)
        assert "timescales" not in document
        assert "pretraining" not in document["cost"]
        assert not list(run.glob("*timescales*"))
        assert not any(
            "timescales" in line for name in ("", "pretrain_") for line in lines(run, f"{name}history.jsonl")
        )
        assert section_of(read_run(run, "run")) is None


def test_one_loop_alone(work: Work) -> None:
    """Pretraining by Adam of its own tells nothing; surprise tells of the loops that pay it."""
    run = train(work, "residual=off", *CMS)
    assert list(metrics(run)["timescales"]) == ["training"]
    assert not (run / "pretrain_timescales.json").exists()
    run = train(work, "residual=off", *SURPRISE, "objective.surprise.where=pretrain")
    assert list(metrics(run)["timescales"]) == ["pretraining"]
    assert not any("timescales" in line for line in lines(run))
    run = train(work, "algorithm=supervised", "pretrain.optimizer=run", "optimizer=delta_sgd", "optimizer.decay=0.01")
    document = metrics(run)
    assert list(document["timescales"]) == ["training"]
    assert document["cost"]["seconds_per_step"] > 0


def test_the_page_shows_what_metrics_and_lines_say(work: Work) -> None:
    run = train(work, *RUN, "optimizer=delta_adam", "optimizer.decay=0.01", *SURPRISE, "train.steps=8")
    found, document = section_of(read_run(run, "run")), metrics(run)
    assert found is not None
    sheets = {block.caption: block for block in found.blocks if hasattr(block, "rows")}
    told = lines(run)
    shown = dict(sheets["Delta rule, training"].rows)
    wanted = document["timescales"]["training"]["largest"]
    assert shown == {name: f"{value:.4g}" for name, value in wanted.items()}
    assert list(shown) == sorted(wanted, key=lambda name: -wanted[name])
    (fast,) = [row for row in sheets["Surprise, pretraining"].rows if row[0] == "fast"]
    own = document["timescales"]["pretraining"]["surprise"]["fast"]
    before = [line["timescales"]["surprise"]["fast"] for line in lines(run, "pretrain_history.jsonl")]
    assert fast == [
        "fast", f"{own['pairs']:,}", f"{own['u']:.4g}", f"{before[0]['u']:.4g}, {before[-1]['u']:.4g}",
        f"{own['term']:.4g}", f"{before[0]['term']:.4g}, {before[-1]['term']:.4g}", f"{own['cosine']:.4g}",
        f"{before[0]['cosine']:.4g}, {before[-1]['cosine']:.4g}",
    ]  # fmt: skip
    assert {"Time and memory of a step, training", "Time and memory of a step, pretraining"} <= set(sheets)
    drawn = over_time(read_history(run / "history.jsonl"))
    assert list(drawn) == ["largest", "u", "term", "cosine"]
    assert drawn["cosine"]["medium"] == (
        [line["step"] for line in told], [line["timescales"]["surprise"]["medium"]["cosine"] for line in told]
    )  # fmt: skip
    titles = [block.caption for block in found.blocks if hasattr(block, "svg")]
    assert [title for title in titles if title.startswith("training")] == [
        f"training: {label}"
        for label in ("largest a * eigenvalue so far", "mean |u|", "lambda |y - u|^2", "cosine of y and u")
    ]  # fmt: skip


def test_pictures_and_report(work: Work, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = train(work, *RUN, *CMS, *SURPRISE, "logger.plots=true")
    assert {path.name for path in run.glob("*timescales*.png")} == {"timescales.png", "pretrain_timescales.png"}
    verify(run)
    page = tmp_path / "page.html"
    assert cli.main(["report", str(run), f"output={page}"]) == 0
    text = page.read_text()
    assert "Levels of optimizer=cms, training" in text
    assert "Pretraining is made once for all runs that ask for the same" in text


def test_weights_of_a_cache_that_says_nothing(work: Work) -> None:
    """As kept by a version that did not tell: the run has what its own loop tells, and no file of pretraining."""
    apart = Work(work.root, work.root / "cache")
    shutil.copytree(work.cache, apart.cache)
    options = (*RUN, *CMS, "seed=33")
    key = metrics(train(apart, *options))["training"]["warm_start"]["key"]
    from metarec.runs import checkpoint

    place = apart.cache / "pretrained" / key
    tensors, state = checkpoint.load_checkpoint(place)
    assert state.pop("timescales")["levels"]
    shutil.rmtree(place)
    checkpoint.save_checkpoint(place.parent, key, tensors, json.loads(json.dumps(state)))
    run = train(apart, *options)
    assert list(metrics(run)["timescales"]) == ["training"]
    assert not (run / "pretrain_timescales.json").exists()
