"""From the rank of every target under every method to the figures of metrics.json.

A method is a name and its ranks, so another baseline is another entry of ``TargetRecords.ranks`` and nothing here
changes. Names used by the main job: pretrained (the warm start, not adapted), control (fine-tune control), zeroshot (the
meta-learned start, not adapted), fewshot, and where the data's law is known bayes_zeroshot, bayes_fewshot.

    metrics.<method>.<metric>         mean over targets (plain floats: hr@1 hr@5 hr@10 hr@20 ndcg@10 mrr)
    intervals.<method>.<metric>       [low, high] or null, user-clustered bootstrap; also of comparison, improvement
    macro.<method>.<metric>           {mean, low, high} of the mean over users of each user's mean
    repeat, novel                     targets already in prefix or support, and the others: counts, metrics, intervals
    differences.<name>                of, against; for each metric mean, low, high, macro_mean, p_value, p_holm, verdict
    comparison.<metric>               few-shot minus fine-tune control; improvement.{absolute,relative}.<metric>
                                      few-shot minus zero-shot, and that over zero-shot (null where zero-shot is 0)
    share_of_gap.<method>.<metric>    {share, low, high} of (method - start) / (bayes_fewshot - start), where start is
                                      the pretrained model's zero-shot (`pretrained`; `zeroshot` where that is all)
    counts                            users, episodes, targets, unknown_target_share, repeat_share

Shapes: n targets. Every figure over all targets, the differences and the shares come from one set of draws of users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from metarec.metrics import intervals as iv
from metarec.metrics.finite import plain_json
from metarec.metrics.ranking import METRICS

Json = dict[str, Any]

# name of a difference -> (method, method it is compared with); one is left out where a method was not run
DIFFERENCES: Mapping[str, tuple[str, str]] = {
    "gain_over_control": ("fewshot", "control"),
    "gain_over_pretrained": ("fewshot", "pretrained"),
    "gain_over_zeroshot": ("fewshot", "zeroshot"),
    "control_over_pretrained": ("control", "pretrained"),
}


@dataclass(frozen=True)
class TargetRecords:
    """One row for each query target [n]; the same rows for every method.

    user, episode, position: row of the user, of the episode, place of the target in its query set (int64 [n]).
    repeat: the target is already in its prefix or in the support (bool [n]).
    ranks: method -> rank int64 [n]; above ``n_items`` where the target is unknown, for every method alike.
    """

    user: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.bool_]
    ranks: Mapping[str, npt.NDArray[np.int64]]
    n_items: int

    def __post_init__(self) -> None:
        columns = {"episode": self.episode, "position": self.position, "repeat": self.repeat, **self.ranks}
        wrong = [name for name, column in columns.items() if column.shape != self.user.shape]
        if self.user.ndim != 1 or self.user.size == 0 or not self.ranks or wrong:
            raise ValueError(f"records need one row a target and one method or more; {self.user.shape}, wrong: {wrong}")
        differing = [name for name, rank in self.ranks.items() if not np.array_equal(rank > self.n_items, self.unknown)]
        if differing:
            raise ValueError(f"methods disagree on which targets are unknown: {differing}")

    @cached_property
    def unknown(self) -> npt.NDArray[np.bool_]:
        """Targets outside the vocabulary, bool [n]."""
        unknown: npt.NDArray[np.bool_] = next(iter(self.ranks.values())) > self.n_items
        return unknown

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """Metric values [n, methods x metrics], metrics fastest."""
        columns = [metric(rank, self.n_items) for rank in self.ranks.values() for metric in METRICS.values()]
        return np.stack(columns, axis=1)

    def column(self, method: str, metric: str) -> int:
        """The column of ``values`` that holds ``metric`` of ``method``."""
        return list(self.ranks).index(method) * len(METRICS) + list(METRICS).index(metric)


def summarise(
    records: TargetRecords,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    differences: Mapping[str, tuple[str, str]] = DIFFERENCES,
) -> Json:
    """The nested dict above. Raises DivergedError naming the key if any figure is not finite."""
    user, values = records.user, records.values
    users = np.unique(user)
    replicates = iv.bootstrap_replicates(values, user, n_resamples=n_resamples, seed=seed)
    low, high = iv.percentile_interval(replicates, confidence, users.size)
    means = values.mean(axis=0)

    by_user = iv.user_means(values, user)
    macro = by_user.mean(axis=0)
    macro_draws = iv.bootstrap_replicates(by_user, users, n_resamples=n_resamples, seed=seed)
    macro_low, macro_high = iv.percentile_interval(macro_draws, confidence, users.size)

    out: Json = {
        "metrics": _table(records, lambda c: float(means[c])),
        "intervals": _table(records, lambda c: _pair(low[c], high[c])),
        "macro": _table(records, lambda c: _interval(macro[c], macro_low[c], macro_high[c])),
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
        out[name] = _subset(records, chosen, n_resamples=n_resamples, confidence=confidence, seed=seed)

    wanted = {name: pair for name, pair in differences.items() if set(pair) <= set(records.ranks)}
    out["differences"] = _differences(
        records, wanted, replicates, n_resamples=n_resamples, confidence=confidence, seed=seed
    )
    _published(out)
    if {"zeroshot", "bayes_fewshot"} <= set(records.ranks):
        out["share_of_gap"] = _shares(records, means, replicates, confidence, users.size)
    checked: Json = plain_json(out, "metrics.json")
    return checked


def per_user(records: TargetRecords) -> dict[str, npt.NDArray[Any]]:
    """Columns of per_user.parquet: user, n_targets, n_repeat, n_unknown, ``<method>.<metric>`` (mean over targets)."""
    flags = np.stack([records.repeat, records.unknown], axis=1).astype(np.float64)
    sums, counts = iv.per_user_sums(flags, records.user)
    columns: dict[str, npt.NDArray[Any]] = {
        "user": np.unique(records.user),
        "n_targets": counts.astype(np.int64),
        "n_repeat": sums[:, 0].astype(np.int64),
        "n_unknown": sums[:, 1].astype(np.int64),
    }
    means = iv.user_means(records.values, records.user)
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
        means = values.mean(axis=0)
        replicates = iv.bootstrap_replicates(values, records.user[chosen], n_resamples=n_resamples, seed=seed)
        low, high = iv.percentile_interval(replicates, confidence, users)
        out["metrics"] = _table(records, lambda c: float(means[c]))
        out["intervals"] = _table(records, lambda c: _pair(low[c], high[c]))
    return out


def _differences(
    records: TargetRecords,
    wanted: Mapping[str, tuple[str, str]],
    replicates: npt.NDArray[np.float64],
    *,
    n_resamples: int,
    confidence: float,
    seed: int,
) -> Json:
    """Every wanted difference, tested user by user; Holm's correction runs over all of them and their metrics."""
    if not wanted:
        return {}
    left = [records.column(of, metric) for of, _ in wanted.values() for metric in METRICS]
    right = [records.column(against, metric) for _, against in wanted.values() for metric in METRICS]
    delta = records.values[:, left] - records.values[:, right]
    sums, counts = iv.per_user_sums(delta, records.user)
    macro = (sums / counts[:, None]).mean(axis=0)
    low, high = iv.percentile_interval(replicates[:, left] - replicates[:, right], confidence, counts.size)
    p_values = iv.sign_flip_p_values(sums, n_resamples=n_resamples, seed=seed)
    corrected = iv.holm(p_values)
    mean = delta.mean(axis=0)

    out: Json = {}
    column = 0
    for name, (of, against) in wanted.items():
        out[name] = {"of": of, "against": against}
        for metric in METRICS:
            out[name][metric] = {
                **_interval(mean[column], low[column], high[column]),
                "macro_mean": float(macro[column]),
                "p_value": float(p_values[column]),
                "p_holm": float(corrected[column]),
                "verdict": iv.verdict(float(low[column]), float(high[column])),
            }
            column += 1
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


def _shares(
    records: TargetRecords,
    means: npt.NDArray[np.float64],
    replicates: npt.NDArray[np.float64],
    confidence: float,
    n_users: int,
) -> Json:
    start = "pretrained" if "pretrained" in records.ranks else "zeroshot"
    out: Json = {}
    for method in records.ranks:
        if method in (start, "bayes_zeroshot", "bayes_fewshot"):
            continue
        out[method] = {}
        for metric in METRICS:
            three = [records.column(name, metric) for name in (method, start, "bayes_fewshot")]
            share, low, high = iv.gap_ratio(means[three], replicates[:, three], confidence=confidence, n_users=n_users)
            out[method][metric] = {"share": _or_none(share), "low": _or_none(low), "high": _or_none(high)}
    return out


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)  # NaN means "no interval" here, never a diverged figure


def _pair(low: Any, high: Any) -> list[float] | None:
    return None if np.isnan(low) else [float(low), float(high)]


def _interval(mean: Any, low: Any, high: Any) -> Json:
    return {"mean": float(mean), "low": _or_none(low), "high": _or_none(high)}


def _ends(entry: Json) -> list[float] | None:
    return None if entry["low"] is None else [entry["low"], entry["high"]]
