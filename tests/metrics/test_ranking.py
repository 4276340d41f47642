"""Metrics against fractions written by hand and against ranx."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from metarec.metrics import ranking
from metarec.metrics.ranking import METRICS, Metric, coverage, hit_rate, ndcg, popularity_percentile, reciprocal_rank

RANKS = np.array([1, 2, 3, 10, 11, 21, 101])  # the last is unknown in a catalogue of 100


def test_hand_written_fractions() -> None:
    assert hit_rate(RANKS, 10, 100).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert hit_rate(RANKS, 20, 100).sum() / 7 == 5 / 7
    np.testing.assert_allclose(ndcg(np.array([1, 3, 7, 15]), 10, 100), [1, 1 / 2, 1 / 3, 0], rtol=1e-15)
    np.testing.assert_allclose(reciprocal_rank(RANKS, 100), [1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 1 / 21, 0], rtol=1e-15)
    assert list(METRICS) == ["hr@1", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr"]


def test_unknown_is_a_miss_even_where_k_exceeds_the_catalogue() -> None:
    unknown = np.array([[4]])  # three items
    for name, metric in METRICS.items():
        assert metric(unknown, 3).tolist() == [[0.0]], name
    assert hit_rate(np.array([3]), 10, 3).tolist() == [1.0]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(TypeError, match="integers"):
        hit_rate(np.array([1.5]), 10, 100)
    with pytest.raises(ValueError, match="start at 1"):
        ndcg(np.array([0]), 10, 100)


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


def test_coverage_counts_distinct_items() -> None:
    assert coverage(np.array([[1, 2], [2, 3]]), 4) == 3 / 4
    assert coverage(np.array([[1, 0], [-1, 1]]), 4) == 1 / 4  # 0 and -1 are "no item"
    with pytest.raises(ValueError, match="outside the catalogue"):
        coverage(np.array([[5]]), 4)


def test_popularity_percentile() -> None:
    counts = np.array([10, 5, 5, 0])
    assert popularity_percentile(np.array([[1]]), counts) == 7 / 8
    assert popularity_percentile(np.array([[2], [3]]), counts) == 4 / 8
    assert popularity_percentile(np.array([[1, 2, 3, 4]]), counts) == 1 / 2  # even picks are in the middle
    assert popularity_percentile(np.array([[1], [1]]), np.array([3, 3, 3])) == 1 / 2
    assert ranking.popularity_percentile(np.array([[4, 0]]), counts) == 1 / 8
