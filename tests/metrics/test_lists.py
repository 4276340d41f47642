"""Metrics of whole lists by hand, and what holds for every one of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from metarec.metrics import LISTS
from metarec.metrics.coverage import coverage
from metarec.metrics.lists import Had, Lists
from metarec.metrics.popularity_percentile import popularity_percentile


def lists(top: npt.ArrayLike, counts: npt.ArrayLike, **had: Had) -> Lists:
    """Lists [Q, k] of one episode, of users who have had nothing, unless it is given."""
    none = Had(np.zeros(0, np.int64), np.zeros(0, np.int64))
    support, prefix = had.get("support", none), had.get("prefix", none)
    return Lists(np.asarray(top)[None], np.size(counts), np.asarray(counts), lambda: support, lambda: prefix)


def test_coverage_counts_distinct_items() -> None:
    counts = [1, 1, 1, 1]
    assert coverage(lists([[1, 2], [2, 3]], counts)) == 3 / 4
    assert coverage(lists([[1, 0], [-1, 1]], counts)) == 1 / 4  # 0 and -1 are "no item"
    with pytest.raises(ValueError, match="outside the catalogue"):
        coverage(lists([[5]], counts))


def test_popularity_percentile() -> None:
    counts = [10, 5, 5, 0]
    assert popularity_percentile(lists([[1]], counts)) == 7 / 8
    assert popularity_percentile(lists([[2], [3]], counts)) == 4 / 8
    assert popularity_percentile(lists([[1, 2, 3, 4]], counts)) == 1 / 2  # even picks are in the middle
    assert popularity_percentile(lists([[1], [1]], [3, 3, 3])) == 1 / 2
    assert popularity_percentile(lists([[4, 0]], counts)) == 1 / 8
    with pytest.raises(ValueError, match="no item"):
        popularity_percentile(lists([[0, -1]], counts))


@pytest.mark.parametrize("name", list(LISTS))
def test_every_metric_is_one_number_that_the_order_of_queries_does_not_move(name: str) -> None:
    rng = np.random.default_rng(3)
    n, q, k, n_items = 5, 4, 10, 30
    top = np.stack([rng.permutation(n_items)[:k] + 1 for _ in range(n * q)]).reshape(n, q, k)
    counts = rng.integers(0, 50, n_items)

    def figure(order: np.ndarray) -> float | None:
        row = np.repeat(np.arange(n), 3)
        support = Had(row, np.tile(np.arange(1, 4), n))
        prefix = Had(np.repeat(np.arange(n * q), 2), np.tile(np.arange(5, 7), n * q))
        return LISTS[name](Lists(top[order], n_items, counts, lambda: support, lambda: prefix))

    found = figure(np.arange(n))
    assert isinstance(found, float) and np.isfinite(found)
    assert figure(np.arange(n)[::-1]) == pytest.approx(found, abs=1e-12)
