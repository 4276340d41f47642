"""From the rank of every target under every method to the figures of metrics.json.

A method is a name and its ranks, so another baseline is another entry of ``TargetRecords.ranks`` and nothing here
changes. Names used by the main job: pretrained (the warm start, not adapted), control (fine-tune control), zeroshot (the
meta-learned start, not adapted), fewshot, and where the data's law is known bayes_zeroshot, bayes_fewshot; and the panel.

    metrics.<method>.<metric>         mean over targets (plain floats), of every metric in `metrics.METRICS`
    intervals.<method>.<metric>       [low, high] or null, user-clustered bootstrap; also of comparison, improvement
    macro.<method>.<metric>           {mean, low, high} of the mean over users of each user's mean
    repeat, novel                     targets already in prefix or support, and the others: counts, metrics, intervals
    slices                            by history length and by popularity of the target, see `metrics.slices`
    differences.<name>                of, against, and for each metric what `metrics.differences` says
    comparison.<metric>               few-shot minus fine-tune control; improvement.{absolute,relative}.<metric>
                                      few-shot minus zero-shot, and that over zero-shot (null where zero-shot is 0)
    share_of_gap.<method>.<metric>    {share, low, high} of (method - start) / (bayes_fewshot - start), where start is
                                      the pretrained model's zero-shot (`pretrained`; `zeroshot` where that is all)
    counts                            users, episodes, targets, unknown_target_share, repeat_share

Shapes: n targets. Every figure over all targets, the differences and the shares come from one set of draws of users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from metarec.metrics import METRICS
from metarec.metrics import intervals as iv
from metarec.metrics.bootstrap import Drawn, bootstrap, per_user_sums, user_means
from metarec.metrics.differences import differences as differences_table
from metarec.metrics.differences import n_flips, pairs_of
from metarec.metrics.finite import ends, interval, or_none, plain_json
from metarec.metrics.records import TargetRecords
from metarec.metrics.slices import slices

__all__ = ["TargetRecords", "per_user", "summarise"]

Json = dict[str, Any]


def summarise(
    records: TargetRecords,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    differences: Mapping[str, tuple[str, str]] | None = None,
) -> Json:
    """The nested dict above; ``differences`` name -> (method, method it is compared with), ``pairs_of`` unless given.

    Raises DivergedError naming the key if any figure is not finite.
    """
    options: dict[str, Any] = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    user, values = records.user, records.values
    users = np.unique(user)
    drawn = bootstrap(values, user, n_resamples=n_resamples, seed=seed)
    low, high = drawn.interval(confidence)
    means = drawn.mean

    macro = bootstrap(user_means(values, user), users, n_resamples=n_resamples, seed=seed)
    macro_low, macro_high = macro.interval(confidence)

    out: Json = {
        "metrics": _table(records, lambda c: float(means[c])),
        "intervals": _table(records, lambda c: ends(low[c], high[c])),
        "macro": _table(records, lambda c: interval(macro.mean[c], macro_low[c], macro_high[c])),
        "counts": {
            "users": int(users.size),
            "episodes": int(np.unique(records.episode).size),
            "targets": int(user.size),
            "unknown_target_share": float(records.unknown.mean()),
            "repeat_share": float(records.repeat.mean()),
        },
        "bootstrap": {"n_resamples": n_resamples, "confidence": confidence, "seed": seed, "unit": "user"},
    }
    for name, chosen in (("repeat", records.repeat), ("novel", ~records.repeat)):
        out[name] = _subset(records, chosen, **options)
    if sliced := slices(records, **options):
        out["slices"] = sliced

    wanted = pairs_of(records.ranks) if differences is None else differences
    wanted = {name: pair for name, pair in wanted.items() if set(pair) <= set(records.ranks)}
    out["differences"] = differences_table(records, wanted, drawn, **options)
    if wanted:
        out["bootstrap"]["n_flips"] = n_flips(len(wanted), n_resamples, confidence)
    _published(out)
    if {"zeroshot", "bayes_fewshot"} <= set(records.ranks):
        out["share_of_gap"] = _shares(records, drawn, confidence)
    checked: Json = plain_json(out, "metrics.json")
    return checked


def per_user(records: TargetRecords) -> dict[str, npt.NDArray[Any]]:
    """Columns of per_user.parquet: user, n_targets, n_repeat, n_unknown, ``<method>.<metric>`` (mean over targets)."""
    flags = np.stack([records.repeat, records.unknown], axis=1).astype(np.float64)
    sums, counts = per_user_sums(flags, records.user)
    columns: dict[str, npt.NDArray[Any]] = {
        "user": np.unique(records.user),
        "n_targets": counts.astype(np.int64),
        "n_repeat": sums[:, 0].astype(np.int64),
        "n_unknown": sums[:, 1].astype(np.int64),
    }
    means = user_means(records.values, records.user)
    for method in records.ranks:
        for metric in METRICS:
            columns[f"{method}.{metric}"] = means[:, records.column(method, metric)]
    return columns


def _table(records: TargetRecords, figure: Any) -> Json:
    return {method: {metric: figure(records.column(method, metric)) for metric in METRICS} for method in records.ranks}


def _subset(
    records: TargetRecords, chosen: npt.NDArray[np.bool_], *, n_resamples: int, confidence: float, seed: int
) -> Json:
    """Figures over the chosen targets only; no metrics where there is no such target."""
    count = int(chosen.sum())
    users = np.unique(records.user[chosen]).size
    out: Json = {"targets": count, "users": int(users), "metrics": {}, "intervals": {}}
    if count:
        values = records.values[chosen]
        drawn = bootstrap(values, records.user[chosen], n_resamples=n_resamples, seed=seed)
        low, high = drawn.interval(confidence)
        out["metrics"] = _table(records, lambda c: float(drawn.mean[c]))
        out["intervals"] = _table(records, lambda c: ends(low[c], high[c]))
    return out


def _published(out: Json) -> None:
    """Add ``comparison`` and ``improvement``, flat, with their intervals beside those of the methods."""
    control = out["differences"].get("gain_over_control")
    zero = out["differences"].get("gain_over_zeroshot")
    if control is not None:
        out["comparison"] = {metric: control[metric]["mean"] for metric in METRICS}
        out["intervals"]["comparison"] = {metric: _ends(control[metric]) for metric in METRICS}
    if zero is not None:
        base = out["metrics"]["zeroshot"]
        out["improvement"] = {
            "absolute": {metric: zero[metric]["mean"] for metric in METRICS},
            "relative": {metric: zero[metric]["mean"] / base[metric] if base[metric] else None for metric in METRICS},
        }
        out["intervals"]["improvement"] = {metric: _ends(zero[metric]) for metric in METRICS}


def _shares(records: TargetRecords, drawn: Drawn, confidence: float) -> Json:
    start = "pretrained" if "pretrained" in records.ranks else "zeroshot"
    out: Json = {}
    for method in records.ranks:
        if method in (start, "bayes_zeroshot", "bayes_fewshot"):
            continue
        out[method] = {}
        for metric in METRICS:
            three = [records.column(name, metric) for name in (method, start, "bayes_fewshot")]
            share, low, high = iv.gap_ratio(drawn.columns(three), confidence)
            out[method][metric] = {"share": or_none(share), "low": or_none(low), "high": or_none(high)}
    return out


def _ends(entry: Json) -> list[float] | None:
    return None if entry["low"] is None else [entry["low"], entry["high"]]
