"""The tables of a run as a Markdown page: what `report.sheets` and `report.notes` hold, in pipes and list items."""

from __future__ import annotations

from collections.abc import Sequence

from metarec.report.notes import notes
from metarec.report.sheets import Cell, Json, Row, Sheet, sheets


def markdown(document: Json, *, title: str = "", headline: Sequence[str] | None = None) -> str:
    """``document``: that of metrics.json. A blank line between tables, the notes as a list at the end."""
    parts = [_table(sheet) for sheet in sheets(document, title=title, headline=headline)]
    return "\n".join([*parts, "".join(f"- {_escaped(line)}\n" for line in notes(document, headline))])


def _table(sheet: Sheet) -> str:
    head = f"**{_escaped(sheet.title)}**\n\n" if sheet.title else ""
    columns = [sheet.corner, *sheet.headings]
    lines = [columns, ["---", *("---:" for _ in sheet.headings)]]
    lines += [_cells(row) for group in sheet.groups for row in group]
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> list[str]:
    cells = [_escaped(row.label), *(_text(cell) for cell in row.cells)]
    return [f"**{cell}**" for cell in cells] if row.strong else cells


def _text(cell: Cell) -> str:
    return _escaped(f"{cell.figure} {cell.interval}".rstrip())


def _escaped(text: str) -> str:
    """`<.001` is no tag, and a pipe is no column."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
