"""Variants against their controls: one table of what each reaches and takes, one of the differences that were asked for.

    mean         over targets and seeds of what the variant is judged by: few-shot where it adapts, else zero-shot
    perplexity   exp of the mean cross-entropy of held-out running text, under the weights that no support has moved; its
                 differences are those of the cross-entropy, in nats a target, and larger than 0 where the first reads better
    time, memory ratios of medians of seconds a step, of largest growth, the first over the second

Intervals draw users (of running text: documents) with all their seeds, from three seeds on seeds as well; p-values are
Holm-corrected over the contrasts of a data set and model. Nothing is chosen: what is compared was named before.

Shapes: S seeds, U users or documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarec.errors import ConfigError
from metarec.metrics.perplexity import exponential
from metarec.report import paired
from metarec.report.comparison import HEADLINE
from metarec.report.finished import Array, Run
from metarec.report.training import training_rows

Json = dict[str, Any]
Names = tuple[str, str]  # variant, algorithm
Cells = Sequence[tuple[Names, Sequence[Run]]]
Blocks = Mapping[tuple[str, str], Cells]
PERPLEXITY = "perplexity"
OF_TEXT = "zeroshot"  # whose perplexity a variant is judged by


def contrasts(
    blocks: Blocks, asked: Sequence[Sequence[str]], *, metric: str, failures: Mapping[str, str], config: Json
) -> Json:
    """The document of survey.json. `blocks`: (data set, model) -> its cells with their runs, one a seed; `asked`: pairs of
    variants (of, against). A pair is tested within each block and algorithm that has both."""
    return {
        "kind": "contrasts",
        "metric": metric,
        "seeds": config["seeds"],
        "blocks": [_block(name, cells, asked, metric, config) for name, cells in blocks.items()],
        "failures": dict(failures),
        "config": config,
    }


def _block(name: tuple[str, str], cells: Cells, asked: Sequence[Sequence[str]], metric: str, config: Json) -> Json:
    draws = paired.Draws(config["evaluation"]["bootstrap"], config["evaluation"]["confidence"])
    of_text = metric == PERPLEXITY
    first = cells[0][1][0]
    _same_questions(cells, of_text)
    n_targets = _text(first)[1] if of_text else first.n_targets
    method = {names: OF_TEXT if of_text else headline(runs[0]) for names, runs in cells}
    tables = {names: _table(runs, method[names], metric, of_text) for names, runs in cells}
    figures = dict(zip(tables, paired.figures([*tables.values()], n_targets, draws), strict=True))
    pairs = [
        (names, (against, names[1])) for of, against in asked for names in tables
        if names[0] == of and (against, names[1]) in tables
    ]  # fmt: skip
    found = paired.differences([(tables[a], tables[b]) for a, b in pairs], n_targets, draws)
    cost = {names: _cost(runs) for names, runs in cells}
    rows = [
        {"variant": names[0], "algorithm": names[1], "method": method[names], **_figure(figures[names], of_text),
         **cost[names], **_validation(runs, metric, config)}
        for names, runs in cells
    ]  # fmt: skip
    return {
        "block": list(name),
        "unit": "documents" if of_text else "users",
        "units": len(n_targets),
        "targets": int(n_targets.sum()),
        "split_by": first.document["protocol"]["split_by"],
        "split_note": first.document["protocol"].get("split_note"),
        "leaky": first.document["protocol"]["leaky"],
        "rows": rows,
        "contrasts": [
            {"of": list(of), "against": list(against), **one,
             **({"per_cent": 100 * (math.exp(-one["mean"]) - 1)} if of_text else {}),
             "time_ratio": _ratio(cost[of], cost[against], "seconds_per_step"),
             "memory_ratio": _ratio(cost[of], cost[against], "growth_bytes")}
            for (of, against), one in zip(pairs, found, strict=True)
        ],
        "training": training_rows(cells),
    }  # fmt: skip


def headline(run: Run) -> str:
    """The method that a run is judged by: few-shot where it adapts, else zero-shot."""
    return next(method for method in HEADLINE if method in run.methods)


def _text(run: Run) -> tuple[list[str], Array, Mapping[str, list[float]]]:
    """Names of the documents, their targets [U], and row -> mean cross-entropy of each, in nats."""
    found = (run.document.get("perplexity") or {}).get("by_document")
    if found is None:
        raise ConfigError(
            "metric", PERPLEXITY, f"{run.path} has measured none", "it is of running text: dataset=wikitext2"
        )
    return found["names"], np.asarray(found["n"], dtype=np.float64), found["cross_entropy"]


def _table(runs: Sequence[Run], method: str, metric: str, of_text: bool) -> Array:
    """[S, U]: each user's mean over targets; of running text minus a document's mean cross-entropy."""
    if of_text:
        return np.stack([-np.asarray(_text(run)[2][method], dtype=np.float64) for run in runs])
    return np.stack([run.values(method, metric) for run in runs])


def _same_questions(cells: Cells, of_text: bool) -> None:
    """ConfigError where a run was asked something else than the first."""
    first = cells[0][1][0]
    for _, runs in cells:
        for run in runs:
            same = run.document["protocol"]["episodes_sha256"] == first.document["protocol"]["episodes_sha256"]
            if of_text:
                same = same and _text(run)[0] == _text(first)[0] and np.array_equal(_text(run)[1], _text(first)[1])
            if not same:
                raise ConfigError("survey", run.path, "other test targets than the first run's", "run it anew")


def _figure(figure: Json, of_text: bool) -> Json:
    """Of a log as it is; of running text the perplexity, whose ends change places."""
    if not of_text:
        return figure
    each = [exponential(-value) for value in figure["of_seeds"]]
    return {
        "mean": exponential(-figure["mean"]),
        "low": None if figure["high"] is None else exponential(-figure["high"]),
        "high": None if figure["low"] is None else exponential(-figure["low"]),
        "cross_entropy": -figure["mean"],
        "sd_seeds": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "of_seeds": each,
        "resampled": figure["resampled"],
    }


def _validation(runs: Sequence[Run], metric: str, config: Json) -> Json:
    """The mean over seeds of the validation figure that the best step was chosen by."""
    name = config["evaluation"]["monitor"] if metric != PERPLEXITY else PERPLEXITY
    known = [run.document["training"].get(f"val_{name}") for run in runs]
    steps = [run.document["training"]["steps"] for run in runs]
    best = [run.document["training"]["best_step"] for run in runs]
    mean = float(np.mean(known)) if all(value is not None for value in known) else None
    return {"validation": mean, "steps": steps, "best_steps": best}


def _cost(runs: Sequence[Run]) -> Json:
    cost = [run.document.get("cost") or {} for run in runs]
    seconds = [one["seconds_per_step"] for one in cost if one.get("seconds_per_step") is not None]
    growth = [one["growth_bytes"] for one in cost if one.get("growth_bytes") is not None]
    return {
        "seconds_per_step": float(np.median(seconds)) if seconds else None,
        "growth_bytes": max(growth) if growth else None,
    }


def _ratio(of: Json, against: Json, key: str) -> float | None:
    return of[key] / against[key] if of[key] is not None and against[key] else None
