"""Metrics of ranks against fractions written by hand and against ranx, and what holds for every one of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from metarec.metrics import METRICS
from metarec.metrics.hit_rate import hit_rate
from metarec.metrics.ndcg import ndcg
from metarec.metrics.ranking import Metric
from metarec.metrics.reciprocal_rank import reciprocal_rank

RANKS = np.array([1, 2, 3, 10, 11, 21, 101])  # the last is unknown in a catalogue of 100


def test_hand_written_fractions() -> None:
    assert hit_rate(RANKS, 100, k=10).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert hit_rate(RANKS, 100, k=20).sum() / 7 == 5 / 7
    np.testing.assert_allclose(ndcg(np.array([1, 3, 7, 15]), 100, k=10), [1, 1 / 2, 1 / 3, 0], rtol=1e-15)
    np.testing.assert_allclose(reciprocal_rank(RANKS, 100), [1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 1 / 21, 0], rtol=1e-15)


def test_unknown_is_a_miss_even_where_k_exceeds_the_catalogue() -> None:
    unknown = np.array([[4]])  # three items
    for name, metric in METRICS.items():
        assert metric(unknown, 3).tolist() == [[0.0]], name
    assert hit_rate(np.array([3]), 3, k=10).tolist() == [1.0]


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_is_a_share_that_a_better_rank_never_lowers(name: str) -> None:
    rank = np.arange(1, 121).reshape(4, 30)  # 20 of them unknown
    values = METRICS[name](rank, 100)
    assert (values.shape, values.dtype) == (rank.shape, np.float64)
    assert values.flat[0] == 1.0
    assert (np.diff(values.ravel()) <= 0).all()
    assert values.min() == 0.0
    with pytest.raises(TypeError, match="integers"):
        METRICS[name](np.array([1.5]), 100)
    with pytest.raises(ValueError, match="start at 1"):
        METRICS[name](np.array([0]), 100)


def check_against_ranx(metrics: Mapping[str, Metric]) -> None:
    """300 queries over 60 items, without ties since ranx breaks them its own way."""
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(5)
    n, n_items = 300, 60
    scores = rng.permuted(np.tile(np.arange(n_items), (n, 1)), axis=1)
    target = rng.integers(0, n_items, n)
    rank = 1 + (scores > scores[np.arange(n), target][:, None]).sum(axis=1)
    qrels = Qrels({f"q{i}": {f"i{target[i]}": 1} for i in range(n)})
    run = Run({f"q{i}": {f"i{j}": float(scores[i, j]) for j in range(n_items)} for i in range(n)})
    names = {"hr@1": "hit_rate@1", "hr@5": "hit_rate@5", "hr@10": "hit_rate@10", "hr@20": "hit_rate@20",
             "ndcg@10": "ndcg@10", "mrr": "mrr"}  # fmt: skip
    theirs = evaluate(qrels, run, list(names.values()))
    for ours, name in names.items():
        assert metrics[ours](rank, n_items).mean() == pytest.approx(theirs[name], abs=1e-12), ours


def test_against_ranx() -> None:
    check_against_ranx(METRICS)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("ndcg@10", lambda rank, n_items: np.where(rank <= 10, 1 / np.log(1.0 + rank), 0.0)),  # natural logarithm
        ("hr@5", lambda rank, n_items: (rank < 5) * 1.0),  # k is inside
        ("mrr", lambda rank, n_items: np.where(rank <= 10, 1.0 / rank, 0.0)),  # cut at 10
    ],
)
def test_ranx_catches_a_planted_fault(name: str, fault: Metric) -> None:
    with pytest.raises(AssertionError, match=name):
        check_against_ranx({**METRICS, name: fault})
