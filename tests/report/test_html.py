"""The page: every section that there is data for, nothing fetched, nothing run, every text escaped, a tree that parses."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reference.small_reports import HOSTILE, write_run
from reference.small_reports import everything as all_blocks

from metarec.config.fields import group_schema
from metarec.metrics import METRICS
from metarec.report.finished import Run, read_run
from metarec.report.html import POLICY
from metarec.report.pages import report
from metarec.report.reported import plain
from metarec.report.style import DARK, LIGHT

EVERY = ("Funnel", "Protocol", "Results", "Differences", "Learning curves", "Support pairs, step size and steps", "Slices",
         "Tuning", "Cost", "Configuration", "Environment")  # fmt: skip
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Notes every element, the text under each, and whether start and end tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [data for name, data in self.text if name == tag]


def usual(group: str, name: str) -> dict[str, Any]:
    schema = group_schema(group, name)
    assert schema is not None
    return asdict(schema())


def one(path: Path, **options: Any) -> Run:
    return read_run(write_run(path, **options), path.name)


def page(*runs: Run, **options: Any) -> str:
    return report(runs, defaults=usual, **options).html()


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with everything, all of whose names are an attack."""
    root = tmp_path_factory.mktemp("full")
    return page(one(root / "run", extra=all_blocks(), protocol={"leaky": True, "split_note": HOSTILE}, dataset=HOSTILE,
                    user=HOSTILE, config={"warm_start": HOSTILE}))  # fmt: skip


def test_it_parses_and_every_tag_ends(full: str) -> None:
    reader = read(full)
    assert (reader.open, reader.wrong) == ([], [])
    assert full.startswith("<!DOCTYPE html>\n")
    ET.fromstring(full.partition("\n")[2])  # and is XML as well


def test_every_section_is_there_and_linked(full: str) -> None:
    reader = read(full)
    assert tuple(reader.of("h2")) == EVERY
    targets = [attributes["href"] for tag, attributes in reader.found if tag == "a"]
    names = [attributes["id"] for tag, attributes in reader.found if "id" in attributes]
    assert targets == [f"#{name}" for name in names if name and "-" not in name]
    assert len(set(names)) == len(names)


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sealed=False)
    for name in ("history.jsonl", "funnel.json", "environment.json"):
        (run / name).unlink()
    from metarec.runs import rundir

    rundir.seal(run)
    found = read_run(run, "run")
    for key in ("cost", "seconds", "control", "control_grid", "repeat", "novel"):
        del found.document[key]
    assert read(page(found)).of("h2") == ["Protocol", "Results", "Differences", "Configuration"]


