"""The tables of a run as rows of text, for the screen, Markdown and LaTeX alike.

Everything shown is read from the document that becomes metrics.json (see ``metrics.summary``), so table and file cannot
disagree; what an older one lacks has no column, or a dash (``report.measured``). Differences carry the words of their
interval only: better, worse, none (no difference shown).

Keys read beside those of ``metrics.summary.summarise``, each left out where absent: ``protocol``, ``k_curve`` (see
``metrics.curve``), ``amortised`` (``report.amortised``), ``slices`` (``metrics.slices``), ``reported``
(``report.reported``), and those of ``report.notes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from metarec.metrics import METRICS
from metarec.metrics.differences import subject
from metarec.report import amortised
from metarec.report.cells import heading
from metarec.report.labels import brief, ends, groups, labels_of, p_text, short
from metarec.report.measured import CLASSES, accuracy, classification, metrics_of

_SHOWN = {"better": "better", "worse": "worse"}
_SLICES = {"history_length": "events before the query", "target_popularity": "training events of the target"}
_LEARNED = (
    "in_context",
    "in_context_user",
    "control",
    "head_only",
    "scratch",
    "zeroshot",
    "inner_loop",
    "generated",
    "fewshot",
    "refined",
)  # may close a gap
Json = Mapping[str, Any]


class Cell(NamedTuple):
    figure: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """Groups of rows under headings; ``corner`` stands over the labels."""

    title: str
    corner: str
    headings: tuple[str, ...]
    groups: tuple[tuple[Row, ...], ...]


def headline_of(document: Json, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The at most two metrics that show their interval: those asked for, or those that the data is known by.

    Of images and text accuracy and MRR, whatever is asked for. What an older document lacks is left out.
    """
    if asked is not None and (len(asked) > 2 or not set(asked) <= set(METRICS)):
        raise ValueError(f"headline {asked}: at most two of {', '.join(METRICS)}")
    usual = ("hr@1", "hr@5") if "bayes_fewshot" in document["metrics"] else ("hr@10", "ndcg@10")
    wanted = CLASSES if accuracy(document) else usual if asked is None else asked
    there = metrics_of(document)
    return tuple(metric for metric in wanted if metric in there)


def headings_of(document: Json) -> dict[str, str]:
    """metric -> heading, for every metric that is shown."""
    return {metric: heading(metric, accuracy(document)).upper() for metric in metrics_of(document)}


def sheets(document: Json, *, title: str = "", headline: Sequence[str] | None = None) -> list[Sheet]:
    """Methods, then where there are any: differences, closeness to teachers, slices, curves over the support size."""
    shown = headline_of(document, headline)
    found = [_results(document, title, shown)]
    if document["differences"] and shown:
        found.append(_differences(document, shown))
    if columns := amortised.columns(document):
        body = tuple(
            Row(name, tuple(map(Cell, cells)), strong=name == "all modules") for name, cells in amortised.rows(document)
        )
        found.append(Sheet(amortised.TITLE, "module", columns, (body,)))
    found += [_slices(document, name, part, shown) for name, part in document.get("slices", {}).items() if part]
    if document.get("k_curve"):
        found += [_curve(document["k_curve"], metric) for metric in shown]
    if document.get("reported"):
        found.append(_reported(document["reported"], document["metrics"]))
    return found


def _reported(document: Json, measured: Json) -> Sheet:
    """Published figures, as they were printed, under the headings of those that were measured."""
    metrics = metrics_of({"metrics": measured})
    rows = tuple(
        Row(name, tuple(Cell(short(of[m]) if m in of else "") for m in metrics))
        for name, of in document["rows"].items()
    )
    return Sheet("reported by others, not measured here", "", tuple(map(heading, metrics)), (rows,))


