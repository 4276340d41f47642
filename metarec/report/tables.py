"""The tables of a run on the screen, at most 100 columns wide: results with their differences, and the preparation.

What stands in them is made in ``report.sheets`` and ``report.notes``; the same as a page in ``report.markdown`` and for a
paper in ``report.latex``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from metarec.report.cells import funnel_columns
from metarec.report.notes import notes
from metarec.report.sheets import Cell, Json, Sheet, headline_of, sheets

WIDTH = 100
_NARROW = 94  # columns below which an interval stands under its figure


def results_table(document: Json, *, title: str = "", headline: Sequence[str] | None = None) -> RenderableType:
    """Methods, shares of the gap, differences, slices and curves, with the conditions they were measured under beneath.

    ``headline``: the at most two metrics that show their interval, `sheets.headline_of` unless given.
    """
    headline_of(document, headline)  # refused here, and not when it is printed
    return _Results(document, title, headline)


class _Results:
    """Laid out when printed, for the width there is."""

    def __init__(self, document: Json, title: str, headline: Sequence[str] | None) -> None:
        self.document, self.title, self.headline = document, title, headline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gap = " " if options.max_width >= _NARROW else "\n"
        for index, sheet in enumerate(sheets(self.document, title=self.title, headline=self.headline)):
            if index:
                yield Text()
            yield sheet_table(sheet, gap)
        yield Text()
        for line in notes(self.document, self.headline):
            yield Text(line, style="bold red" if line.startswith("LEAKY") else "dim")


def sheet_table(sheet: Sheet, gap: str = " ") -> Table:
    """A sheet for the screen; `gap` stands between a figure and its interval."""
    table = _frame(sheet.title)
    table.add_column(sheet.corner, min_width=16)
    for heading in sheet.headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in sheet.groups:
        for row in group:
            table.add_row(row.label, *[_text(cell, gap) for cell in row.cells], style="bold" if row.strong else None)
        table.add_section()
    return table


def _text(cell: Cell, gap: str) -> Text:
    return Text(f"{cell.figure}{gap}{cell.interval}" if cell.interval else cell.figure)


def funnel_table(
    steps: Sequence[Json], counts: Mapping[str, Mapping[str, float]] | None = None, *, title: str = "Preparation"
) -> RenderableType:
    """What every step of the preparation kept and dropped; ``counts`` {what: {split: number}} go beneath, as a block.

    A step is {"step", "rows", "users", "items", "sessions", "dropped", "why"}, of text {"step", "examples", "domains",
    "tokens", "dropped", "why"}; a count may be None (not counted yet).
    """
    table = _frame(title)
    table.add_column("step", no_wrap=False, max_width=24)
    columns = funnel_columns(steps)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", max_width=28)
    for step in steps:
        numbers = [_number(step.get(name)) for name in columns]
        table.add_row(str(step["step"]), *numbers, str(step.get("why") or ""))
    if not counts:
        return table
    splits = list(dict.fromkeys(split for row in counts.values() for split in row))
    below = _frame("")
    below.add_column("", no_wrap=True)
    for split in splits:
        below.add_column(split, justify="right", no_wrap=True)
    for what, row in counts.items():
        below.add_row(what.replace("_", " "), *[_number(row.get(split)) for split in splits])
    return Group(table, below)


def show(renderable: RenderableType, stream: IO[str] | None = None) -> None:
    """Print to ``stream`` (standard output by default): colours on a terminal, plain text of 100 columns elsewhere."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, width=WIDTH, color_system=None)
    console.print(renderable, width=min(WIDTH, console.width))


def plain_text(renderable: RenderableType) -> str:
    """The same as text without any control character, for log files and READMEs."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False, highlight=False, record=False)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _frame(title: str) -> Table:
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        show_edge=False, pad_edge=False,
    )  # fmt: skip


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
