"""How cells trained, by hand: running means, how far a loss has risen, and what a table says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metarec.report.finished import Run
from metarec.report.sheet import said
from metarec.report.training import late_over_lowest, loss_curves, smoothed, training_rows, training_sheet


def run_of(path: Path, losses: list[float], seed: int = 1, **more: object) -> Run:
    path.mkdir()
    lines = [{"step": 0, "kind": "val"}] + [
        {"step": i + 1, "kind": "train", "loss": loss, "grad_norm": 1.0, "lr": 0.1} for i, loss in enumerate(losses)
    ]
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(path, path.name, {"seeds": {"run": seed}, "training": {"steps": len(losses)}, **more})


def test_running_means_by_hand() -> None:
    assert smoothed([1, 2, 3, 4, 5, 6]).tolist() == pytest.approx([3, 4])  # five at least
    assert smoothed([4, 2]).tolist() == pytest.approx([3])
    assert len(smoothed([0.0] * 200)) == 191  # a twentieth: ten


def test_a_falling_loss_ends_at_one_and_a_risen_one_above() -> None:
    assert late_over_lowest([2.0] * 40) == pytest.approx(1)
    assert late_over_lowest(np.linspace(4, 1, 40).tolist()) == pytest.approx(1)
    assert late_over_lowest([2.0] * 20 + [3.0] * 20) == pytest.approx(1.5)
    assert late_over_lowest([1.0] * 9) is None
    assert late_over_lowest([2.0] * 39 + [4.0]) == pytest.approx(
        1.2
    )  # (2 + 2 + 2 + 2 + 4) / 5 over 2, not one loss over one
    assert late_over_lowest([2.0] * 20 + [0.5] + [2.0] * 20) == pytest.approx(2 / 1.7)
    single_spike = [2.0] * 20 + [9.0] + [2.0] * 20
    assert late_over_lowest(single_spike) == pytest.approx(1)  # gone again by the end


def test_the_table_has_every_seed_and_what_the_guard_did(tmp_path: Path) -> None:
    guard = {"kinds": {"spike": 2, "nonfinite_loss": 0}, "actions": {"warn": 2, "stop": 0}, "events": 2, "rate": 1.0}
    more = {
        "guard": {"training": guard}, "cost": {"seconds_per_step": 0.25, "adapted_numbers": 1536},
        "divergence": {"fewshot": {"kl": 0.5, "cross_entropy": 2.25}},
        "latency": {"single_seconds_per_user": 0.002, "batched_seconds_per_user": 0.001},
    }  # fmt: skip
    first = run_of(tmp_path / "a", [2.0] * 20 + [3.0] * 20, 1, **more)
    second = run_of(tmp_path / "b", [2.0] * 40, 2, **more)
    rows = training_rows([(("lora", "fomaml"), [first, second])])
    sheet = training_sheet(rows, "log model")
    assert sheet is not None
    told = dict(zip(sheet.columns, map(said, sheet.rows[0]), strict=True))
    assert told["cell"] == "fomaml, lora"
    assert (told["late"], told["lowest"], told["late / lowest"]) == ("3.000 2.000", "2.000 2.000", "1.500 1.000")
    assert told["guard"] == "4 spike, 4 warn"
    assert (told["KL to pretrained"], told["cross-entropy"], told["numbers a user"]) == ("0.5000", "2.2500", "1,536")
    assert (told["ms a user alone"], told["ms a meta-step"]) == ("2", "250")
    picture = loss_curves([(("lora", "fomaml"), [first, second])])
    assert picture is not None
    assert [name for name, _ in picture.legend] == ["fomaml, lora, seed 1", "fomaml, lora, seed 2"]


def test_what_was_not_measured_has_no_column_and_supervised_no_table(tmp_path: Path) -> None:
    plain = run_of(tmp_path / "a", [2.0] * 40)
    sheet = training_sheet(training_rows([(("off", "maml"), [plain])]), "log model")
    assert sheet is not None
    assert list(sheet.columns) == ["cell", "loss at first", "lowest", "late", "late / lowest"]
    empty = run_of(tmp_path / "b", [])
    assert training_sheet(training_rows([(("off", "supervised"), [empty])]), "log model") is None
    assert loss_curves([(("off", "supervised"), [empty])]) is None
