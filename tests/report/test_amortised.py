"""Closeness to teachers on the screen and in the page: the numbers of the document, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference.small_reports import write_run

from metarec.report import amortised, sections
from metarec.report.finished import read_run
from metarec.report.notes import notes
from metarec.report.sheets import sheets
from metarec.report.tables import plain_text, results_table


def said(error: float, mean: float, cosine: float, of_mean: float) -> dict[str, Any]:
    return {
        "generated": {"relative_error": error, "cosine": cosine},
        "mean_teacher": {"relative_error": mean, "cosine": of_mean},
    }


BLOCK: dict[str, Any] = {
    "recovered": {"metric": "ndcg@10", "value": 0.613, "low": 0.4, "high": 0.82},
    "teacher": {"lr": 0.3, "steps": 10, "pairs": 64, "tuning": {"lr": 0.3}},
    "closeness": {
        "users": 1116, "without_teacher": 2, "all": said(0.7, 0.95, 0.5, 0.2),
        "modules": {"fc.weight": said(0.6, 0.9, 0.55, 0.25), "gru.weight_ih": said(0.8, 1.1, 0.45, 0.15)},
        "kl": {"generated_from_pretrained": 0.01, "teacher_from_pretrained": 0.02, "generated_from_teacher": 0.005},
    },
}  # fmt: skip


def run(path: Path, block: dict[str, Any] | None) -> Any:
    written = write_run(path / "run", extra={} if block is None else {"amortised": block})
    return read_run(written, "run")


def test_the_table_has_every_module_and_all_beside_what_nothing_comes_to(tmp_path: Path) -> None:
    found = run(tmp_path, BLOCK)
    assert amortised.columns(found.document) == ("error", "cosine", "error of mean", "cosine of mean")
    assert amortised.rows(found.document) == [
        ("fc.weight", (".600", ".550", ".900", ".250")),
        ("gru.weight_ih", (".800", ".450", "1.100", ".150")),
        ("all modules", (".700", ".500", ".950", ".200")),
    ]
    (sheet,) = (one for one in sheets(found.document) if one.title == amortised.TITLE)
    assert [row.label for row in sheet.groups[0]] == ["fc.weight", "gru.weight_ih", "all modules"]
    section = sections.closeness(found)
    assert section is not None
    assert section.title == "Closeness to teachers"


def test_the_screen_cuts_no_name(tmp_path: Path) -> None:
    """Of a language model's matrix, 38 letters, in 100 columns."""
    long = "model.layers.0.self_attn.q_proj.weight"
    block = BLOCK | {"closeness": BLOCK["closeness"] | {"modules": {long: said(0.6, 0.9, 0.55, 0.25)}}}
    text = plain_text(results_table(run(tmp_path, block).document))
    (line,) = (one for one in text.splitlines() if long in one)
    assert line.split() == [long, ".600", ".550", ".900", ".250"]


def test_one_module_is_all_and_no_teachers_no_mean(tmp_path: Path) -> None:
    only = {"generated": {"relative_error": None, "cosine": None}}
    block = BLOCK | {"closeness": BLOCK["closeness"] | {"all": only, "modules": {"context.shift": only}}}
    found = run(tmp_path, block)
    assert amortised.columns(found.document) == ("error", "cosine")
    assert amortised.rows(found.document) == [("context.shift", ("-", "-"))]


def test_what_is_said_beneath(tmp_path: Path) -> None:
    lines = "\n".join(notes(run(tmp_path, BLOCK).document))
    for words in (
        "share of the teachers' gain in NDCG@10 that is generated: 61 % [40,82]",
        "teachers of the users under test: 10 steps of 0.3 on at most 64 pairs, tuned on validation",
        "means over 1,116 episodes; 2 whose teacher did nothing are left out; generating nothing has error 1 and cosine 0",
        "pretrained || generated 0.0100, pretrained || teacher 0.0200, teacher || generated 0.0050",
    ):
        assert words in lines
    why = {"metric": "mrr", "value": None, "low": None, "high": None, "why": "the teachers gain nothing"}
    assert amortised.lines({"amortised": BLOCK | {"recovered": why}})[0].endswith(
        "is generated: none, the teachers gain nothing"
    )


def test_a_run_without_the_block_has_none_of_it(tmp_path: Path) -> None:
    found = run(tmp_path, None)
    assert amortised.columns(found.document) == ()
    assert amortised.lines(found.document) == []
    assert sections.closeness(found) is None
    assert all(sheet.title != amortised.TITLE for sheet in sheets(found.document))
