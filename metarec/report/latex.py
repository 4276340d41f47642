r"""The tables of a run for a paper: one table environment each, rules of booktabs, notes under the last.

The preamble needs \usepackage{booktabs}. Signed figures and intervals are set as mathematics, so that a minus is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metarec.report.notes import notes
from metarec.report.sheets import Cell, Json, Row, Sheet, sheets

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip
_FIGURE = re.compile(r"\[?[+-][-+\d.,]+\]?")  # +.0123, [-.003,+.010]


def latex(document: Json, *, title: str = "", headline: Sequence[str] | None = None) -> str:
    """``document``: that of metrics.json."""
    found = sheets(document, title=title, headline=headline)
    below = " ".join(f"{escaped(line)}." for line in notes(document, headline))
    parts = [_table(sheet, below if sheet is found[-1] else "") for sheet in found]
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def escaped(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _table(sheet: Sheet, below: str) -> str:
    lines = ["\\begin{table}", "\\centering"]
    if sheet.title:
        lines.append(f"\\caption{{{escaped(sheet.title)}}}")
    lines += [f"\\begin{{tabular}}{{l{'r' * len(sheet.headings)}}}", "\\toprule"]
    lines.append(" & ".join(escaped(text) for text in (sheet.corner, *sheet.headings)) + r" \\")
    for group in sheet.groups:
        lines += ["\\midrule", *(_row(row) for row in group)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if below:
        lines.append(f"\\par\\smallskip\\footnotesize {below}")
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _row(row: Row) -> str:
    cells = [escaped(row.label), *(_text(cell) for cell in row.cells)]
    return " & ".join(f"\\textbf{{{cell}}}" if row.strong and cell else cell for cell in cells) + r" \\"


def _text(cell: Cell) -> str:
    return f"{_set(cell.figure)} {{\\scriptsize {_set(cell.interval)}}}" if cell.interval else _set(cell.figure)


def _set(text: str) -> str:
    return f"${text}$" if _FIGURE.fullmatch(text) else escaped(text)
