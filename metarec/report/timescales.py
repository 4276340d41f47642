"""The section of a run that says how its timescales went: updates of levels, the delta rule's largest product, surprise.

Read from `timescales` of metrics.json (the state at the end) and of the lines of history.jsonl and pretrain_history.jsonl
(over time). A run without optimizer=cms, delta_* and objective.surprise has neither, and no section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarec.report import cells, figures, svg
from metarec.report.blocks import Block, Picture, Section, Text, section
from metarec.report.comparison_text import MB
from metarec.report.finished import Run
from metarec.report.sheet import Cell, Sheet

Json = dict[str, Any]
Series = dict[str, tuple[list[int], list[float]]]
FILES = {"pretraining": "pretrain_history.jsonl", "training": "history.jsonl"}  # in the order in which they were made
DRAWN = 6  # matrices of a picture, those with the largest products; the table has all
LIMIT = 2.0  # of the explicit form of the delta rule (`metarec.optimizers.delta`)
OVER_TIME = {  # of the lines: what to draw, and what its axis says
    "updates": "updates", "since": "gradients since the last update", "largest": "largest a * eigenvalue so far",
    "u": "mean |u|", "term": "lambda |y - u|^2", "cosine": "cosine of y and u",
}  # fmt: skip


def timescales(run: Run) -> Section | None:
    """Tables and pictures of each loop that has something to tell."""
    found: Json = run.document.get("timescales") or {}
    blocks: list[Block | None] = []
    for loop, name in FILES.items():
        own: Json | None = found.get(loop)
        if own is None:
            continue
        lines = over_time(run.history(name))
        if loop == "pretraining" and (run.document["training"].get("warm_start") or {}).get("key"):
            words = (
                "Pretraining is made once for all runs that ask for the same: its figures are kept with the weights."
            )
            blocks.append(Text(words))
        blocks += [_levels(own, loop), _matrices(own, loop), _surprise(own, lines, loop), _cost(run, loop)]
        blocks += [
            _picture(lines[what], f"{loop}: {label}", label) for what, label in OVER_TIME.items() if what in lines
        ]
    return section("Timescales", *blocks)


def over_time(records: list[Json]) -> dict[str, Series]:
    """Figure -> level or matrix -> (steps [n], values [n]), of the lines that have it; in the order of `OVER_TIME`."""
    out: dict[str, Series] = {}
    for record in records:
        own: Mapping[str, Any] = record.get("timescales") or {}
        found: dict[str, Mapping[str, float]] = {
            what: own[what] for what in ("updates", "since", "largest") if what in own
        }
        for what in ("u", "term", "cosine"):
            found[what] = {level: one[what] for level, one in own.get("surprise", {}).items() if what in one}
        for what, values in found.items():
            for name, value in values.items():
                steps, kept = out.setdefault(what, {}).setdefault(name, ([], []))
                steps.append(record["step"])
                kept.append(float(value))
    return {what: out[what] for what in OVER_TIME if what in out}


def drawn(found: Series) -> Series:
    """The series of a picture: all, or the `DRAWN` that end highest."""
    names = sorted(found, key=lambda name: -found[name][1][-1])[:DRAWN]
    return {name: own for name, own in found.items() if name in names}


def _picture(found: Series, title: str, label: str) -> Picture:
    own = drawn(found)
    named = {f"level {name}" if name.isdigit() else name: points for name, points in own.items()}
    return figures.curves(named, {name: at % svg.STYLES for at, name in enumerate(named)}, title, label)


def _levels(own: Json, loop: str) -> Sheet | None:
    rows: list[list[Cell]] = [
        [
            f"level {level}",
            *(cells.number(one[key]) for key in ("chunk", "parameters", "numbers", "updates", "since")),
        ]
        for level, one in own.get("levels", {}).items()
    ]
    columns = ["level", "C", "parameters", "numbers", "updates", "gradients since"]
    note = f"of {own['steps']:,} steps; updates count the flush behind the last step, and no step that a guard left out"
    return Sheet(f"Levels of optimizer=cms, {loop}", columns, rows, notes=[note]) if rows else None


def _matrices(own: Json, loop: str) -> Sheet | None:
    largest: Mapping[str, float] = own.get("largest", {})
    rows: list[list[Cell]] = [
        [name, f"{value:.4g}"] for name, value in sorted(largest.items(), key=lambda item: -item[1])
    ]
    note = f"the explicit form contracts below {LIMIT:g}; the proximal one always"
    columns = ["matrix", "largest a * eigenvalue"]
    return Sheet(f"Delta rule, {loop}", columns, rows, notes=[note]) if rows else None


def _surprise(own: Json, lines: Mapping[str, Series], loop: str) -> Sheet | None:
    rows: list[list[Cell]] = []
    for level, one in own.get("surprise", {}).items():
        row: list[Cell] = [level, cells.number(one["pairs"])]
        for what in ("u", "term", "cosine"):
            ends = lines.get(what, {}).get(level)
            row += [
                f"{one[what]:.4g}" if what in one else cells.NOTHING,
                f"{ends[1][0]:.4g}, {ends[1][-1]:.4g}" if ends and what in one else cells.NOTHING,
            ]
        rows.append(row)
    columns = [
        "level", "pairs", "mean |u|", "|u| at first, last", "term", "term at first, last", "cosine",
        "cosine at first, last",
    ]  # fmt: skip
    notes = [
        "means over all pairs that paid the term; first, last: of the lines of the history, each since the one before",
        "cosine of y and u, over the pairs where both have a length; none with the target zero",
    ]
    return Sheet(f"Surprise, {loop}", columns, rows, notes=notes) if rows else None


def _cost(run: Run, loop: str) -> Sheet | None:
    cost: Json = run.document.get("cost") or {}
    own: Json = (cost.get("pretraining") or {}) if loop == "pretraining" else cost
    pairs = [
        ("milliseconds a step", cells.number(None if (each := own.get("seconds_per_step")) is None else 1e3 * each, 2)),
        ("peak memory, MB", cells.number(None if (peak := own.get("peak_bytes")) is None else peak / MB, 0)),
        ("added by the loop, MB", cells.number(None if (grown := own.get("growth_bytes")) is None else grown / MB, 0)),
    ]
    rows: list[list[Cell]] = [[name, value] for name, value in pairs if value != cells.NOTHING]
    note = "in the process that made it, of a resumed run its last part, beside whatever else ran on the machine"
    return Sheet(f"Time and memory of a step, {loop}", ["what", "figure"], rows, notes=[note]) if rows else None
