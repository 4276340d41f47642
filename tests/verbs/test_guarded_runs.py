"""Whole runs with a fault put into their losses: exit code, files, figures, notes and page say what the guard did."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, metrics, same_bits, state, tensors, tiny
from torch import Tensor

from metarec import build, cli
from metarec.report.notes import notes
from metarec.runs.history import read_history
from metarec.runs.rundir import verify
from metarec.verbs import meta_train, warm_start

NAN_AT_3 = {"step": 4, "kind": "nonfinite_loss", "value": "nan", "threshold": None, "action": "skip"}


def break_losses(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the meta-losses of these outer steps NaN."""
    real = meta_train._losses

    def broken(*args: Any) -> Iterator[Tensor]:
        yield from (loss * (math.nan if args[-1] in steps else 1.0) for loss in real(*args))

    monkeypatch.setattr(meta_train, "_losses", broken)


def break_pretraining(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The same of pretraining, whose loss is infinite."""
    real = warm_start.loss_of_step

    def broken(*args: Any) -> Callable[[int], Tensor]:
        loss = real(*args)
        return lambda step: loss(step) + (math.inf if step in steps else 0.0)

    monkeypatch.setattr(warm_start, "loss_of_step", broken)


def finite(run: Path) -> bool:
    """Every tensor of both checkpoints, and every number of the history."""
    held = [value for pointer in ("best", "last") for value in tensors(run, pointer).values()]
    text = (run / "history.jsonl").read_text() + (run / "metrics.json").read_text()
    return all(bool(torch.isfinite(value).all()) for value in held) and "NaN" not in text and "Infinity" not in text


def test_a_bad_batch_through_the_command_line(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default exit code 6 and an event; skipped, the run finishes and says so everywhere."""
    break_losses(monkeypatch, 3)
    words = [word for word in tiny() if not word.startswith("logger.console")]
    assert cli.main(work.words("train", *words)) == 6
    assert "outer step 3: nan: the loss is not finite; the weights are as before this step" in capsys.readouterr().err
    (stopped,) = work.directories("train")
    assert read_history(stopped / "events.jsonl") == [NAN_AT_3 | {"action": "stop"}]

    assert cli.main(work.words("train", *words, "guard.on_nonfinite=skip")) == 0
    assert "meta-train: guard: step 4, nonfinite loss: nan, skip" in capsys.readouterr().err
    (run,) = [path for path in work.directories("train") if path != stopped]
    assert verify(run) == []
    assert finite(run)
    assert read_history(run / "events.jsonl") == [NAN_AT_3]
    document = metrics(run)
    assert document["guard"]["training"]["kinds"]["nonfinite_loss"] == 1
    assert document["guard"]["training"]["actions"] == {"warn": 0, "skip": 1, "rollback": 0, "stop": 0}
    assert document["guard"]["pretraining"]["events"] == 0
    assert "guard of training: 1 nonfinite loss (1 skip)" in notes(document)
    page = work.root / "page.html"
    assert cli.main(["report", str(run), f"output={page}", "formats=[html,md]"]) == 0
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "Guard, training" in text
        assert "nonfinite loss" in text


def test_on_off_and_before_are_the_same_run(work: Work, finished: Path) -> None:
    """A guard that only watches changes no bit, and takes the pretrained weights of none."""
    words = ("logger.plots=true",)
    off = work.train(*words, "guard=off")
    assert_guardless(off)
    acting = work.train(*words, "guard.on_nonfinite=rollback", "guard.on_spike=rollback", "guard.sigma=1000")
    assert "guard" in state(finished, "last")
    for run in (off, acting):
        for pointer in ("best", "last"):
            found = {name: held for name, held in tensors(run, pointer).items() if not name.startswith("kept/")}
            assert same_bits(found, tensors(finished, pointer))
        assert (run / "history.jsonl").read_bytes() == (finished / "history.jsonl").read_bytes()
        assert metrics(run)["metrics"] == metrics(finished)["metrics"]
        assert not (run / "events.jsonl").exists()
    assert off_key(off) == off_key(finished) != off_key(acting)
    assert [line for line in notes(metrics(finished)) if line.startswith("guard")] == []


def off_key(run: Path) -> Any:
    return metrics(run)["training"]["warm_start"]["key"]


def assert_guardless(run: Path) -> None:
    assert "guard" not in metrics(run)
    assert "guard" not in state(run, "last")
    assert {name.split("/")[0] for name in tensors(run, "last")} == {"phi", "base", "optimizer"}


def test_an_exploded_rate_is_rolled_back_and_the_run_finishes(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "schedule", lambda *given: lambda step: 1e4 if step == 12 else 1.0)
    words = (
        "train.steps=20",
        "train.patience=0",
        "guard.warmup_steps=8",
        "guard.sigma=8",
        "algorithm=fomaml",
        "residual=off",
    )
    run = work.train(*words, "guard.on_spike=rollback", "guard.on_nonfinite=rollback", "guard.keep_every=5")
    events = read_history(run / "events.jsonl")
    assert [(event["step"], event["action"], event["rate"]) for event in events] == [(14, "rollback", 0.5)]
    assert events[0]["to"] in (10, 12)  # step 12 is a checkpoint, good until its own update
    losses = {r["step"]: r["loss"] for r in read_history(run / "history.jsonl") if r["kind"] == "train"}
    assert 14 not in losses
    assert losses[20] < events[0]["threshold"]
    rates = {r["step"]: r["lr"] for r in read_history(run / "history.jsonl") if r["kind"] == "train"}
    assert rates[20] == rates[1] / 2
    assert metrics(run)["guard"]["training"]["rate"] == 0.5
    unguarded = work.train(*words[:2], *words[4:], "guard=off")
    late = [r["loss"] for r in read_history(unguarded / "history.jsonl") if r["kind"] == "train" and r["step"] > 13]
    assert late[0] == pytest.approx(events[0]["value"])


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_resumed_across_an_event_ends_with_the_same_bits(
    action: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From checkpoints before and behind the event."""
    break_losses(monkeypatch, 5)
    whole = work.train("train.steps=12", "train.checkpoint_every=2", f"guard.on_nonfinite={action}", "train.patience=0")
    assert len(read_history(whole / "events.jsonl")) == 1
    for step in (4, 8):
        copy = Path(shutil.copytree(whole, work.root / "outputs" / f"cut{step}"))
        for name in ("manifest.json", "metrics.json", "per_user.parquet"):
            (copy / name).unlink()
        for path in (copy / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        assert cli.main(["train", f"resume={copy}"]) == 0
        assert_same_run(copy, whole)
        assert same_bits(tensors(copy, "last"), tensors(whole, "last"))
        assert state(copy, "last")["guard"] == state(whole, "last")["guard"]
        assert (copy / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()


def test_pretraining_is_guarded_and_its_events_stay_with_the_cached_weights(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = Work(work.root, work.root / "cold")
    break_pretraining(monkeypatch, 2)
    with pytest.raises(Exception, match="outer step 2: inf: the loss is not finite"):
        cold.train()
    run = cold.train("guard.on_nonfinite=skip")
    monkeypatch.undo()
    monkeypatch.chdir(work.root)
    again = cold.train("guard.on_nonfinite=skip", "seed=1", "train.steps=4")
    (event,) = read_history(run / "pretrain_events.jsonl")
    assert (event["step"], event["value"], event["action"]) == (3, "inf", "skip")
    assert (again / "pretrain_events.jsonl").read_bytes() == (run / "pretrain_events.jsonl").read_bytes()
    assert metrics(again)["guard"]["pretraining"]["actions"]["skip"] == 1
    assert 3 not in [r["step"] for r in read_history(run / "pretrain_history.jsonl") if r["kind"] == "train"]
    assert finite(run)


def test_a_supervised_run_is_guarded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    break_pretraining(monkeypatch, 1)
    run = work.train("algorithm=supervised", "guard.on_nonfinite=rollback")
    (event,) = read_history(run / "events.jsonl")
    assert (event["step"], event["action"], event["to"], event["rate"]) == (2, "rollback", 0, 0.5)
    assert metrics(run)["guard"]["training"]["rate"] == 0.5
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] > 2
    assert finite(run)
