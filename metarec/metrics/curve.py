"""Figures over the number of support pairs K, on the same users and the same query pairs.

    {ks, users, targets, split, methods.<method>.<metric>: [{mean, low, high} for each K],
     gain.<method>.<metric>: the same of each K minus the smallest K}

One set of draws of users serves every K and method, so that differences along a curve are paired: the interval of the gain
is that of (K minus smallest K) over the same drawn users, and holds 0 where more support did not show.

Shapes: n targets, K one of the support sizes. Intervals as in `metrics.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metarec.metrics import METRICS
from metarec.metrics.bootstrap import bootstrap
from metarec.metrics.finite import interval, plain_json
from metarec.metrics.records import TargetRecords

Json = dict[str, Any]


def curve(
    records_by_k: Mapping[int, TargetRecords],
    *,
    split: str,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Json:
    """The document above, K rising. Raises ValueError unless every K has the same targets and the same methods."""
    ks = sorted(records_by_k)
    if not ks:
        raise ValueError("a curve needs one K at least")
    first = records_by_k[ks[0]]
    for k in ks[1:]:
        _refuse_others(first, records_by_k[k], f"K={k} and K={ks[0]}")
    # the same draws of users for every K
    drawn = [bootstrap(records_by_k[k].values, first.user, n_resamples=n_resamples, seed=seed) for k in ks]
    gained = [one - drawn[0] for one in drawn]
    ends, gains = ([one.interval(confidence) for one in some] for some in (drawn, gained))

    def along(figure: Any) -> Json:
        return {
            method: {
                metric: [interval(*figure(i, first.column(method, metric))) for i in range(len(ks))]
                for metric in METRICS
            }
            for method in first.ranks
        }

    out = {
        "ks": ks,
        "users": drawn[0].n_users,
        "targets": int(first.user.size),
        "split": split,
        "methods": along(lambda i, c: (drawn[i].mean[c], ends[i][0][c], ends[i][1][c])),
        "gain": along(lambda i, c: (gained[i].mean[c], gains[i][0][c], gains[i][1][c])),
    }
    checked: Json = plain_json(out, "k_curve")
    return checked


def _refuse_others(one: TargetRecords, other: TargetRecords, where: str) -> None:
    same = all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("user", "episode", "position", "unknown")
    )
    if not same:
        raise ValueError(f"{where}: a curve is over the same users and query pairs")
    if list(one.ranks) != list(other.ranks):
        raise ValueError(f"{where}: other methods, {list(one.ranks)} and {list(other.ranks)}")
