r"""LaTeX: braces and environments that close, as many columns in every row, and nothing that TeX would read as its own."""

from __future__ import annotations

import re

import pytest
from reference.small_documents import CONDITIONS, PANEL, TUNING, curved, document

from metarec.report import latex as module
from metarec.report.latex import escaped, latex
from metarec.report.sheets import sheets


def check(text: str) -> None:
    """What TeX would stop at."""
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    body = text.partition("\n")[2]
    bare = re.sub(r"\\[%&#_{}$]", "", body)  # escaped ones are letters
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    for sign in "%#_^~":
        assert sign not in bare, sign
    outside = re.sub(r"\$[^$]*\$", "", bare)
    assert "<" not in outside  # an upside-down exclamation mark in the default encoding
    columns = 0
    for line in bare.splitlines():
        if begun := re.match(r"\\begin\{tabular\}\{(l+r*)\}", line):
            columns = len(begun[1])
        elif line.endswith(r"\\"):
            assert line.count("&") == columns - 1, line


def test_a_whole_document() -> None:
    data = document(methods=PANEL, sliced=True, **CONDITIONS, **TUNING)
    data["k_curve"] = curved()
    text = latex(data, title="ml1m & co: 100 % of a_b")
    check(text)
    assert text.count(r"\begin{tabular}") == len(sheets(data))
    assert r"\caption{ml1m \& co: 100 \% of a\_b}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(sheets(data))
    gain = data["differences"]["gain_over_markov"]["hr@1"]
    assert f"${gain['mean']:+.4f}$".replace("0.", ".", 1) in text
    assert r"Markov, first order &" in text
    assert "LEAKY" in text


def test_letters_that_tex_keeps_for_itself() -> None:
    assert escaped(r"50 % of a_b & {c} ~ #1 \x <.001 $ ^") == (
        r"50 \% of a\_b \& \{c\} \textasciitilde{} \#1 \textbackslash{}x $<$.001 \$ \textasciicircum{}"
    )


def test_a_letter_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._SPECIAL, "%", "%")
    with pytest.raises(AssertionError):
        check(latex(document(**CONDITIONS)))
