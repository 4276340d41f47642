"""The document of contrasts as tables for a terminal, a page for a browser, Markdown and LaTeX."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text as Line

from metarec.report import cells, figures, sections
from metarec.report.blocks import Block, Section, Text
from metarec.report.comparison_text import HOW
from metarec.report.contrasts import PERPLEXITY, Blocks
from metarec.report.labels import label
from metarec.report.pages import Page
from metarec.report.reported import REPORTED
from metarec.report.sheet import Cell, Sheet, rich_table
from metarec.report.training import loss_curves, training_sheet

Json = dict[str, Any]
MIB = 2**20


def contrasts_table(document: Json) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for sheet in _sheets(document):
        notes = [Line(note, style="bold red" if note.startswith("LEAKY") else "dim") for note in sheet.notes]
        parts += [rich_table(sheet), *notes, Line("")]
    return Group(*parts, *[Line(line) for line in in_words(document)])


def contrasts_page(document: Json, blocks: Blocks) -> Page:
    """What was found in words, then the tables, intervals and curves of each data set and model."""
    parts = []
    for block in document["blocks"]:
        own: list[Block] = [Text(sections.LEAKS, "warning")] if block["leaky"] else []
        own += [rows_sheet(block, document["metric"]), contrasts_sheet(block, document)]
        drawn = [(_name(one), one) for one in block["contrasts"] if one["low"] is not None]
        if drawn:
            what = "nats a target saved" if document["metric"] == PERPLEXITY else "difference"
            own.append(figures.forest(drawn, what, document["metric"]))
        found = list(blocks[block["block"][0], block["block"][1]])
        training = training_sheet(block["training"], " ".join(block["block"]))
        own += [part for part in (training, loss_curves(found)) if part is not None]
        parts.append(Section(" ".join(block["block"]), own))
    if (sheet := reported_sheet(document)) is not None:
        parts.append(Section("Reported by others", [sheet]))
    head = Section("What was found", [Text(" ".join(in_words(document)), "lead")])
    return Page(f"Contrasts, {cells.heading(document['metric'])}", [head, *parts])


def in_words(document: Json) -> list[str]:
    """A sentence for each contrast; nothing is claimed that no interval shows."""
    words = []
    for block in document["blocks"]:
        for one in block["contrasts"]:
            verdict = one["verdict"] if one["verdict"] in ("better", "worse") else "no difference shown"
            words.append(f"{' '.join(block['block'])}: {_name(one)}: {verdict}.")
    return words + [f"{name} failed: {line}." for name, line in document["failures"].items()]


def rows_sheet(block: Json, metric: str) -> Sheet:
    """What each variant reaches, and takes."""
    of_text = metric == PERPLEXITY
    rows: list[list[Cell]] = []
    for row in block["rows"]:
        ends = _ends(row["low"], row["high"], 3 if of_text else 4)
        rows.append([
            _variant(row["variant"], row["algorithm"], block), label(row["method"]), (_number(row["mean"], of_text), ends),
            _number(row["sd_seeds"], of_text), " ".join(_number(value, of_text) for value in row["of_seeds"]),
            _number(row["validation"], of_text), " ".join(map(str, sorted({*row["steps"]}))),
            " ".join(map(str, row["best_steps"])),
            cells.NOTHING if row["seconds_per_step"] is None else f"{1000 * row['seconds_per_step']:.1f}",
            cells.NOTHING if row["growth_bytes"] is None else f"{row['growth_bytes'] / MIB:,.0f}",
        ])  # fmt: skip
    columns = ["variant", "row", cells.heading(metric), "sd seeds", "of each seed", "validation", "steps", "best step",
               "ms a step", "MB above the start"]  # fmt: skip
    notes = [
        f"{block['units']:,} {block['unit']}, {block['targets']:,} targets; split {block['split_by']}",
        f"intervals draw {block['unit']} with all their seeds, from three seeds on seeds as well",
        "times and memory are those of this machine, beside whatever else ran on it; benchmarks/nested.py takes turns",
    ]
    if block["split_note"] and "shuffled" in block["split_note"]:
        notes.insert(1, block["split_note"])
    if block["leaky"]:
        notes.insert(0, "LEAKY: the split lets training see events later than some targets")
    lower = ", lower is better" if of_text else ""
    found = Sheet(f"{' '.join(block['block'])}{lower}", columns, rows, frozenset({0, 1}), notes=notes).without_empty()
    return found if len({row["method"] for row in block["rows"]}) > 1 else found.without("row")


def contrasts_sheet(block: Json, document: Json) -> Sheet:
    """The differences that were asked for."""
    of_text = document["metric"] == PERPLEXITY
    digits = 5 if of_text else 4
    rows: list[list[Cell]] = []
    for one in block["contrasts"]:
        rows.append([
            _name(one),
            (cells.share(one["mean"], digits, sign=True), _ends(one["low"], one["high"], digits, sign=True)),
            f"{one['per_cent']:+.2f} %" if of_text else cells.NOTHING,
            cells.p_value(one["p_holm"]), one["verdict"], cells.share(one["detectable"], digits),
            cells.NOTHING if one["time_ratio"] is None else f"{one['time_ratio']:.2f}",
            cells.NOTHING if one["memory_ratio"] is None else f"{one['memory_ratio']:.2f}",
        ])  # fmt: skip
    columns = ["contrast", "nats a target saved" if of_text else "difference", "perplexity", "Holm p", "verdict",
               "detectable", "time ratio", "memory ratio"]  # fmt: skip
    notes = [HOW.format(count=len(rows)).replace("users", block["unit"])]
    caption = f"Contrasts, {' '.join(block['block'])}"
    return Sheet(caption, columns, rows, frozenset({0, 4}), notes=notes).without_empty()


def reported_sheet(document: Json) -> Sheet | None:
    """What others have printed, where the comparison was asked to show it; compared with nothing."""
    name = document["config"].get("reported")
    if name is None:
        return None
    found = REPORTED[name]
    metrics = list(dict.fromkeys(key for of in found.rows.values() for key in of))
    rows: list[list[Cell]] = [
        [row, *(f"{of[key]:g}" if key in of else cells.NOTHING for key in metrics)] for row, of in found.rows.items()
    ]
    return Sheet(
        "reported by others, not measured here", ["", *map(cells.heading, metrics)], rows, notes=[found.source]
    )


def _sheets(document: Json) -> list[Sheet]:
    found = []
    for block in document["blocks"]:
        found += [rows_sheet(block, document["metric"]), contrasts_sheet(block, document)]
    more = reported_sheet(document)
    return found if more is None else [*found, more]


def _variant(variant: str, algorithm: str, block: Json) -> str:
    """With its algorithm where the block has several."""
    return variant if len({row["algorithm"] for row in block["rows"]}) == 1 else f"{variant}, {algorithm}"


def _name(one: Json) -> str:
    (of, algorithm), (against, _) = one["of"], one["against"]
    return f"{of} minus {against}" + ("" if algorithm == "supervised" else f" ({algorithm})")


def _number(value: float | None, of_text: bool) -> str:
    return cells.NOTHING if value is None else f"{value:.4f}" if of_text else cells.share(value)


def _ends(low: float | None, high: float | None, digits: int, *, sign: bool = False) -> str:
    """[low, high] with as many digits as the figure, for differences can be small."""
    if low is None or high is None:
        return ""
    return f"[{cells.share(low, digits, sign=sign)}, {cells.share(high, digits, sign=sign)}]"
