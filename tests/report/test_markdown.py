"""Markdown: the same rows and notes as the table on the screen, pipes that count, and nothing that reads as a tag."""

from __future__ import annotations

from reference.small_documents import CONDITIONS, PANEL, TUNING, curved, document

from metarec.report.markdown import markdown
from metarec.report.notes import notes
from metarec.report.sheets import sheets


def test_every_row_and_note_stands_there() -> None:
    data = document(methods=PANEL, sliced=True, **CONDITIONS, **TUNING)
    data["k_curve"] = curved()
    text = markdown(data, title="ml1m | fomaml")
    lines = text.splitlines()
    assert "**ml1m \\| fomaml**" in lines
    for sheet in sheets(data):
        for row in (row for group in sheet.groups for row in group):
            wanted = [f"{cell.figure} {cell.interval}".strip().replace("<", "&lt;") for cell in row.cells]
            cells = [line.replace("**", "").strip("| ").split(" | ") for line in lines]
            assert [row.label, *wanted] in cells, row.label
    assert [line for line in lines if line.startswith("- ")] == [
        f"- {note.replace('<', '&lt;')}" for note in notes(data)
    ]


def test_tables_are_tables() -> None:
    data = document(methods=PANEL, sliced=True)
    widths: list[int] = []
    for line in markdown(data).splitlines():
        if not line.startswith("|"):
            widths = []
            continue
        widths.append(line.replace("\\|", "").count("|"))
        assert len(set(widths)) == 1, line
    assert "<" not in markdown(data)


def test_our_row_is_bold() -> None:
    text = markdown(document())
    assert "| **few-shot (meta)** |" in text
    assert "| **over control** |" in text
    assert "| fine-tune control |" in text
