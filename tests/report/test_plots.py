"""Curves: the right series with the right points, a picture that opens, one line when matplotlib is missing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from metarec.errors import EnvironmentFault
from metarec.report import plots
from metarec.report.plots import plot_curves, series

RECORDS = [
    {"step": step, "kind": "train", "loss": 5 - step / 100, "lr": 1e-4, "skipped": False} for step in range(1, 101)
] + [
    {"step": step, "kind": "val", "fewshot": {"ndcg@10": step / 1000, "mrr": 0.1}, "zeroshot": {"ndcg@10": 0.05}}
    for step in (0, 50, 100)
]


def test_series() -> None:
    found = series(RECORDS)
    assert set(found) == {"train.loss", "train.lr", "val.fewshot.ndcg@10", "val.fewshot.mrr", "val.zeroshot.ndcg@10"}
    assert found["val.fewshot.ndcg@10"] == ([0, 50, 100], [0, 0.05, 0.1])
    assert len(found["train.loss"][0]) == 100


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    made = plot_curves(RECORDS, tmp_path, metric="ndcg@10", title="test", best_step=50)
    assert made == [tmp_path / "loss.png", tmp_path / "validation.png"]
    for path in made:
        with image.open(path) as picture:
            assert picture.size == (1080, 630)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_without_series_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_curves([], tmp_path, metric="ndcg@10") == []
    assert plot_curves(RECORDS[:100], tmp_path, metric="ndcg@10") == [tmp_path / "loss.png"]


def test_running_mean_never_looks_ahead() -> None:
    assert plots._running_mean([4.0, 2.0, 0.0, 6.0], 2) == [4, 3, 1, 3]


def test_without_matplotlib_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = plot_curves(RECORDS, tmp_path, metric="ndcg@10")
    assert line == "curves left out: matplotlib is not installed -- pip install 'metarec[plot]'"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentFault, match=r"loss\.png"):
        plot_curves(RECORDS, tmp_path, metric="ndcg@10")
    assert list(tmp_path.iterdir()) == []
