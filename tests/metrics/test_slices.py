"""Slices: bins and classes by hand, every figure by masking, and no slice where there are no columns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from metarec.metrics import METRICS
from metarec.metrics.intervals import paired_difference
from metarec.metrics.records import TargetRecords
from metarec.metrics.slices import history_bins, popularity_classes, slices
from metarec.metrics.summary import summarise

COUNTS = np.array([40, 20, 15, 10, 5, 5, 3, 1, 1, 0])  # of ten items; 100 training events
OPTIONS = {"n_resamples": 100, "confidence": 0.95, "seed": 0}


def records(methods: tuple[str, ...] = ("control", "zeroshot", "fewshot")) -> TargetRecords:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), 6)
    target = rng.integers(1, 12, user.size)  # 11 is unknown
    ranks = {m: np.where(target == 11, 11, rng.integers(1, 11, user.size)) for m in methods}
    return TargetRecords(
        user, user, np.tile(np.arange(6), 30), user < 0, ranks, 10,
        history=rng.integers(3, 40, 30)[user], popularity=np.where(target == 11, -1, COUNTS[target % 11 - 1]),
        item_counts=COUNTS,
    )  # fmt: skip


def test_bins_are_quarters_and_split_no_equal_values() -> None:
    assert history_bins(np.arange(1, 9)) == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert history_bins(np.array([5] * 7 + [9])) == [(5, 5), (9, 9)]
    assert history_bins(np.array([4, 4, 4])) == [(4, 4)]
    assert history_bins(np.array([1, 2, 2, 2, 2, 2, 2, 30])) == [(1, 2), (30, 30)]
    rng = np.random.default_rng(1)
    for _ in range(50):
        history = rng.integers(0, rng.integers(2, 40), rng.integers(1, 60))
        bins = history_bins(history)
        assert 1 <= len(bins) <= 4
        assert sum(int(((history >= low) & (history <= high)).sum()) for low, high in bins) == history.size
        assert all(a[1] < b[0] for a, b in itertools.pairwise(bins))


def test_classes_by_cumulative_share_by_hand() -> None:
    """40 + 20 events reach half of 100, 15 + 10 more 80; the two items of 5 events are of one class."""
    assert popularity_classes(COUNTS) == [
        ("head (from 20)", 20, 40), ("middle (10-19)", 10, 19), ("tail (to 9)", 0, 9),
    ]  # fmt: skip
    assert popularity_classes(np.array([3, 3, 3])) == [("head (from 3)", 3, 3)]
    assert popularity_classes(np.array([90, 1, 1, 8])) == [
        ("head (from 90)", 90, 90),
        ("tail (to 89)", 0, 89),
    ]


def test_every_figure_by_masking() -> None:
    data = records()
    found = summarise(data, **OPTIONS)["slices"]
    assert list(found) == ["history_length", "target_popularity"]
    assert [entry["label"].split(" (")[0] for entry in found["target_popularity"]] == [
        "head",
        "middle",
        "tail",
        "unknown",
    ]
    assert data.history is not None
    assert data.popularity is not None
    for name, column in (("history_length", data.history), ("target_popularity", data.popularity)):
        assert sum(entry["targets"] for entry in found[name]) == data.user.size
        for entry in found[name]:
            own = data.unknown if entry["low"] is None else (column >= entry["low"]) & (column <= entry["high"])
            assert (entry["targets"], entry["users"]) == (own.sum(), np.unique(data.user[own]).size)
            for metric, values in METRICS.items():
                few, control = (values(data.ranks[m][own], 10) for m in ("fewshot", "control"))
                assert entry["metrics"]["fewshot"][metric] == pytest.approx(few.mean())
                wanted = paired_difference(few, control, data.user[own], **OPTIONS)
                gain = entry["gain"][metric]
                assert [gain[k] for k in ("mean", "low", "high")] == pytest.approx(
                    [wanted.mean, wanted.low, wanted.high]
                )
            assert (entry["of"], entry["against"]) == ("fewshot", "control")


def test_what_is_not_known_is_left_out() -> None:
    data = records()
    bare = replace(data, history=None, popularity=None, item_counts=None)
    assert slices(bare, **OPTIONS) == {}
    assert "slices" not in summarise(bare, n_resamples=20)
    assert list(slices(replace(data, popularity=None, item_counts=None), **OPTIONS)) == ["history_length"]
    against_zero = slices(records(("zeroshot", "fewshot")), **OPTIONS)["history_length"][0]
    assert against_zero["against"] == "zeroshot"
    assert "gain" not in slices(records(("zeroshot",)), **OPTIONS)["history_length"][0]


def test_columns_that_do_not_fit_are_refused() -> None:
    data = records()
    with pytest.raises(ValueError, match="go together"):
        replace(data, item_counts=None)
    with pytest.raises(ValueError, match="one for each of 10 items"):
        replace(data, item_counts=COUNTS[:3])
    with pytest.raises(ValueError, match="history"):
        replace(data, history=np.arange(3))
