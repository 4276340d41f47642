"""From the runs of a survey to its document: for every data set and model, what adaptation gains over every baseline.

"Ours" is chosen among algorithms and residuals by the validation figure, mean over seeds, before anything of the test split
is read. Every other row of the table is there beside it, so that nobody has to trust the choice.

Differences are paired over users and seeds, Holm-corrected over the block; words are those of the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarec.errors import ConfigError
from metarec.report import paired
from metarec.report.finished import Run
from metarec.report.training import training_rows

Json = dict[str, Any]
Names = tuple[str, str]  # residual, algorithm
Blocks = Mapping[tuple[str, str], Sequence[tuple[Names, Sequence[Run]]]]
REFERENCES = ("control", "in_context")  # what every algorithm's row is compared with, besides our own


def survey(
    blocks: Blocks, *, tuned: Mapping[str, Any], failures: Mapping[str, str], config: Json,
) -> Json:  # fmt: skip
    """The document of survey.json. `blocks`: (data set, model) -> its cells with their runs, one a seed."""
    found = [_block(name, cells, config) for name, cells in blocks.items()]
    return {
        "metric": config["evaluation"]["monitor"],
        "seeds": config["seeds"],
        "blocks": found,
        "shown": _shown(found),
        "tuned": dict(tuned),
        "failures": dict(failures),
        "config": config,
    }


def _block(name: tuple[str, str], cells: Sequence[tuple[Names, Sequence[Run]]], config: Json) -> Json:
    metric = config["evaluation"]["monitor"]
    draws = paired.Draws(config["evaluation"]["bootstrap"], config["evaluation"]["confidence"])
    first = cells[0][1][0]
    for _, runs in cells:
        for run in runs:
            if run.document["protocol"]["episodes_sha256"] != first.document["protocol"]["episodes_sha256"]:
                raise ConfigError("survey", run.path, "other test episodes than the first run's", "run the survey anew")
    n_targets = first.n_targets
    panel = [m for m in first.methods if m not in ("zeroshot", "fewshot") and not m.startswith("bayes_")]
    own = {names: np.stack([run.values("fewshot", metric) for run in runs]) for names, runs in cells}
    start = {names: np.stack([run.values("zeroshot", metric) for run in runs]) for names, runs in cells}
    base = {method: np.stack([run.values(method, metric) for run in cells[0][1]]) for method in panel}
    validation = {
        names: float(np.mean([run.document["training"][f"val_{metric}"] for run in runs])) for names, runs in cells
    }
    chosen = max(validation, key=lambda names: validation[names])
    figures = iter(paired.figures([*base.values(), *own.values(), *start.values()], n_targets, draws))
    rows = [{"method": method, **next(figures)} for method in base]
    adapted = [
        {"method": "fewshot", "residual": names[0], "algorithm": names[1], "validation": validation[names],
         **next(figures)} for names in own
    ]  # fmt: skip
    for row in adapted:
        row["zeroshot"] = next(figures)["mean"]

    references = [method for method in REFERENCES if method in base]
    pairs = [(own[chosen], table) for table in (*base.values(), start[chosen])]
    pairs += [(table, base[method]) for table in own.values() for method in references]
    found = iter(paired.differences(pairs, n_targets, draws))  # one family: Holm's correction is over the block
    differences = [{"against": against, **next(found)} for against in (*base, "zeroshot")]
    for row in adapted:
        row["gains"] = {method: next(found) for method in references}
    document = first.document
    return {
        "block": list(name),
        "users": len(n_targets),
        "targets": int(n_targets.sum()),
        "unknown_target_share": document["counts"]["unknown_target_share"],
        "repeat_share": document["counts"].get("repeat_share"),
        "split_by": document["protocol"]["split_by"],
        "leaky": document["protocol"]["leaky"],
        **({"order": document["protocol"]["order"]} if "order" in document["protocol"] else {}),
        "n_items": int(document["protocol"].get("n_items", 0)) or None,
        "rows": rows,
        "adapted": adapted,
        "left_out": document.get("left_out", {}),
        "ours": next(row for row in adapted if (row["residual"], row["algorithm"]) == chosen),
        "differences": differences,
        "comparisons": len(pairs),
        "training": training_rows(cells),
    }


def strongest(block: Json) -> str:
    """The baseline with the highest figure on test: the hardest to beat, chosen with hindsight and so against us."""
    return str(max(block["rows"], key=lambda row: row["mean"])["method"])


def gain_over(block: Json, method: str) -> Json | None:
    """What ours gains over a row; None where the table has no such row."""
    return next((entry for entry in block["differences"] if entry["against"] == method), None)


def _shown(blocks: Sequence[Json]) -> Json:
    """reference -> how often the interval of ours minus it says better, worse or nothing; counted over the blocks."""
    found: Json = {}
    for reference in (*REFERENCES, "pretrained", "strongest"):
        words = []
        for block in blocks:
            entry = gain_over(block, strongest(block) if reference == "strongest" else reference)
            words += [] if entry is None else [entry["verdict"]]
        better, worse = words.count("better"), words.count("worse")
        found[reference] = {"better": better, "worse": worse, "none": len(words) - better - worse}
    return found
