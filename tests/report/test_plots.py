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
    assert made == [tmp_path / "loss.png", tmp_path / "validation.png", tmp_path / "training.png"]
    for path, height in zip(made, (630, 630, 840), strict=True):  # of training: loss and step size, no gradient
        with image.open(path) as picture:
            assert picture.size == (1080, height)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_picture_without_series_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_curves([], tmp_path, metric="ndcg@10") == []
    assert plot_curves(RECORDS[:100], tmp_path, metric="ndcg@10") == [tmp_path / "loss.png", tmp_path / "training.png"]


NORMED = [{"step": s, "kind": "train", "loss": 5.0, "grad_norm": s / 10, "lr": 1e-3 * s} for s in range(4)]


def test_the_course_of_training_has_three_panels_and_the_clip_dashed() -> None:
    """Norms 0.1, 0.2, 0.3 and a clip of 2, read from the figure's own lines; a norm of 0 has no logarithm."""
    pytest.importorskip("matplotlib")
    found = plots.course(series(NORMED))
    assert list(found) == ["train.loss", "train.grad_norm", "train.lr"]
    assert found["train.grad_norm"] == ([1, 2, 3], [0.1, 0.2, 0.3])
    loss, norm, rate = plots._draw_course(found, "t", 2.0).axes
    assert [axes.get_ylabel() for axes in (loss, norm, rate)] == ["loss", "gradient norm", "step size"]
    assert [axes.get_yscale() for axes in (loss, norm, rate)] == ["linear", "log", "linear"]
    curve, clip = norm.get_lines()
    assert list(curve.get_ydata()) == [0.1, 0.2, 0.3]
    assert (set(clip.get_ydata()), clip.get_linestyle(), clip.get_label()) == ({2.0}, "--", "clip 2")
    assert norm.get_ylim()[1] > 2
    assert list(rate.get_lines()[0].get_ydata()) == [0, 1e-3, 2e-3, 3e-3]


def test_without_a_clip_no_line_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    _, norm, _ = plots._draw_course(plots.course(series(NORMED)), "t", 0.0).axes
    assert len(norm.get_lines()) == 1
    assert norm.get_legend() is None


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
