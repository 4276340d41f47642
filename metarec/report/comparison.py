"""From finished runs to one document: a row for each configuration and method over all its seeds, and paired differences.

    mean           over targets and seeds;  of_seeds: the mean of each run;  sd_seeds: their standard deviation
    low, high      users are drawn, every seed's figures of a drawn user with him (cluster bootstrap)
    sd_users       standard deviation over users of a user's mean over seeds and targets
    differences    paired over users, Holm-corrected over the table (`report.paired`)

A method whose values are the same, user for user and seed for seed, in several configurations is one row of theirs all:
the pretrained model, popularity, the fine-tune control do not depend on what was meta-learned.

Without ``against`` the differences are few-shot minus the fine-tune control of the same runs, for each configuration, and
few-shot minus the first configuration's. With a method: every other row minus that method of its own configuration. With a
run: every configuration's rows minus the same method's of that run's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metarec.errors import ConfigError, nearest
from metarec.report import paired
from metarec.report.configurations import Configuration, Defaults, configurations
from metarec.report.finished import Array, Run
from metarec.report.protocol import unrecorded

Json = dict[str, Any]
HEADLINE = ("fewshot", "zeroshot")  # what a configuration is judged by: the first of these that it has
VERSIONS = ("metarec", "python", "packages")  # of environment.json: what can move a figure in its last digits


@dataclass(frozen=True)
class Row:
    """``of`` [seeds, U]: each user's mean over targets; ``places``: the configurations whose row it is."""

    method: str
    places: tuple[int, ...]
    seeds: tuple[int, ...]
    of: Array


def comparison(
    runs: Sequence[Run],
    *,
    defaults: Defaults,
    metric: str | None = None,
    methods: Sequence[str] | None = None,
    against: str | None = None,
    failures: Mapping[str, str] | None = None,
) -> Json:
    """The document of comparison.json. `runs` must be pairable (`protocol.refusals`); raises ConfigError."""
    metric = metric or monitor(runs)
    shown = _methods(runs, methods)
    found = configurations(runs, defaults)
    target = _against(against, runs, found)
    needed = [*shown, target] if isinstance(target, str) and target not in shown else list(shown)
    every = [row for method in needed for row in _rows(method, metric, found)]
    every.sort(key=lambda row: (len(row.places) == 1, row.places[0] if len(row.places) == 1 else 0))
    first = runs[0]
    draws = paired.Draws(*_bootstrap(runs))
    figures = paired.figures([row.of for row in every], first.n_targets, draws)
    pairs = [pair for pair in _pairs(every, len(found), target) if every[pair[0]].method in shown]
    tested = paired.differences([(every[a].of, every[b].of) for a, b in pairs], first.n_targets, draws)
    return {
        "metric": metric,
        **{key: first.document[key] for key in ("dataset", "model", "residual")},
        "protocol": first.document["protocol"],
        "unrecorded": unrecorded(runs),
        "users": len(first.users),
        "targets": int(first.n_targets.sum()),
        "unknown_target_share": first.document["counts"]["unknown_target_share"],
        "bootstrap": {"n_resamples": draws.n_resamples, "confidence": draws.confidence, "seed": draws.seed},
        "configurations": [_configuration(one, metric) for one in found],
        "rows": [
            {**_described(row, found), **figure}
            for row, figure in zip(every, figures, strict=True)
            if row.method in shown
        ],
        "differences": [
            {"of": _place(every[a], found), "against": _place(every[b], found), **entry}
            for (a, b), entry in zip(pairs, tested, strict=True)
        ],
        "failures": dict(failures or {}),
        "notes": _notes(runs),
    }


def monitor(runs: Sequence[Run]) -> str:
    """The metric that all runs were monitored by; raises ConfigError where there are several."""
    found = sorted({run.monitor for run in runs})
    if len(found) > 1:
        raise ConfigError(
            "metric", ", ".join(found), "the runs were monitored by different metrics", f"add metric={found[0]}"
        )
    return found[0]


def _methods(runs: Sequence[Run], wanted: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(method for run in runs for method in run.methods))
    for name in wanted or ():
        _known_method("methods", name, known)
    return known if wanted is None else list(dict.fromkeys(wanted))


