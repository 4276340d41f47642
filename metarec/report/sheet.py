"""One table, told to four readers: a terminal (rich), Markdown, LaTeX and, by `report.html`, a browser.

A cell is text, or (text, small) where an interval stands under or behind its figure. The first cell of a row names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

Cell = str | tuple[str, str]
WORDS = 24  # characters that a column of words takes before it is broken into lines
GAP = 2  # characters between columns


@dataclass(frozen=True)
class Sheet:
    """``columns``: headings; ``words``: places of the columns that hold words (left-aligned), the first among them.

    ``strong``: numbers of the rows to be stressed; ``notes``: lines beneath.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[int] = frozenset({0})
    strong: frozenset[int] = frozenset()
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.caption}: {len(self.columns)} columns, a row of {len(wrong[0])} cells")

    def without_empty(self) -> Sheet:
        """The same less the columns in which no row has anything to say."""
        empty = [i for i in range(1, len(self.columns)) if all(said(row[i]) in ("", "-") for row in self.rows)]
        return self._less(empty)

    def without(self, heading: str) -> Sheet:
        """The same less one column."""
        return self._less([i for i, own in enumerate(self.columns) if own == heading])

    def _less(self, gone: Sequence[int]) -> Sheet:
        kept = [i for i in range(len(self.columns)) if i not in gone]
        words = frozenset(kept.index(i) for i in self.words if i in kept)
        rows = [[row[i] for i in kept] for row in self.rows]
        return Sheet(self.caption, [self.columns[i] for i in kept], rows, words, self.strong, self.notes)


def said(cell: Cell) -> str:
    """The cell in one line."""
    return cell if isinstance(cell, str) else " ".join(part for part in cell if part)


def rich_table(sheet: Sheet) -> RenderableType:
    """For a terminal. What does not fit its width goes on below, the rows' names again in front."""
    return _Fitted(sheet)


@dataclass(frozen=True)
class _Fitted:
    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, part in enumerate(_parts(self.sheet, options.max_width)):
            if number:
                yield Text("")
            yield _rich(part if number == 0 else replace(part, caption=""))


def _parts(sheet: Sheet, width: int) -> list[Sheet]:
    """The sheet in pieces of columns that fit `width` characters each, as far as one column with the first does."""
    natural = [
        max(len(line) for line in [*_heading(sheet, place).split("\n"), *(said(row[place]) for row in sheet.rows)])
        + GAP
        for place in range(len(sheet.columns))
    ]
    wide = [min(size, WORDS) if place in sheet.words else size for place, size in enumerate(natural)]
    pieces: list[list[int]] = [[]]
    for place in range(1, len(sheet.columns)):
        if pieces[-1] and wide[0] + sum(wide[other] for other in pieces[-1]) + wide[place] > width + GAP:
            pieces.append([])
        pieces[-1].append(place)
    return [sheet._less([i for i in range(1, len(sheet.columns)) if i not in piece]) for piece in pieces]


def _heading(sheet: Sheet, place: int) -> str:
    return sheet.columns[place] if place in sheet.words else sheet.columns[place].replace(" ", "\n", 1)


def _rich(sheet: Sheet) -> Table:
    table = Table(
        title=sheet.caption or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0), show_edge=False, pad_edge=False,
    )  # fmt: skip
    for place in range(len(sheet.columns)):
        in_words = place in sheet.words
        justify: Literal["left", "right"] = "left" if in_words else "right"
        table.add_column(_heading(sheet, place), justify=justify, no_wrap=not in_words, overflow="fold")
    for number, row in enumerate(sheet.rows):
        style = "bold" if number in sheet.strong else None
        table.add_row(*[Text(said(cell)) for cell in row], style=style)
    return table


def markdown(sheet: Sheet) -> str:
    """A pipe table with its notes as a list; what Markdown or HTML would read as markup is escaped."""
    marks = [":--" if place in sheet.words else "--:" for place in range(len(sheet.columns))]
    lines = [_pipes(sheet.columns), f"|{'|'.join(marks)}|", *[_pipes([said(c) for c in row]) for row in sheet.rows]]
    notes = [f"- {markdown_text(note)}" for note in sheet.notes]
    return "\n".join([f"**{markdown_text(sheet.caption)}**", "", *lines, *(["", *notes] if notes else [])]) + "\n"


def markdown_text(text: str) -> str:
    """`text` with nothing in it that Markdown reads as markup."""
    line = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        line = line.replace(mark, f"\\{mark}")
    return line.replace("&", "&amp;")


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown_text(cell) for cell in cells)} |"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex(sheet: Sheet) -> str:
    """A `tabular` of the package booktabs in a `table`; minus signs of numbers in math mode."""
    form = "".join("l" if place in sheet.words else "r" for place in range(len(sheet.columns)))
    lines = [r"\begin{table}\centering\small", rf"\caption{{{tex(sheet.caption)}}}", rf"\begin{{tabular}}{{{form}}}",
             r"\toprule", " & ".join(tex(heading) for heading in sheet.columns) + r" \\", r"\midrule"]  # fmt: skip
    for number, row in enumerate(sheet.rows):
        cells = [tex(said(cell)) for cell in row]
        bold = [rf"\textbf{{{cell}}}" if number in sheet.strong and cell else cell for cell in cells]
        lines.append(" & ".join(bold) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {tex(note)}" for note in sheet.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def tex(text: str) -> str:
    """`text` with nothing in it that TeX reads as a command."""
    line = "".join(_TEX.get(mark, mark) for mark in " ".join(str(text).split()))
    out, previous = "", ""
    for mark in line:
        negative = mark == "-" and previous in ("", " ", "[", ",")
        out += "$-$" if negative else mark
        previous = mark
    return out
