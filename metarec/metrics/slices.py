"""The same figures for parts of the targets: by how much the user has behind him, and by how popular the target is.

    history_length       quantile bins (at most four) of the events before the query, made from the targets at hand;
                         equal lengths are never split, so a bin may be larger than a quarter
    target_popularity    head: the most popular items that hold the first half of the training events; middle: those after
                         them up to 80 %; tail: the rest. Items with equally many events are of one class. Targets that the
                         training users never saw stand apart: unknown

Each slice: label, low, high (events, inclusive), users, targets, metrics.<method>.<metric> (means over its targets), of,
against, gain.<metric> {mean, low, high} of the run's subject over the fine-tune control (over zero-shot without a control).
Slices are for looking at: their intervals are not corrected for how many there are, and no p-value is given.

Source: Ji et al. 2020, arXiv:2005.13829 (popularity); the long tail as in Anderson 2006, thresholds ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from metarec.metrics import METRICS
from metarec.metrics.bootstrap import bootstrap
from metarec.metrics.differences import subject
from metarec.metrics.finite import interval
from metarec.metrics.records import TargetRecords

Json = dict[str, Any]
Ints = npt.NDArray[np.int64]
HEAD, MIDDLE = 0.5, 0.8  # shares of the training events


def slices(records: TargetRecords, *, n_resamples: int, confidence: float, seed: int) -> Json:
    """{history_length, target_popularity}: each a list of slices, left out where its columns are not known."""
    parts: dict[str, list[tuple[str, int | None, int | None, npt.NDArray[np.bool_]]]] = {}
    if records.history is not None:
        bins = history_bins(records.history)
        parts["history_length"] = [
            (_events(low, high), low, high, (records.history >= low) & (records.history <= high)) for low, high in bins
        ]
    if records.popularity is not None and records.item_counts is not None:
        known = ~records.unknown
        parts["target_popularity"] = [
            (label, low, high, known & (records.popularity >= low) & (records.popularity <= high))
            for label, low, high in popularity_classes(records.item_counts)
        ]
        parts["target_popularity"].append(("unknown", None, None, records.unknown))
    return {
        name: [
            {
                "label": label, "low": low, "high": high,
                **_figures(records, chosen, n_resamples=n_resamples, confidence=confidence, seed=seed),
            }
            for label, low, high, chosen in part if chosen.any()
        ]
        for name, part in parts.items()
    }  # fmt: skip


def history_bins(history: Ints) -> list[tuple[int, int]]:
    """(low, high) of each bin, both ends inclusive and found in ``history`` [n], rising."""
    cuts = np.unique(np.quantile(history, [0.25, 0.5, 0.75], method="inverted_cdf")).astype(np.int64)
    place = np.searchsorted(cuts, history, side="left")
    return [
        (int(own.min()), int(own.max())) for own in (history[place == bin] for bin in range(cuts.size + 1)) if own.size
    ]


def popularity_classes(item_counts: Ints) -> list[tuple[str, int, int]]:
    """(label, low, high) of head, middle and tail in training events; a class that no item is of is left out.

    `item_counts` [V], training events of each item.
    """
    counts = np.sort(item_counts)[::-1]
    distinct = np.unique(counts)[::-1]
    more = np.searchsorted(-counts, -distinct, side="left")  # items with more events than this
    share = np.concatenate([[0], np.cumsum(counts)])[more] / max(int(counts.sum()), 1)
    head, middle = (int(distinct[share < limit].min()) for limit in (HEAD, MIDDLE))
    found = [(f"head (from {head:,})", head, int(distinct[0]))]
    if middle < head:
        found.append((f"middle ({_span(middle, head - 1)})", middle, head - 1))
    if int(distinct[-1]) < middle:
        found.append((f"tail (to {middle - 1:,})", 0, middle - 1))
    return found


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _events(low: int, high: int) -> str:
    return f"{_span(low, high)} event{'s' * ((low, high) != (1, 1))}"


def _figures(
    records: TargetRecords, chosen: npt.NDArray[np.bool_], *, n_resamples: int, confidence: float, seed: int
) -> Json:
    users, values = records.user[chosen], records.values[chosen]
    n_users = np.unique(users).size
    means = values.mean(axis=0)
    out: Json = {
        "users": int(n_users),
        "targets": int(users.size),
        "metrics": {m: dict(zip(METRICS, means[records.columns(m)].tolist(), strict=True)) for m in records.ranks},
    }
    of = subject(records.ranks)
    against = "control" if "control" in records.ranks else "zeroshot"
    if of == against or not {of, against} <= set(records.ranks):
        return out
    delta = values[:, records.columns(of)] - values[:, records.columns(against)]
    drawn = bootstrap(delta, users, n_resamples=n_resamples, seed=seed)
    low, high = drawn.interval(confidence)
    gain = (interval(*three) for three in zip(drawn.mean, low, high, strict=True))
    return {**out, "of": of, "against": against, "gain": dict(zip(METRICS, gain, strict=True))}
