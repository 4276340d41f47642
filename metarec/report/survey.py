"""From the runs of a survey to its page: for every data set and model, what our best method gains over every baseline.

"Ours" is chosen among algorithms and residuals by the validation figure, mean over seeds, before anything of the test split
is read. Every other row of the table is there beside it, so that nobody has to trust the choice.

Differences are paired over users (mean over seeds), Holm-corrected over the block; words are those of the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType

from metarec.errors import ConfigError
from metarec.report import paired
from metarec.report.finished import Run
from metarec.report.labels import LABELS, ends, p_text, short
from metarec.report.sheets import Cell, Row, Sheet
from metarec.report.tables import sheet_table

Json = dict[str, Any]
Names = tuple[str, str]  # residual, algorithm
ALWAYS = ("pretrained", "control")


def survey(
    blocks: Mapping[tuple[str, str], Sequence[tuple[Names, Sequence[Run]]]],
    *,
    tuned: Mapping[str, Any],
    failures: Mapping[str, str],
    config: Json,
) -> Json:
    """The document of survey.json. `blocks`: (data set, model) -> its cells with their runs, one a seed."""
    return {
        "metric": config["evaluation"]["monitor"],
        "seeds": config["seeds"],
        "blocks": [_block(name, cells, config) for name, cells in blocks.items()],
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
    figures = paired.figures([*base.values(), *own.values(), *start.values()], n_targets, draws)
    at = iter(figures)
    rows = [{"method": method, **next(at)} for method in base]
    adapted = [
        {"method": "fewshot", "residual": names[0], "algorithm": names[1], "validation": validation[names], **next(at)}
        for names in own
    ]
    for row in adapted:
        row["zeroshot"] = next(at)["mean"]
    against = [*base, "zeroshot"]
    tables = [*base.values(), start[chosen]]
    found = paired.differences([(own[chosen], table) for table in tables], n_targets, draws)
    counts = first.document["counts"]
    return {
        "block": list(name),
        "users": len(n_targets),
        "targets": int(n_targets.sum()),
        "unknown_target_share": counts["unknown_target_share"],
        "split_by": first.document["protocol"]["split_by"],
        "leaky": first.document["protocol"]["leaky"],
        "n_items": int(first.document["protocol"].get("n_items", 0)) or None,
        "rows": rows,
        "adapted": adapted,
        "left_out": first.document.get("left_out", {}),
        "ours": next(row for row in adapted if (row["residual"], row["algorithm"]) == chosen),
        "differences": [{"against": name, **entry} for name, entry in zip(against, found, strict=True)],
    }


def _sheets(document: Json) -> list[Sheet]:
    metric = document["metric"].upper()
    return [_overview(document), *(sheet for block in document["blocks"] for sheet in _of_block(block, metric))]


def _overview(document: Json) -> Sheet:
    """One line a block: ours, the strongest baseline of the table, and the gains that the field argues about."""
    rows = []
    for block in document["blocks"]:
        best = max(block["rows"], key=lambda row: row["mean"])
        gains = {entry["against"]: entry for entry in block["differences"]}
        rows.append(
            Row(
                " ".join(block["block"]),
                (
                    Cell(f"{block['users']:,}"),
                    Cell(short(block["ours"]["mean"])),
                    Cell(f"{LABELS.get(best['method'], best['method'])} {short(best['mean'])}"),
                    *(_gain(gains.get(name)) for name in (best["method"], "control", "in_context")),
                ),
            )
        )
    headings = ("users", "ours", "best baseline", "ours - best", "- control", "- in-context")
    return Sheet(f"{document['metric'].upper()}, ours chosen on validation", "", headings, (tuple(rows),))


def _gain(entry: Json | None) -> Cell:
    if entry is None:
        return Cell("")
    word = {"better": "+", "worse": "-"}.get(entry["verdict"], "0")
    return Cell(f"{short(entry['mean'], 4, sign=True)} {word}")


def _of_block(block: Json, metric: str) -> list[Sheet]:
    title = f"{' '.join(block['block'])}: {block['users']:,} users, {block['targets']:,} targets"
    gains = {entry["against"]: entry for entry in block["differences"]}

    def row(label: str, figures: Json, entry: Json | None, strong: bool = False) -> Row:
        cells = [Cell(short(figures["mean"])), Cell(ends(figures["low"], figures["high"]))]
        cells.append(Cell("" if figures["sd_seeds"] is None else short(figures["sd_seeds"])))
        if entry is None:
            return Row(label, (*cells, Cell(""), Cell(""), Cell(""), Cell("")), strong)
        shown = {"better": "better", "worse": "worse"}.get(entry["verdict"], "none")
        gain = f"{short(entry['mean'], 4, sign=True)} {ends(entry['low'], entry['high'], sign=True)}"
        least = "" if entry["detectable"] is None else short(entry["detectable"])
        return Row(label, (*cells, Cell(gain), Cell(p_text(entry["p_holm"])), Cell(shown), Cell(least)), strong)

    baselines = tuple(row(LABELS.get(r["method"], r["method"]), r, gains.get(r["method"])) for r in block["rows"])
    ours = (block["ours"]["residual"], block["ours"]["algorithm"])
    adapted = tuple(
        row(f"{r['algorithm']}, {r['residual']}", r, None, (r["residual"], r["algorithm"]) == ours)
        for r in block["adapted"]
    )
    start = row(
        "ours before adaptation", {"mean": block["ours"]["zeroshot"], "low": None, "high": None, "sd_seeds": None},
        gains["zeroshot"],
    )  # fmt: skip
    headings = (metric, "interval", "sd seeds", "ours minus it", "Holm p", "shown", "detectable")
    return [Sheet(title, "", headings, (baselines, adapted, (start,)))]


def _lines(document: Json) -> list[str]:
    lines = [
        f"seeds {', '.join(map(str, document['seeds']))}; intervals and tests draw users with all their seeds; ours is the "
        "algorithm and residual with the best validation figure; +, -, 0: the interval lies above, below, or holds 0",
    ]
    for block in document["blocks"]:
        name = " ".join(block["block"])
        if block["leaky"]:
            lines.append(f"LEAKY {name}: the split lets training see events later than some targets")
        lines += [f"{name}: without {row} ({why})" for row, why in block["left_out"].items()]
    for name, record in document["tuned"].items():
        chosen = ", ".join(f"{key} {value:g}" for key, value in record["chosen"].items())
        lines.append(f"{name}: {chosen}, best of {len(record['tried'])} on validation (seed {record['seed']})")
    return lines + [f"{name} failed: {line}" for name, line in document["failures"].items()]


def survey_table(document: Json) -> RenderableType:
    """For a person: the overview and a table for each block."""
    return Group(*[part for sheet in _sheets(document) for part in (sheet_table(sheet), "")], *_lines(document))


def markdown(document: Json) -> str:
    """The same as a page."""
    parts = []
    for sheet in _sheets(document):
        head = f"| {sheet.corner} | {' | '.join(sheet.headings)} |\n|---|{'---|' * len(sheet.headings)}\n"
        body = "".join(
            f"| {'**' * row.strong}{row.label}{'**' * row.strong} | {' | '.join(cell.figure for cell in row.cells)} |\n"
            for group in sheet.groups for row in group
        )  # fmt: skip
        parts.append(f"### {sheet.title}\n\n{head}{body}")
    return "\n".join(parts) + "\n" + "".join(f"- {line}\n" for line in _lines(document))
