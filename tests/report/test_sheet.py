"""One table for four readers: escaping, alignment and columns that say nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from metarec.report import cells
from metarec.report.sheet import Sheet, latex, markdown, rich_table, tex
from metarec.report.tables import plain_text

NASTY = "a|b_c <script> 50 % & $x$ #1 \\x {y} ^~`*[l](u)"
SHEET = Sheet("Cap|tion", ["name", "figure", "empty"], [[NASTY, (".1234", "[-.1, .2]"), "-"], ["b", ".5", ""]],
              strong=frozenset({1}), notes=["note_1"])  # fmt: skip


def test_markdown_has_a_cell_for_every_cell() -> None:
    lines = markdown(SHEET).splitlines()
    assert lines[2:4] == ["| name | figure | empty |", "|:--|--:|--:|"]
    for line in lines[4:6]:
        assert line.replace("\\|", "").count("|") == 4
    assert "<script>" not in markdown(SHEET).replace("\\<script\\>", "")
    assert lines[-1] == "- note\\_1"


def test_latex_escapes_what_tex_would_run() -> None:
    assert tex("a_b & 50 % #1 $x$ {y}") == r"a\_b \& 50 \% \#1 \$x\$ \{y\}"
    assert tex("\\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert tex("-.01 [-.02, .03] a-b") == r"$-$.01 [$-$.02, .03] a-b"
    body = latex(SHEET)
    assert r"\textbf{.5}" in body
    assert body.count(r"\\") == 3
    assert r"\begin{tabular}{lrr}" in body


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + latex(SHEET) + r"\end{document}"
    (tmp_path / "x.tex").write_text(page)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"], cwd=tmp_path, check=False,
                          capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_a_terminal_shows_markup_as_it_is() -> None:
    shown = plain_text(rich_table(Sheet("", ["name", "x"], [["[bold]a[/bold]", "1"]])))
    assert "[bold]a[/bold]" in shown


def test_columns_that_say_nothing_are_left_out() -> None:
    less = SHEET.without_empty()
    assert less.columns == ["name", "figure"]
    assert less.without("figure").rows == [[NASTY], ["b"]]
    with pytest.raises(ValueError, match="3 columns, a row of 2"):
        Sheet("x", ["a", "b", "c"], [["1", "2"]])


def test_numbers_as_the_tables_write_them() -> None:
    assert [cells.share(v) for v in (0.40531, 1.0, 0.0, None)] == [".4053", "1.0000", ".0000", "-"]
    assert [cells.share(v, 3, sign=True) for v in (0.0405, -0.0405, 1.2)] == ["+.041", "-.041", "+1.200"]  # as format()
    assert cells.ends(None, 0.2) == ""
    assert cells.ends(-0.1, 0.25, sign=True) == "[-.100, +.250]"
    assert [cells.p_value(p) for p in (0.0004, 0.05, 1.0)] == ["<.001", ".050", "1.000"]
    assert [cells.per_cent(v) for v in (-0.001, 0.126)] == ["0 %", "13 %"]
    assert [cells.plain(v) for v in (None, True, [1, "a"], 1e-8, "")] == ["null", "true", "[1,a]", "1e-08", "''"]
    assert cells.listed(list("abcde")) == "a, b, c and 2 more"