def _results(document: Json, title: str, headline: Sequence[str]) -> Sheet:
    headings, labels = headings_of(document), labels_of(document["metrics"], classification(document))

    def row(method: str) -> Row:
        figures, intervals = document["metrics"][method], document["intervals"][method]
        cells = [
            Cell(short(figures.get(m)), ends(*(intervals.get(m) or (None, None))) if m in headline else "")
            for m in headings
        ]
        return Row(labels[method], tuple(cells), strong=method == "fewshot")

    parts = [tuple(row(method) for method in group) for group in groups(document["metrics"])]
    shares = [
        Row(f"share of gap: {brief(method)}", tuple(_share(entry[m], m in headline) for m in headings))
        for method, entry in document.get("share_of_gap", {}).items()
        if method in _LEARNED
    ]
    return Sheet(title, "", tuple(headings.values()), (*parts, *([tuple(shares)] if shares else [])))


def _share(entry: Json, interval: bool) -> Cell:
    """In per cent; no gap is a Bayes optimum that few-shot knowledge does not improve, or not beyond every draw."""
    if entry["share"] is None:
        return Cell("no gap")
    both = "[none]" if entry["low"] is None else f"[{100 * entry['low']:.0f},{100 * entry['high']:.0f}]"
    return Cell(f"{100 * entry['share']:.0f} %", both if interval else "")


def _differences(document: Json, headline: Sequence[str]) -> Sheet:
    """Gain with its interval, Holm's p and what the interval shows, of the headline metrics."""
    headings, own = headings_of(document), subject(document["metrics"])
    rows = []
    for name, entry in document["differences"].items():
        over = f"over {brief(entry['against'])}"
        cells = []
        for metric in headline:
            one = entry[metric]
            cells += [_gain(one), Cell(p_text(one["p_holm"])), Cell(_SHOWN.get(one["verdict"], "none"))]
        standard = over if entry["of"] == own else f"{brief(entry['of'])} {over}"
        rows.append(Row(standard, tuple(cells), strong=name == "gain_over_control"))
    columns = [text for metric in headline for text in (headings[metric], "Holm p", "shown")]
    return Sheet("", f"gain of {brief(own)}", tuple(columns), (tuple(rows),))


def _gain(entry: Json) -> Cell:
    return Cell(short(entry["mean"], 4, sign=True), ends(entry["low"], entry["high"], sign=True))


def _slices(document: Json, name: str, part: Sequence[Json], headline: Sequence[str]) -> Sheet:
    """Means of the run's subject and its gain, slice by slice."""
    headings, own = headings_of(document), subject(document["metrics"])
    gains = "gain" in part[0]
    columns = ["users", "targets"]
    for metric in headline:
        columns += [headings[metric], "gain"] if gains else [headings[metric]]
    rows = []
    for entry in part:
        cells = [Cell(f"{entry['users']:,}"), Cell(f"{entry['targets']:,}")]
        for metric in headline:
            cells.append(Cell(short(entry["metrics"][own][metric])))
            if gains:
                cells.append(_gain(entry["gain"][metric]))
        rows.append(Row(entry["label"], tuple(cells)))
    against = f", gain over {brief(part[0]['against'])}" if gains else ""
    return Sheet(f"{brief(own)} by {_SLICES[name]}{against}", "", tuple(columns), (tuple(rows),))


def _curve(document: Json, metric: str) -> Sheet:
    """A line for every method; of the subject also the ends of the interval and what support adds to none."""
    own, ks = subject(document["methods"]), document["ks"]
    labels = labels_of(document["methods"])
    parts = [
        tuple(
            Row(
                labels[method],
                tuple(Cell(short(at["mean"])) for at in document["methods"][method][metric]),
                method == own,
            )
            for method in group
        )
        for group in groups(document["methods"])
    ]
    if own in document["methods"]:
        entries = (
            ("", document["methods"][own][metric], False),
            (f", K over {ks[0]}", document["gain"][own][metric], True),
        )
        parts.append(
            tuple(
                Row(f"{brief(own)}{what}: {end}", tuple(_end(at[end], sign) for at in along))
                for what, along, sign in entries
                for end in (("low", "high") if not sign else ("mean", "low", "high"))
            )
        )  # fmt: skip
    title = f"{heading(metric)} by support pairs K; {document['users']:,} users, {document['targets']:,} targets"
    return Sheet(title, "K", tuple(str(k) for k in ks), tuple(parts))


def _end(value: float | None, sign: bool) -> Cell:
    return Cell("none" if value is None else short(value, 4, sign=sign))
