"""The document of a survey as sections: tables for a terminal, a page for a browser, Markdown and LaTeX for a paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text as Line

from metarec.report import cells, figures, sections
from metarec.report.appendix import tuning
from metarec.report.blocks import Block, Folded, Section, Text
from metarec.report.comparison_text import HOW, brief
from metarec.report.finished import Run
from metarec.report.labels import label
from metarec.report.pages import Page
from metarec.report.protocol import order_notes
from metarec.report.sheet import Cell, Sheet, rich_table
from metarec.report.survey import Blocks, gain_over, strongest
from metarec.report.training import loss_curves, training_sheet

Json = dict[str, Any]
OVER = {"control": "the fine-tune control", "in_context": "in-context history", "pretrained": "the pretrained model",
        "strongest": "the strongest baseline of its table"}  # fmt: skip


def survey_table(document: Json) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    of_blocks = [
        sheet for block in document["blocks"] for sheet in (block_sheet(block, document["metric"]), _training(block))
    ]
    of_blocks.append(_side_by_side(document))
    for sheet in (overview(document), *(found for found in of_blocks if found is not None)):
        notes = [Line(note, style="bold red" if note.startswith("LEAKY") else "dim") for note in sheet.notes]
        parts += [rich_table(sheet), *notes, Line("")]
    return Group(*parts, *[Line(line) for line in in_words(document)])


def survey_page(document: Json, blocks: Blocks) -> Page:
    """Everything: what was found in words and pictures, then each data set with its funnel, curves and tuning."""
    datasets = list(dict.fromkeys(block["block"][0] for block in document["blocks"]))
    metric = document["metric"]
    head: list[Block] = [Text(" ".join(in_words(document)), "lead")]
    if leaky := [" ".join(block["block"]) for block in document["blocks"] if block["leaky"]]:
        head.append(Text(f"{', '.join(leaky)}: {sections.LEAKS}", "warning"))
    pictures = [
        picture for picture in (_forest(document, method) for method in ("control", "in_context", "strongest"))
        if picture is not None
    ]  # fmt: skip
    parts = [Section("Overview", [overview(document), *pictures])]
    if (together := _side_by_side(document)) is not None:
        curves = loss_curves([cell for own in blocks.values() for cell in own])
        parts.append(Section("Training", [together, *([] if curves is None else [curves])]))
    for block in document["blocks"]:
        cell_runs = dict(blocks[block["block"][0], block["block"][1]])
        parts.append(_of_block(block, metric, cell_runs))
    parts.append(Section("Settings", [settings(document)] if document["tuned"] else [Text("Nothing was tuned.")]))
    return Page(f"Survey of {len(datasets)} data set{'s' if len(datasets) > 1 else ''}", [
        Section("What was found", head), *parts,
    ])  # fmt: skip


def in_words(document: Json) -> list[str]:
    """What the survey says, a sentence for each thing that ours was compared with; nothing is claimed that no interval
    shows."""
    n = len(document["blocks"])
    heading, seeds = cells.heading(document["metric"]), document["seeds"]
    words = [
        f"{n} table{'s' if n > 1 else ''} of a data set and a model, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, "
        f"{heading}. Ours is the algorithm and residual with the best validation figure."
    ]
    for reference, name in OVER.items():
        counts = document["shown"][reference]
        if total := sum(counts.values()):
            words.append(
                f"Over {name}: better in {counts['better']} of {total}, worse in {counts['worse']}, "
                f"no difference shown in {counts['none']}."
            )
    return words + [f"{name} failed: {line}." for name, line in document["failures"].items()]


def overview(document: Json) -> Sheet:
    """One line a table: ours, the strongest baseline, and the gains that the field argues about."""
    rows: list[list[Cell]] = []
    for block in document["blocks"]:
        best, ours = strongest(block), block["ours"]
        rows.append([
            " ".join(block["block"]),
            f"{block['users']:,}",
            f"{ours['algorithm']}, {ours['residual']}",
            (cells.share(ours["mean"]), cells.ends(ours["low"], ours["high"])),
            label(best),
            *[_gain(gain_over(block, method)) for method in (best, "control", "in_context", "pretrained")],
        ])  # fmt: skip
    columns = ["", "users", "ours", cells.heading(document["metric"]), "strongest baseline", "ours minus strongest",
               "minus control", "minus in-context", "minus pretrained"]  # fmt: skip
    notes = [
        "ours: chosen on validation; strongest baseline: chosen on test, so against us",
        "intervals draw users with all their seeds; better, worse, none: the interval lies above 0, below it, or holds it",
        *[f"LEAKY {' '.join(block['block'])}: training sees events later than some targets"
          for block in document["blocks"] if block["leaky"]],
        *[f"{' '.join(block['block'])}: {note}" for block in document["blocks"] for note in order_notes(block)],
    ]  # fmt: skip
    return Sheet("Ours beside the strongest baseline", columns, rows, frozenset({0, 2, 4}), notes=notes)


def _training(block: Json) -> Sheet | None:
    return training_sheet(block["training"], " ".join(block["block"]))


def _side_by_side(document: Json) -> Sheet | None:
    """The training of all cells in one table, where blocks are variants that cannot be compared by their test episodes."""
    rows = [row for block in document["blocks"] for row in block["training"]]
    names = {row["residual"] for row in rows}
    if len(document["blocks"]) < 2 or len(names) < len(rows) or not document["config"].get("variants"):
        return None
    return training_sheet(rows, "all side by side")


def _gain(entry: Json | None) -> Cell:
    if entry is None:
        return cells.NOTHING
    word = entry["verdict"] if entry["verdict"] in ("better", "worse") else "none"
    ends = cells.ends(entry["low"], entry["high"], sign=True)
    return cells.share(entry["mean"], sign=True), f"{ends} {word}".strip()


def block_sheet(block: Json, metric: str) -> Sheet:
    """Every baseline and every adapted row of a data set and model; what ours gains over each baseline, and each adapted
    row over the fine-tune control and in-context history."""
    rows: list[list[Cell]] = []
    gains = {entry["against"]: entry for entry in block["differences"]}

    def row(name: str, figure: Json, against: Json | None, own: Json) -> list[Cell]:
        ours = [cells.NOTHING] * 4 if against is None else [
            (cells.share(against["mean"], sign=True), cells.ends(against["low"], against["high"], sign=True)),
            cells.p_value(against["p_holm"]), against["verdict"], cells.share(against["detectable"]),
        ]  # fmt: skip
        return [name, (cells.share(figure["mean"]), cells.ends(figure["low"], figure["high"])),
                cells.share(figure["sd_seeds"]), *ours, _gain(own.get("control")), _gain(own.get("in_context"))]  # fmt: skip

    for figure in block["rows"]:
        rows.append(row(label(figure["method"]), figure, gains.get(figure["method"]), {}))
    n = len(rows)
    best = (block["ours"]["residual"], block["ours"]["algorithm"])
    strong = set()
    for number, figure in enumerate(block["adapted"], n):
        rows.append(row(f"{figure['algorithm']}, {figure['residual']}", figure, None, figure["gains"]))
        if (figure["residual"], figure["algorithm"]) == best:
            strong.add(number)
    start = {"mean": block["ours"]["zeroshot"], "low": None, "high": None, "sd_seeds": None}
    rows.append(row("ours before adaptation", start, gains["zeroshot"], {}))
    columns = ["method", cells.heading(metric), "sd seeds", "ours minus it", "Holm p", "verdict", "detectable",
               "it minus control", "it minus in-context"]  # fmt: skip
    notes = [
        f"{block['users']:,} users, {block['targets']:,} targets, {block['n_items']:,} items; split {block['split_by']}; "
        f"unknown targets {cells.per_cent(block['unknown_target_share'], 1)} (misses), repeats "
        f"{cells.per_cent(block['repeat_share'], 0)}",
        HOW.format(count=block["comparisons"]),
        *[f"without {label(row)}: {why}" for row, why in block["left_out"].items()],
    ]
    if block["leaky"]:
        notes.insert(0, "LEAKY: the split lets training see events later than some targets")
    notes = order_notes(block) + notes
    return Sheet(" ".join(block["block"]), columns, rows, frozenset({0, 5}), frozenset(strong), notes).without_empty()


def settings(document: Json) -> Sheet:
    """What each cell tried on validation and what was chosen."""
    rows: list[list[Cell]] = []
    for name, record in document["tuned"].items():
        tried = [f"{_setting(one)}: {cells.share(one['value'])}" for one in record["tried"]]
        rows.append([name, _setting(record["chosen"]), "; ".join(tried)])
    return Sheet(
        "Settings of the cells, by validation with the first seed", ["cell", "chosen", "tried"], rows,
        frozenset({0, 1, 2}),
    )  # fmt: skip


def _setting(values: Json) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in values.items() if key != "value")


def _forest(document: Json, reference: str) -> Block | None:
    """Ours minus a reference for every block, with its interval."""
    found = []
    for block in document["blocks"]:
        entry = gain_over(block, strongest(block) if reference == "strongest" else reference)
        if entry is not None and entry["low"] is not None:
            name = (
                block["block"][0] if len({b["block"][1] for b in document["blocks"]}) == 1 else " ".join(block["block"])
            )
            found.append((name, entry))
    return figures.forest(found, f"ours minus {OVER[reference]}", document["metric"]) if found else None


def _of_block(block: Json, metric: str, runs: dict[tuple[str, str], Any]) -> Section:
    """The table of a block, then the first run of ours as a report of a single run has it, and how the rows were tuned."""
    best = (block["ours"]["residual"], block["ours"]["algorithm"])
    own: Run = runs[best][0]
    panel: Run = next(iter(runs.values()))[0]
    words = []
    for method in dict.fromkeys((strongest(block), "control", "in_context")):
        if (entry := gain_over(block, method)) is not None:
            mean, ends = cells.share(entry["mean"], sign=True), cells.ends(entry["low"], entry["high"], sign=True)
            words.append(f"Ours minus {brief(method)}: {mean} {ends}, {entry['verdict']}.")
    blocks: list[Block] = [Text(" ".join(words), "lead"), block_sheet(block, metric)]
    few = np.mean([run.values("fewshot", metric) for run in runs[best]], axis=0)
    control = np.mean([run.values("control", metric) for run in next(iter(runs.values()))], axis=0)
    blocks.append(figures.gains(few, control, ("fewshot", "control"), metric))
    blocks += [part for part in (_training(block), loss_curves(list(runs.items()))) if part is not None]
    of_one = [
        part
        for part in (
            sections.protocol(own), sections.funnel(own), sections.curves(own, metric), sections.support(own, metric),
            tuning(panel),
        )
        if part is not None
    ]  # fmt: skip
    folded = [Folded(f"{part.title}, seed {own.seed}", part.blocks) for part in of_one]
    return Section(" ".join(block["block"]), [*blocks, *folded])
