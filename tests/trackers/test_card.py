"""What a tracker is told, against values written by hand."""

from __future__ import annotations

from metarec.options import flat
from metarec.trackers.card import figures, rows, text


def test_a_row_for_each_record() -> None:
    records = [
        {"step": 0, "kind": "val", "fewshot": {"ndcg@10": 0.25, "mrr": 0.5}},
        {"step": 7, "kind": "train", "loss": 5, "skipped": True, "note": "x"},
    ]
    assert rows(records) == [(0, {"val/fewshot/ndcg@10": 0.25, "val/fewshot/mrr": 0.5}), (7, {"train/loss": 5.0})]


def test_figures_are_the_numbers_of_the_named_sections() -> None:
    document = {
        "metrics": {"fewshot": {"hr@10": 0.5}},
        "intervals": {"fewshot": {"hr@10": [0.25, 0.75], "mrr": None}, "comparison": {"mrr": (-1, 1)}},
        "training": {"steps": 6, "stopped_early": True, "warm_start": {"kind": "auto", "val_mrr": 0.125}},
        "cost": {"seconds_per_step": None, "peak_bytes": 3},
        "config": {"seed": 1},
        "per_user": [1, 2],
    }
    assert figures(document) == {
        "metrics/fewshot/hr@10": 0.5,
        "intervals/fewshot/hr@10/low": 0.25,
        "intervals/fewshot/hr@10/high": 0.75,
        "intervals/comparison/mrr/low": -1.0,
        "intervals/comparison/mrr/high": 1.0,
        "training/steps": 6.0,
        "training/warm_start/val_mrr": 0.125,
        "cost/peak_bytes": 3.0,
    }


def test_a_list_stays_one_value() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": [1, 2], "e": None}
    assert [text(value) for value in ("on", True, 1e-8, [1, 2], None)] == ["on", "true", "1e-08", "[1, 2]", "null"]
