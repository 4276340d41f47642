"""The tables of a run, at most 100 columns wide: results with their differences, and the funnel of the preparation.

Everything shown is read from the document that becomes metrics.json (see ``metrics.summary``), so table and file cannot
disagree. Differences carry the words of their interval only: better, worse, no difference shown.

Keys read beside those of ``metrics.summary.summarise``, each left out of the table where absent:
    protocol  {split, split_by, leaky, split_note, n_support, n_query, ties, classification}
    control   {lr, steps}           of the fine-tune control, as tuned on validation
    beyond    {<method>: {"coverage@10", "popularity_percentile@10"}}
    seeds     {<what>: int}, such as {"run": 1, "split": 20260107}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

WIDTH = 100
METRICS = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")
HEADLINE = ("hr@10", "ndcg@10")  # the two columns that show their interval
CLASSES = {"hr@1": "ACCURACY", "mrr": "MRR"}  # all that is shown of a classification: few classes, one right
LABELS = {
    "bayes_zeroshot": "Bayes zero-shot",
    "bayes_fewshot": "Bayes few-shot",
    "pretrained": "pretrained, zero-shot",
    "zeroshot": "zero-shot (meta)",
    "control": "fine-tune control",
    "fewshot": "few-shot (meta)",
}
_STYLES = {"fewshot": "bold"}
_DIFFERENCES = {
    "gain_over_control": "gain over control",
    "gain_over_zeroshot": "gain over zero-shot",
    "gain_over_pretrained": "gain over pretrained",
    "control_over_pretrained": "control over pretrained",
}
Json = Mapping[str, Any]


def results_table(
    document: Json, *, title: str = "", headline: Sequence[str] = HEADLINE, labels: Mapping[str, str] = LABELS
) -> RenderableType:
    """Methods, differences and shares of the gap, with the conditions they were measured under beneath.

    Of a classification (``protocol.classification``) accuracy and MRR are shown, whatever ``headline`` says.
    """
    if len(headline) > 2 or not set(headline) <= set(METRICS):
        raise ValueError(f"headline {headline}: at most two of {METRICS}")
    if document.get("protocol", {}).get("classification"):
        return _Results(document, title, tuple(CLASSES), {**labels, "pretrained": "random weights"}, CLASSES)
    return _Results(document, title, tuple(headline), labels, {metric: metric.upper() for metric in METRICS})


class _Results:
    """Laid out when printed, for the width there is: on less than 94 columns an interval stands under its figure."""

    def __init__(
        self,
        document: Json,
        title: str,
        headline: tuple[str, ...],
        labels: Mapping[str, str],
        columns: Mapping[str, str],
    ) -> None:
        self.document, self.title, self.headline, self.labels = document, title, headline, labels
        self.columns = columns  # metric -> heading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(" " if options.max_width >= 94 else "\n")
        yield from _verdicts(self.document, self.headline, self.columns)
        yield from _footer(self.document, self.headline, self.labels)

    def _table(self, gap: str) -> Table:
        document, labels = self.document, self.labels
        table = _frame(self.title, padding=0)
        table.add_column("", min_width=22, max_width=24)
        for heading in self.columns.values():
            table.add_column(heading, justify="right", no_wrap=True, min_width=6)

        for method, row in document["metrics"].items():
            cells = [_value(row[m], document["intervals"][method][m]) for m in self.columns]
            table.add_row(labels.get(method, method), *self._cells(cells, gap), style=_STYLES.get(method))
        table.add_section()
        for name, row in document["differences"].items():
            cells = [_gain(row[m]) for m in self.columns]
            table.add_row(_DIFFERENCES.get(name, name.replace("_", " ")), *self._cells(cells, gap))
        if document.get("share_of_gap"):
            table.add_section()
            for method, row in document["share_of_gap"].items():
                cells = [_share(row[m]) for m in self.columns]
                table.add_row(f"share of gap: {_brief(method, labels)}", *self._cells(cells, gap))
        return table

    def _cells(self, cells: Sequence[tuple[str, str]], gap: str) -> list[Text]:
        """Figure and interval joined in the headline columns, the figure alone in the others."""
        return [
            Text(f"{figure}{gap}{interval}" if metric in self.headline and interval else figure)
            for metric, (figure, interval) in zip(self.columns, cells, strict=True)
        ]


def funnel_table(
    steps: Sequence[Json], counts: Mapping[str, Mapping[str, float]] | None = None, *, title: str = "Preparation"
) -> RenderableType:
    """What every step of the preparation kept and dropped; ``counts`` {what: {split: number}} go beneath, as a block.

    A step is {"step", "rows", "users", "items", "sessions", "dropped", "why"}; a count may be None (not counted yet).
    """
    table = _frame(title)
    table.add_column("step", no_wrap=False, max_width=24)
    for name in ("rows", "users", "items", "sessions", "dropped"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", max_width=28)
    for step in steps:
        numbers = [_number(step.get(name)) for name in ("rows", "users", "items", "sessions", "dropped")]
        table.add_row(str(step["step"]), *numbers, str(step.get("why") or ""))
    if not counts:
        return table
    splits = list(dict.fromkeys(split for row in counts.values() for split in row))
    below = _frame("")
    below.add_column("", no_wrap=True)
    for split in splits:
        below.add_column(split, justify="right", no_wrap=True)
    for what, row in counts.items():
        below.add_row(what.replace("_", " "), *[_number(row.get(split)) for split in splits])
    return Group(table, below)


def show(renderable: RenderableType, stream: IO[str] | None = None) -> None:
    """Print to ``stream`` (standard output by default): colours on a terminal, plain text of 100 columns elsewhere."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, width=WIDTH, color_system=None)
    console.print(renderable, width=min(WIDTH, console.width))


