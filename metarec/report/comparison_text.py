"""The document of a comparison as tables: for a terminal, as a page of Markdown, as LaTeX."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from metarec.report import cells
from metarec.report.labels import label
from metarec.report.measured import accuracy, tokens
from metarec.report.measured import drawn as drawn_of
from metarec.report.protocol import order_notes
from metarec.report.sheet import Cell, Sheet, latex, markdown, markdown_text, rich_table

Json = dict[str, Any]
MB = 1024.0**2
DIFFERENCE = ("mean", "effect size", "detectable", "p", "Holm p", "verdict")
HOW = "p: sign-flip test over users, Holm's correction over {count} differences"
POWER = "effect size: mean over users / sd over users; detectable: the true difference found with 80 % power"


def brief(method: str) -> str:
    """The label inside a line: control, few-shot."""
    return "control" if method == "control" else label(method).split(" (")[0].removesuffix(", zero-shot")


def title(document: Json) -> str:
    """dataset: what all configurations share, metric."""
    shared = [document["model"], f"residual {document['residual']}"]
    differing = {key for one in document["configurations"] for key in one["differs"]}
    shared = [text for text, key in zip(shared, ("model.name", "residual.name"), strict=True) if key not in differing]
    return f"{document['dataset']}: {', '.join([*shared, cells.heading(document['metric'], accuracy(document))])}"


def sheets(document: Json) -> list[Sheet]:
    """Results, differences, and what the configurations cost."""
    return [results(document), *(s for s in (differences(document), costs(document)) if s is not None)]


def results(document: Json) -> Sheet:
    """A row for each configuration and method."""
    rows: list[list[Cell]] = [
        [
            label(row["method"]),
            "all" if row["shared"] else ", ".join(row["configurations"]),
            (cells.share(row["mean"]), cells.ends(row["low"], row["high"])),
            cells.share(row["sd_users"], 3),
            cells.share(row["sd_seeds"]),
            str(len(row["seeds"])),
        ]
        for row in document["rows"]
    ]
    strong = frozenset(number for number, row in enumerate(document["rows"]) if row["method"] == "fewshot")
    columns = [
        "method",
        "configuration",
        cells.heading(document["metric"], accuracy(document)),
        "sd users",
        "sd seeds",
        "seeds",
    ]
    return Sheet(title(document), columns, rows, frozenset({0, 1}), strong, conditions(document))


def differences(document: Json) -> Sheet | None:
    """A row for each difference; None where there is nothing to take from one another."""
    if not document["differences"]:
        return None
    alone = len(document["configurations"]) == 1
    rows = [[difference_name(entry, alone), *difference_cells(entry)] for entry in document["differences"]]
    who = "domains" if tokens(document) else "users"
    notes = [f"paired over {who}; " + HOW.format(count=len(rows)), POWER]
    notes = [note.replace("users", who) for note in notes]
    return Sheet("Differences", ["difference", *DIFFERENCE], rows, frozenset({0, 6}), notes=notes)


def difference_cells(entry: Json) -> list[Cell]:
    """The cells under DIFFERENCE of one difference; effect size and detectable may be lacking."""
    return [
        (cells.share(entry["mean"], sign=True), cells.ends(entry["low"], entry["high"], sign=True)),
        cells.number(entry.get("effect_size"), 2),
        cells.share(entry.get("detectable")),
        cells.p_value(entry["p_value"]),
        cells.p_value(entry["p_holm"]),
        entry["verdict"],
    ]


def difference_name(entry: Json, alone: bool = False) -> str:
    """few-shot minus control, with the configurations' names where there are several."""
    of, against = entry["of"], entry["against"]
    if of["method"] == against["method"]:
        return f"{brief(of['method'])}, {of['configuration'] or 'all'} minus {against['configuration'] or 'all'}"
    words = f"{brief(of['method'])} minus {brief(against['method'])}"
    where = of["configuration"] or against["configuration"]
    return words if alone or where is None else f"{words}, {where}"


def costs(document: Json) -> Sheet | None:
    """What every configuration took; None where no run tells (evaluations)."""

    def mb(value: int | None) -> str:
        return cells.number(None if value is None else value / MB, 0)

    rows = [
        [
            one["name"],
            cells.number(one["seconds_per_step"], 3),
            cells.number(one["total_seconds"], 1),
            mb(one["peak_bytes"]),
            mb(one["growth_bytes"]),
            cells.number(one["loss"], 3),
            "/".join(f"{steps:,}" for steps in dict.fromkeys(one["steps"])) or cells.NOTHING,
            cells.per_cent(one["share_of_gap"]),
        ]
        for one in document["configurations"]
    ]
    if all(said == cells.NOTHING for row in rows for said in row[1:]):
        return None
    columns = ["configuration", "s a step", "total s", "peak MB", "added MB", "loss", "steps", "share of gap"]
    notes = ["medians over seeds, the largest memory; added MB: over what stood in memory before meta-training"]
    if any(row[-1] != cells.NOTHING for row in rows):
        notes.append("share of gap: what few-shot closes of the gap between pretrained and Bayes few-shot")
    return Sheet("Cost", columns, rows, notes=notes).without_empty()


def conditions(document: Json) -> list[str]:
    """What the figures were measured under, a line each."""
    protocol, drawn = document["protocol"], document["bootstrap"]
    who = drawn_of(document)
    lines = [
        f"{document['users']:,} {protocol['split']} {who}, {document['targets']:,} targets; unknown targets "
        f"{cells.per_cent(document['unknown_target_share'], 2)} (misses); {100 * drawn['confidence']:g} % intervals, "
        f"{drawn['n_resamples']:,} draws of {who} with all their seeds",
        f"split {protocol['split']} of {protocol['split_by']}; K={protocol['n_support']}, Q={protocol['n_query']}; "
        f"ties {protocol['ties']}; episodes {protocol['episodes_sha256'][:12]}",
    ]
    if protocol["leaky"]:
        lines.append("LEAKY: this split lets training see events later than some targets")
    lines += order_notes(protocol)
    lines += document["notes"]
    return lines + [f"{name} failed: {reason}" for name, reason in document["failures"].items()]


def comparison_table(document: Json) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for sheet in sheets(document):
        notes = [Text(note, style="bold red" if note.startswith("LEAKY") else "dim") for note in sheet.notes]
        parts += [rich_table(sheet.without("p")), *notes, Text("")]
    return Group(*parts[:-1])


def comparison_markdown(document: Json) -> str:
    """The same as a page."""
    return f"## {markdown_text(title(document))}\n\n" + "\n".join(markdown(sheet) for sheet in sheets(document))


def comparison_latex(document: Json) -> str:
    """The same for a paper; needs the package booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(latex(sheet) for sheet in sheets(document))
