"""Which methods of a run are compared, and what is said of each difference.

    mean, low, high       mean over targets of (of - against), interval from the draws of the whole table (paired)
    macro_mean            mean over users of the users' mean difference
    effect_size           Cohen's d_z of the users' mean differences; null where they are all alike or of one user
    detectable            smallest true difference that these users would have shown with a power of 80 %
    p_value, p_holm       sign-flip test over users; Holm's correction over the family
    verdict               better, worse, or no difference shown: the interval holds 0

**The family is the whole table**: every difference at every metric, since a reader who looks through it picks from all of
them. Metrics of one ranking go together, so this is on the safe side. A p-value of the test is never below 1 / (1 + flips),
and the smallest after Holm is that times the size of the family: so that a long panel does not hide what is there, there
are at least 5 / alpha flips for each member, alpha = 1 - confidence.

Source: Phipson & Smyth 2010 (p-values of random flips are never 0); Holm 1979; Cohen 1988, sec. 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from metarec.metrics import METRICS
from metarec.metrics import intervals as iv
from metarec.metrics.bootstrap import Drawn, per_user_sums
from metarec.metrics.finite import interval, or_none
from metarec.metrics.records import TargetRecords

Json = dict[str, Any]
Pair = tuple[str, str]

STANDARD: Mapping[str, Pair] = {
    "gain_over_control": ("fewshot", "control"),
    "gain_over_pretrained": ("fewshot", "pretrained"),
    "gain_over_zeroshot": ("fewshot", "zeroshot"),
    "control_over_pretrained": ("control", "pretrained"),
}


def subject(methods: Iterable[str]) -> str:
    """The method that a run is about: few-shot, or where nothing was meta-learned zero-shot."""
    return "fewshot" if "fewshot" in methods else "zeroshot"


def pairs_of(methods: Iterable[str]) -> dict[str, Pair]:
    """name -> (method, method it is compared with): the subject against every other method but the Bayes optimum.

    ``gain_over_<method>`` is few-shot minus it; without few-shot ``zeroshot_over_<method>``.
    """
    there = list(methods)
    own = subject(there)
    wanted = {name: pair for name, pair in STANDARD.items() if set(pair) <= set(there)}
    if own not in there:
        return wanted
    start = "gain_over" if own == "fewshot" else "zeroshot_over"
    for method in there:
        if method not in ("fewshot", "zeroshot") and not method.startswith("bayes_"):
            wanted.setdefault(f"{start}_{method}", (own, method))
    return wanted


def n_flips(n_differences: int, n_resamples: int, confidence: float) -> int:
    """Sign flips of a table of that many differences."""
    return max(n_resamples, math.ceil(5 / (1.0 - confidence) * n_differences * len(METRICS)))


def differences(
    records: TargetRecords,
    wanted: Mapping[str, Pair],
    drawn: Drawn,
    *,
    n_resamples: int,
    confidence: float,
    seed: int,
) -> Json:
    """name -> {of, against, <metric>: what stands above}; ``drawn``: the columns of ``records.values``."""
    if not wanted:
        return {}
    left = [records.column(of, metric) for of, _ in wanted.values() for metric in METRICS]
    right = [records.column(against, metric) for _, against in wanted.values() for metric in METRICS]
    delta = records.values[:, left] - records.values[:, right]
    apart = drawn.columns(left) - drawn.columns(right)
    sums, counts = per_user_sums(delta, records.user)
    by_user = sums / counts[:, None]
    low, high = apart.interval(confidence)
    p_values = iv.sign_flip_p_values(sums, n_resamples=n_flips(len(wanted), n_resamples, confidence), seed=seed)
    corrected = iv.holm(p_values)
    mean, macro = apart.mean, by_user.mean(axis=0)
    size, smallest = iv.effect_size(by_user), iv.detectable(apart, confidence)

    out: Json = {}
    column = 0
    for name, (of, against) in wanted.items():
        out[name] = {"of": of, "against": against}
        for metric in METRICS:
            out[name][metric] = {
                **interval(mean[column], low[column], high[column]),
                "macro_mean": float(macro[column]),
                "effect_size": or_none(size[column]),
                "detectable": or_none(smallest[column]),
                "p_value": float(p_values[column]),
                "p_holm": float(corrected[column]),
                "verdict": iv.verdict(float(low[column]), float(high[column])),
            }
            column += 1
    return out
