"""The report of finished runs: their sections, as one HTML page, as Markdown, as LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from metarec.errors import ConfigError
from metarec.report import appendix, cells, sections
from metarec.report.blocks import Block, Card, Folded, Listing, Section, Text
from metarec.report.comparison import comparison
from metarec.report.comparison_text import difference_name, sheets, title
from metarec.report.configurations import Defaults, configurations
from metarec.report.finished import Run
from metarec.report.html import page
from metarec.report.protocol import refusals
from metarec.report.sheet import Sheet, latex, markdown, markdown_text
from metarec.report.timescales import timescales

Json = dict[str, Any]
FOOTER = (
    "better, worse: the interval of a difference lies above, below 0; else no difference is shown. By metarec report."
)
TOLD = 6  # differences in the opening paragraph


@dataclass(frozen=True)
class Page:
    """Title and sections; the first section is the head of the page."""

    title: str
    sections: Sequence[Section]

    def html(self) -> str:
        """One self-contained page: pictures and style stand in it, nothing is loaded."""
        return page(self.title, self.sections, FOOTER)

    def markdown(self) -> str:
        """All but the pictures."""
        head, *rest = self.sections
        lines = [f"# {markdown_text(self.title)}\n", *_lines(head.blocks)]
        for one in rest:
            lines += _markdown(one, 2)
        return "\n".join(lines)

    def latex(self) -> str:
        """The tables; needs the package booktabs."""
        found = [sheet for one in self.sections for sheet in _sheets(one)]
        return "% needs \\usepackage{booktabs}\n" + "\n".join(latex(sheet) for sheet in found)


def report(
    runs: Sequence[Run], *, defaults: Defaults, metric: str | None = None, methods: Sequence[str] | None = None,
    against: str | None = None,
) -> Page:  # fmt: skip
    """The page of one run, or of several with what sets them apart. ConfigError for options that would do nothing."""
    if len(runs) == 1:
        (run,) = runs
        _no_table(methods, against, "there is one run")
        own = metric or run.monitor
        return Page(_title(run), [Section("Summary", sections.summary(run, own)), *_of_run(run, own)])
    head, compared = _compared(runs, defaults, metric, methods, against)
    each = []
    for one in configurations(runs, defaults):
        for run in one.runs:
            own = metric or run.monitor
            opening = [*sections.summary(run, own), Text(str(run.path))]
            each.append(Section(f"{one.name}, seed {run.seed}", opening, _of_run(run, own)))
    return Page(head.title, [head, *compared, *each])


def _no_table(methods: Sequence[str] | None, against: str | None, why: str) -> None:
    """ConfigError for an option of the comparison where the page has none."""
    for key, value in (("methods", methods and ", ".join(methods)), ("against", against)):
        if value is not None:
            raise ConfigError(key, value, f"does nothing: it is of the comparison of runs, and {why}", "drop it")


def _title(run: Run) -> str:
    document = run.document
    return f"{document['dataset']}: {document['model']}, {document['algorithm']}, residual {document['residual']}"


def _of_run(run: Run, metric: str) -> list[Section]:
    """The sections that the run has data for, in the order in which a reader asks."""
    found = [
        sections.funnel(run),
        sections.protocol(run),
        sections.results(run),
        sections.differences(run, metric),
        sections.closeness(run),
        sections.curves(run, metric),
        appendix.guard(run),
        timescales(run),
        sections.support(run, metric),
        appendix.slices(run, metric),
        appendix.tuning(run),
        appendix.costs(run),
        appendix.configuration(run),
        appendix.environment(run),
    ]
    return [one for one in found if one is not None]


def _compared(
    runs: Sequence[Run], defaults: Defaults, metric: str | None, methods: Sequence[str] | None, against: str | None
) -> tuple[Section, list[Section]]:
    """The head of a page of several runs, and the sections that put them side by side.

    Runs of different protocols are not paired: the page says why and shows each by itself.
    """
    errors: list[ConfigError] = refusals(runs)
    found = configurations(runs, defaults)
    between = appendix.between(found)
    datasets = list(dict.fromkeys(run.document["dataset"] for run in runs))
    if errors:
        _no_table(methods, against, "these runs have different protocols")
        head = Section(f"{len(runs)} runs on {', '.join(datasets)}", [
            Text(f"{len(runs)} runs of different protocols, so that no table can put them side by side.", "lead"),
            *[Text(f"Not compared: {error}", "warning") for error in errors],
        ])  # fmt: skip
        return head, [between] if between else []
    document = comparison(runs, defaults=defaults, metric=metric, methods=methods, against=against)
    seeds = sorted({run.seed for run in runs})
    of = f"{len(found)} configuration{'s' if len(found) > 1 else ''} (seeds {', '.join(map(str, seeds))})"
    whom = f"{document['users']:,} {document['protocol']['split']} {sections.people(runs[0])}"
    words = [f"{len(runs)} runs of {of} on {whom} and {document['targets']:,} targets, the same for all."]
    for entry in document["differences"][:TOLD]:
        mean = cells.share(entry["mean"], sign=True)
        words.append(f"{difference_name(entry, len(found) == 1).capitalize()}: {mean}, {entry['verdict']}.")
    blocks: list[Block] = [Text(" ".join(words), "lead")]
    if document["protocol"]["leaky"]:
        blocks.append(Text(sections.LEAKS, "warning"))
    return Section(title(document), blocks), [Section("Comparison", sheets(document)), *([between] if between else [])]


def _sheets(one: Section) -> Iterator[Sheet]:
    yield from (block for block in one.blocks if isinstance(block, Sheet))
    for below in one.sections:
        yield from _sheets(below)


def _markdown(one: Section, level: int) -> list[str]:
    lines = [f"{'#' * level} {markdown_text(one.title)}\n", *_lines(one.blocks)]
    for below in one.sections:
        lines += _markdown(below, level + 1)
    return lines


def _lines(blocks: Sequence[Block]) -> list[str]:
    """The blocks as Markdown; pictures are left out, listings fenced by more backticks than they hold."""
    out: list[str] = []
    for block in blocks:
        match block:
            case Sheet():
                out.append(markdown(block))
            case Text():
                text = markdown_text(block.text)
                out.append(f"**{text}**\n" if block.kind == "warning" else f"{text}\n")
            case Card():
                out.append("".join(f"- {markdown_text(name)}: {markdown_text(value)}\n" for name, value in block.pairs))
            case Listing():
                out.append("\n".join(f"    {line}" for line in block.text.splitlines()) + "\n")
            case Folded():
                out += [f"{markdown_text(block.summary)}\n", *_lines(block.blocks)]
    return out