def plain_text(renderable: RenderableType) -> str:
    """The same as text without any control character, for log files and READMEs."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False, highlight=False, record=False)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _frame(title: str, padding: int = 1) -> Table:
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0),
        show_edge=False, pad_edge=False,
    )  # fmt: skip


def _short(value: float, digits: int, sign: bool = False) -> str:
    """.4053 for 0.4053 and 1.000 for 1: the leading zero of a share is dropped, so that columns stay narrow."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def _value(value: float, ends: Sequence[float] | None) -> tuple[str, str]:
    return _short(value, 4), "[none]" if ends is None else f"[{_short(ends[0], 3)},{_short(ends[1], 3)}]"


def _gain(entry: Json) -> tuple[str, str]:
    low, high = entry["low"], entry["high"]
    interval = "[none]" if low is None else f"[{_short(low, 3, sign=True)},{_short(high, 3, sign=True)}]"
    return _short(entry["mean"], 4, sign=True), interval


def _share(entry: Json) -> tuple[str, str]:
    """In per cent; no gap is a Bayes optimum that few-shot knowledge does not improve, or not beyond every draw."""
    if entry["share"] is None:
        return "no gap", ""
    interval = "[none]" if entry["low"] is None else f"[{100 * entry['low']:.0f},{100 * entry['high']:.0f}]"
    return f"{100 * entry['share']:.0f} %", interval


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else _short(value, 3)


def _brief(method: str, labels: Mapping[str, str]) -> str:
    """The label for a running line: "control", "few-shot"."""
    return "control" if method == "control" else labels.get(method, method).split(" (")[0]


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _verdicts(document: Json, headline: Sequence[str], columns: Mapping[str, str]) -> list[Text]:
    lines = []
    for name, row in document["differences"].items():
        words = [
            f"{columns[m]} {row[m]['verdict']} (p {_p(row[m]['p_value'])}, Holm {_p(row[m]['p_holm'])})"
            for m in headline
        ]
        lines.append(Text(f"{_DIFFERENCES.get(name, name.replace('_', ' '))}: {'; '.join(words)}"))
    return lines


def _footer(document: Json, headline: Sequence[str], labels: Mapping[str, str]) -> list[Text]:
    counts, bootstrap = document["counts"], document["bootstrap"]
    classes = document.get("protocol", {}).get("classification", False)
    what = "tasks" if classes else "users"
    interval = (
        f"[low,high]: {100 * bootstrap['confidence']:g} % interval of the mean over targets, "
        f"{bootstrap['n_resamples']:,} bootstrap draws of {what}"
    )
    if classes:
        lines = [f"{counts['episodes']:,} tasks, {counts['targets']:,} targets", interval, *_conditions(document)]
        return [Text(line, style="dim") for line in lines]
    lines = [
        f"{counts['users']:,} users, {counts['episodes']:,} episodes, {counts['targets']:,} targets; "
        f"unknown targets {100 * counts['unknown_target_share']:.2f} % (misses)",
        interval,
    ]
    lines += [_split_line(name, document[name], headline, labels) for name in ("repeat", "novel")]
    lines += _macro(document, headline, labels)
    beyond = document.get("beyond", {})
    for key, what in (
        ("coverage@10", "coverage@10"),
        ("popularity_percentile@10", "popularity percentile of the top 10"),
    ):
        shown = [f"{_brief(method, labels)} {_short(row[key], 3)}" for method, row in beyond.items()]
        if shown:
            lines.append(f"{what}: {', '.join(shown)}")
    lines += _conditions(document)
    return [Text(line, style="bold red" if line.startswith("LEAKY") else "dim") for line in lines]


def _conditions(document: Json) -> list[str]:
    lines = []
    protocol = document.get("protocol")
    if protocol:
        lines.append(
            f"split {protocol['split']} of {protocol['split_by']}; K={protocol['n_support']}, Q={protocol['n_query']}; "
            f"ties {protocol['ties']}" + (f"; {protocol['split_note']}" if protocol.get("split_note") else "")
        )
        if protocol["leaky"]:
            lines.append("LEAKY: this split lets training see events later than some targets")
    if document.get("control"):
        control = document["control"]
        lines.append(f"fine-tune control tuned on validation: step size {control['lr']:g}, {control['steps']} steps")
    if document.get("seeds"):
        lines.append("seeds: " + ", ".join(f"{what} {seed}" for what, seed in document["seeds"].items()))
    return lines


def _split_line(name: str, part: Json, headline: Sequence[str], labels: Mapping[str, str]) -> str:
    what = f"{name} targets: {part['targets']:,} ({part['users']:,} users)"
    methods = [method for method in ("zeroshot", "control", "fewshot") if method in part["metrics"]]
    shown = [
        f"{_brief(method, labels)} " + "/".join(_short(part["metrics"][method][metric], 4) for metric in headline)
        for method in methods
    ]
    return f"{what}; {'/'.join(m.upper() for m in headline)}: {', '.join(shown)}" if shown else what


def _macro(document: Json, headline: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    shown = [
        f"{_brief(method, labels)} "
        + "/".join(_short(document["macro"][method][metric]["mean"], 4) for metric in headline)
        for method in ("zeroshot", "control", "fewshot")
        if method in document["macro"]
    ]
    return [f"user-level means; {'/'.join(m.upper() for m in headline)}: {', '.join(shown)}"] if shown else []