def _known_method(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = nearest(name, known)
        fix = f"did you mean {near}?" if near else f"the runs have {', '.join(known)}"
        raise ConfigError(key, name, "no run has this method", fix)


def _against(word: str | None, runs: Sequence[Run], found: Sequence[Configuration]) -> str | int | None:
    """What differences are taken from: a method, the place of a configuration, or None for the default."""
    methods = list(dict.fromkeys(method for run in runs for method in run.methods))
    if word is None or word in methods:
        return word
    path = Path(word).expanduser().resolve()
    for place, one in enumerate(found):
        if word == one.name or any(word == run.name or run.path.resolve() == path for run in one.runs):
            return place
    names = [*methods, *(one.name for one in found), *(run.name for run in runs)]
    near = nearest(word, names)
    fix = f"did you mean {near}?" if near else f"give a method ({', '.join(methods)}) or one of the runs"
    raise ConfigError("against", word, "neither a method nor a run of this comparison", fix)


def _rows(method: str, metric: str, found: Sequence[Configuration]) -> list[Row]:
    """The method's rows: configurations with equal values for equal seeds share one."""
    rows: list[Row] = []
    for place, one in enumerate(found):
        if any(method not in run.methods for run in one.runs):
            continue
        of = np.stack([run.values(method, metric) for run in one.runs])
        for number, row in enumerate(rows):
            if row.seeds == one.seeds and np.array_equal(row.of, of):
                rows[number] = Row(method, (*row.places, place), row.seeds, row.of)
                break
        else:
            rows.append(Row(method, (place,), one.seeds, of))
    return rows


def _pairs(rows: Sequence[Row], n_places: int, target: str | int | None) -> list[tuple[int, int]]:
    """(of, against) as numbers of rows."""
    at = {(row.method, place): number for number, row in enumerate(rows) for place in row.places}
    out: dict[tuple[int, int], None] = {}  # an ordered set: a shared row makes the same pair in every configuration

    def pair(of: int | None, against: int | None) -> None:
        if of is not None and against is not None and of != against:
            out[of, against] = None

    if isinstance(target, str):
        for place in range(n_places):
            for (_, where), number in at.items():
                if where == place:
                    pair(number, at.get((target, place)))
    elif isinstance(target, int):
        for (method, _), number in at.items():
            pair(number, at.get((method, target)))
    else:
        best = [next((at[m, place] for m in HEADLINE if (m, place) in at), None) for place in range(n_places)]
        for place in range(n_places):
            pair(best[place], at.get(("control", place)))
            pair(best[place], best[0])
    return list(out)


def _described(row: Row, found: Sequence[Configuration]) -> Json:
    names = [found[place].name for place in row.places]
    return {"method": row.method, "configurations": names, "shared": len(found) > 1 and len(names) == len(found),
            "seeds": list(row.seeds)}  # fmt: skip


def _place(row: Row, found: Sequence[Configuration]) -> Json:
    """A row as one side of a difference; a row of all configurations has no name beside its method."""
    names = [found[place].name for place in row.places]
    return {"method": row.method, "configuration": None if len(names) == len(found) else ", ".join(names)}


def _configuration(one: Configuration, metric: str) -> Json:
    """What it is, and what it took: medians over its runs, the largest memory."""
    documents = [run.document for run in one.runs]
    cost = [document.get("cost", {}) for document in documents]
    shares = [d.get("share_of_gap", {}).get("fewshot", {}).get(metric, {}).get("share") for d in documents]
    return {
        "name": one.name,
        "algorithm": documents[0]["algorithm"],
        "differs": one.differs,
        "seeds": list(one.seeds),
        "runs": [str(run.path) for run in one.runs],
        "steps": [document["training"]["steps"] for document in documents if "training" in document],
        "seconds_per_step": _median([c.get("seconds_per_step") for c in cost]),
        "seconds": _median([c.get("seconds") for c in cost]),
        "total_seconds": _median([document.get("seconds", {}).get("total") for document in documents]),
        "peak_bytes": _largest([c.get("peak_bytes") for c in cost]),
        "growth_bytes": _largest([c.get("growth_bytes") for c in cost]),
        "loss": _median([c.get("loss") for c in cost]),
        "share_of_gap": float(np.mean(shares)) if all(s is not None for s in shares) else None,
    }


def _bootstrap(runs: Sequence[Run]) -> tuple[int, float]:
    """The strictest drawing that any run asks for."""
    asked = [run.document["bootstrap"] for run in runs]
    return max(a["n_resamples"] for a in asked), max(a["confidence"] for a in asked)


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know beside the figures: keys not recorded, runs of different versions."""
    notes = []
    if missing := unrecorded(runs):
        notes.append(f"not recorded by all runs, so not compared among all: {', '.join(missing)}")
    environments = [run.json("environment.json") or {} for run in runs]
    for key in VERSIONS:
        found = [environment.get(key) for environment in environments]
        if any(one != found[0] for one in found):
            notes.append(f"the runs were made with different versions ({key}): figures may differ in their last digits")
    return notes


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