def test_nothing_is_fetched_and_nothing_runs(full: str) -> None:
    reader = read(full)
    tags = Counter(tag for tag, _ in reader.found)
    assert not tags.keys() & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "use",
        "a:href",
    }
    policy = [a for tag, a in reader.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    ]
    assert policy[0]["content"] == POLICY
    for tag, attributes in reader.found:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style", "action")
        ], tag
        assert (attributes.get("href") or "#").startswith("#")
    (style,) = re.findall(r"<style>(.*?)</style>", full, re.DOTALL)
    assert not re.search(r"url\(|@import|expression|https?:", style)
    assert set(re.findall(r"https?://[^\"'<\s]+", full)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_text_of_a_run_never_becomes_markup(full: str) -> None:
    assert "<script" not in full
    assert "<img" not in full
    reader = read(full)
    shown = "".join(data for _, data in reader.text)
    assert (
        shown.count(HOSTILE) >= 6
    )  # the title twice, paragraph, split note, a slice, the funnel, an option, the command
    assert reader.of("title")[0].startswith(HOSTILE)


def test_tables_have_captions_and_scopes(full: str) -> None:
    root = ET.fromstring(full.partition("\n")[2])
    tables = list(root.iter("table"))
    assert len(tables) > 10
    for table in tables:
        assert table[0].tag == "caption" and "".join(table[0].itertext())
        heads = table.findall("thead/tr/th")
        assert heads and all(head.get("scope") == "col" for head in heads)
        for row in table.findall("tbody/tr"):
            assert row[0].tag == "th" and row[0].get("scope") == "row"
            assert len(row) == len(heads)
    regions = [e for e in root.iter("div") if e.get("class") == "scroll"]
    assert len(regions) == len(tables)
    assert all(region.get("tabindex") == "0" and region.get("aria-label") for region in regions)


def test_figures_and_words_are_those_of_the_document(tmp_path: Path) -> None:
    run = one(tmp_path / "run")
    text = page(run)
    for row in run.document["metrics"].values():
        for value in row.values():
            assert f"<td>{f'{value:.4f}'.removeprefix('0')}<small>[" in text
    for difference in run.document["differences"].values():
        for metric in ("hr@10", "ndcg@10"):
            assert f">{difference[metric]['verdict']}</td>" in text


def test_effect_size_and_detectable_where_a_run_has_them(tmp_path: Path) -> None:
    run = one(tmp_path / "run")
    for difference in run.document["differences"].values():
        for entry in difference.values():
            if isinstance(entry, dict):
                entry |= {"effect_size": 0.123, "detectable": 0.0456}
    text = page(run)
    assert '<th scope="col">effect size</th>' in text
    assert "<td>0.12</td>" in text and "<td>.0456</td>" in text
    assert "A true difference of .0456 would be found with 80 % power." in text


def test_a_leaky_split_is_warned_of_twice(full: str, tmp_path: Path) -> None:
    assert '<p class="warning">The split leaks' in full
    assert '<div class="warned"><dt>leaks through time</dt><dd>LEAKY' in full
    assert "LEAKY" not in page(one(tmp_path / "run"))


def test_slices_tuning_and_latency(full: str) -> None:
    wanted = ("6-12 events", "By length of the history", "By popularity of the target", "lr 1; steps 1", "smoothing 0.1",
              "lr [0.01,0.1,1]; steps [1,3,5]", "single p95", "0.01900", "<td>+.0200<small>[-.010, +.050]")  # fmt: skip
    for said in wanted:
        assert said in full, said
    assert full.count("highest 0.2700 at step size 0.1, 3 steps") == 2  # caption and description of the control's grid


def test_several_runs_open_with_their_comparison(tmp_path: Path) -> None:
    runs = [
        one(tmp_path / f"{a}_{s}", algorithm=a, seed=s, gain=g)
        for a, g in (("maml", 0.5), ("fomaml", 0.3))
        for s in (1, 2)
    ]
    reader = read(page(*runs))
    assert reader.of("h2") == ["Comparison", "What the configurations differ in",
                               *(f"algorithm={a}, seed {s}" for a in ("maml", "fomaml") for s in (1, 2))]  # fmt: skip
    assert reader.of("h3").count("Results") == 4
    assert "4 runs of 2 configurations (seeds 1, 2)" in reader.of("p")[0]


def test_a_classification_shows_accuracy(tmp_path: Path) -> None:
    reader = read(page(one(tmp_path / "run", protocol={"classification": True}), metric="hr@1"))
    heads = reader.of("th")
    assert "accuracy" in heads and "HR@5" not in heads
    assert "test tasks" in reader.of("p")[0]


def test_markdown_and_latex_hold_the_same_tables(tmp_path: Path) -> None:
    made = report([one(tmp_path / "run", extra=all_blocks(), dataset=HOSTILE)], defaults=usual)
    page_md, page_tex, page_html = made.markdown(), made.latex(), made.html()
    for title in EVERY:
        if title != EVERY[5]:  # pictures only
            assert f"## {title}" in page_md
    as_text = [line for line in page_md.splitlines() if not line.startswith("    ")]  # what is indented is code
    assert re.search(r"(?<!\\)<script", "\n".join(as_text)) is None
    n_tables = page_html.count("<table>")
    folded = len(METRICS)  # the other metrics, and the environment, stay with the page
    assert page_tex.count(r"\begin{tabular}") == n_tables - folded
    assert page_md.count("|:--|") >= n_tables


def test_a_usual_page_is_small(full: str) -> None:
    assert len(full.encode()) < 150_000


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_the_contrast_that_reading_needs(colours: dict[str, str]) -> None:
    """WCAG 2: 4.5 for text, 3 for the lines of the styles that methods have by name."""
    for text, ground in (
        ("ink", "bg"),
        ("soft", "bg"),
        ("ink", "panel"),
        ("soft", "panel"),
        ("warn", "warnbg"),
        ("link", "bg"),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, text
    for style in ("c0", "c1", "c2", "c3"):
        assert contrast(colours[style], colours["bg"]) >= 3.0, style
    assert contrast(colours["c4"], colours["bg"]) >= 2.8  # reddish purple on white: 2.96


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_reported_figures_stand_beside_with_their_source(tmp_path: Path) -> None:
    run = one(tmp_path / "run")
    assert "Reported by others" not in page(run)
    run.document["reported"] = plain("s3rec_lastfm")
    text = page(run)
    assert "Reported by others, not measured here" in text
    for figure in (".0688", ".0390", "arXiv:2008.07873"):
        assert figure in text
