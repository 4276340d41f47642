"""The sections of one run that hold its results: what was asked, of whom, what came out, and how sure that is.

All is read from what the run has written (metrics.json, per_user.parquet, history.jsonl, funnel.json); a section without
data is None. Differences carry the words of their interval only (`metrics.intervals.verdict`).
"""

from __future__ import annotations

from typing import Any

from metarec.report import amortised, cells, figures
from metarec.report.blocks import Block, Card, Folded, Picture, Section, Text, section
from metarec.report.comparison_text import DIFFERENCE, HOW, POWER, brief, difference_cells
from metarec.report.finished import Run
from metarec.report.labels import groups, label
from metarec.report.measured import accuracy, drawn, lists_of, metrics_of, n_tested, tokens
from metarec.report.measured import classification as is_classification
from metarec.report.sheet import Cell, Sheet

Json = dict[str, Any]
LEAKS = "The split leaks: training sees events later than some targets, so the figures promise too much."


def summary(run: Run, metric: str) -> list[Text]:
    """One paragraph in plain words, and the warning of a leaky split."""
    document, protocol = run.document, run.document["protocol"]
    counts, name = document["counts"], cells.heading(metric, accuracy(document))
    best = "fewshot" if "fewshot" in run.methods else "zeroshot"
    what = f"{document['model']} ({document['algorithm']}, residual {document['residual']}, seed {run.seed})"
    whom = (
        f"{counts['users']:,} {protocol['split']} {people(run)} with {protocol['n_support']} support {_what(run)} each"
    )
    beside = f", the fine-tune control {_in_line(run, 'control', metric)}" if "control" in run.methods else ""
    words = [
        f"On {document['dataset']}, {what} was measured on {whom}: {counts['targets']:,} targets.",
        f"{brief(best).capitalize()} reaches {name} {_in_line(run, best, metric)}{beside}.",
    ]
    gain = next((d for d in document["differences"].values() if (d["of"], d["against"]) == (best, "control")), None)
    if gain is not None:
        entry = gain[metric]
        ends = cells.ends(entry["low"], entry["high"], sign=True)
        mean, p_holm = cells.share(entry["mean"], sign=True), cells.p_value(entry["p_holm"])
        words.append(
            f"{brief(best).capitalize()} minus control is {mean} {ends}: {entry['verdict']} (Holm p {p_holm})."
        )
        if entry.get("detectable") is not None:
            words.append(f"A true difference of {cells.share(entry['detectable'])} would be found with 80 % power.")
    return [Text(" ".join(words), "lead"), *([Text(LEAKS, "warning")] if protocol["leaky"] else [])]


def figure_of(part: Json, method: str, metric: str) -> tuple[str, str]:
    """A method's figure and interval in a part of a document that has `metrics` and `intervals`."""
    low, high = part["intervals"][method].get(metric) or (None, None)
    return cells.share(part["metrics"][method].get(metric)), cells.ends(low, high)


def _in_line(run: Run, method: str, metric: str) -> str:
    return " ".join(figure_of(run.document, method, metric)).strip()


def people(run: Run) -> str:
    """What is drawn: the users, the tasks of a classification, or the domains of text."""
    return drawn(run.document)


def _owners(run: Run) -> str:
    return "domains" if tokens(run.document) else "users"


def _what(run: Run) -> str:
    return "examples" if tokens(run.document) else "pairs"


def classification(run: Run) -> bool:
    """Whether it was of images: hr@1 is then called accuracy."""
    return is_classification(run.document)


def protocol(run: Run) -> Section | None:
    """The card of what was asked."""
    document, given = run.document, run.document["protocol"]
    counts, drawn = document["counts"], document["bootstrap"]
    note = f" ({given['split_note']})" if given.get("split_note") else ""
    pairs = [
        ("split", f"{given['split']}, {given['split_by']}{note}"),
        ("leaks through time", "LEAKY: training sees events later than some targets" if given["leaky"] else "no"),
        ("support and query pairs", f"K={given['n_support']}, Q={given['n_query']}"),
        ("ties", given["ties"]),
        ("candidates", given.get("candidates")),
        ("items", given.get("n_items")),
        ("longest prefix a model reads", given.get("max_len")),
        ("unknown targets", f"{cells.per_cent(counts['unknown_target_share'], 2)}, counted as misses"),
        ("repeat targets", cells.per_cent(counts.get("repeat_share"), 1)),
        ("sample", f"{counts['users']:,} {_owners(run)}, {counts['episodes']:,} episodes, {counts['targets']:,} targets"),
        ("seeds", ", ".join(f"{what} {seed}" for what, seed in document["seeds"].items())),
        ("intervals", f"{100 * drawn['confidence']:g} %, {drawn['n_resamples']:,} draws of {people(run)}"),
        ("episodes", str(given["episodes_sha256"])[:16]),
        ("vocabulary", str(given["vocabulary_sha256"])[:16] if given.get("vocabulary_sha256") else None),
        ("data", str(given["data_sha256"])[:16] if given.get("data_sha256") else None),
    ]  # fmt: skip
    known = [(name, cells.number(value)) for name, value in pairs if value not in (None, cells.NOTHING)]
    return section("Protocol", Card(known, frozenset({"leaks through time"} if given["leaky"] else ())))


def funnel(run: Run) -> Section | None:
    """What each step of the preparation kept, and what the splits hold."""
    found = run.json("funnel.json")
    if not found:
        return None
    columns = cells.funnel_columns(found["steps"])
    steps = [
        [str(step["step"]), *[cells.number(step.get(name)) for name in columns], str(step.get("why") or "")]
        for step in found["steps"]
    ]
    sheet = Sheet(
        "What each step kept", ["step", *columns, "why"], steps, frozenset({0, len(columns) + 1})
    ).without_empty()
    counts = found.get("counts") or {}
    named = dict.fromkeys(split for row in counts.values() for split in row)
    splits = [split for split in ("train", "val", "test") if split in named]
    splits += [split for split in named if split not in splits]
    rows = [
        [what.replace("_", " "), *[cells.number(row.get(split), 4) for split in splits]] for what, row in counts.items()
    ]
    return section("Funnel", sheet, Sheet("What the splits hold", ["", *splits], rows) if rows else None)


def results(run: Run) -> Section | None:
    """Every method and metric with its interval."""
    document, metrics = run.document, metrics_of(run.document)
    methods = [method for group in groups(document["metrics"]) for method in group]  # in the order of every table
    rows: list[list[Cell]] = [[label(method), *[figure_of(document, method, m) for m in metrics]] for method in methods]
    strong = frozenset(number for number, method in enumerate(methods) if method == "fewshot")
    confidence = 100 * document["bootstrap"]["confidence"]
    note = f"means over targets; {confidence:g} % intervals, {people(run)} drawn with all their targets"
    columns = ["method", *[cells.heading(m, accuracy(document)) for m in metrics]]
    sheet = Sheet(f"Results on the {document['protocol']['split']} split", columns, rows, strong=strong, notes=[note])
    return section("Results", sheet, _reported(document, metrics), _gap(document, metrics), _beyond(document))


def _reported(document: Json, metrics: tuple[str, ...]) -> Sheet | None:
    """What others have printed, where the run was asked to show it (`report.reported`)."""
    found = document.get("reported")
    if not found:
        return None
    rows: list[list[Cell]] = [
        [name, *[cells.share(of[m]) if m in of else "" for m in metrics]] for name, of in found["rows"].items()
    ]
    return Sheet(
        "Reported by others, not measured here", ["", *map(cells.heading, metrics)], rows, notes=[found["source"]]
    )


def _gap(document: Json, metrics: tuple[str, ...]) -> Sheet | None:
    """How much of the way to the exact optimum, where the law of the data is known."""
    shares = document.get("share_of_gap")
    if not shares:
        return None
    rows: list[list[Cell]] = []
    for method in (method for group in groups(shares) for method in group):
        found: list[Cell] = [label(method)]
        for metric in metrics:
            entry = shares[method][metric]
            ends = "" if entry["low"] is None else f"[{100 * entry['low']:.0f}, {100 * entry['high']:.0f}]"
            found.append(("no gap" if entry["share"] is None else cells.per_cent(entry["share"]), ends))
        rows.append(found)
    note = "0 % is the pretrained model without adaptation, 100 % the exact Bayes optimum of these episodes"
    return Sheet("Share of the gap to Bayes few-shot", ["method", *map(cells.heading, metrics)], rows, notes=[note])


def _beyond(document: Json) -> Sheet | None:
    names = lists_of(document)
    rows = [
        [label(m), *[cells.share(row.get(key), 3) for key in names]] for m, row in document.get("beyond", {}).items()
    ]
    return Sheet("Beyond accuracy", ["method", *names.values()], rows) if names else None


def differences(run: Run, metric: str) -> Section | None:
    """Paired differences in the monitored metric, the other metrics folded."""
    document = run.document
    found = document["differences"]
    if not found:
        return None
    metrics = metrics_of(document)
    notes = [f"paired over {_owners(run)}; " + HOW.format(count=len(found) * n_tested(document))]
    if any("detectable" in d[metric] for d in found.values()):
        notes.append(POWER)

    def sheet(name: str, notes: list[str]) -> Sheet:
        rows = [[f"{brief(d['of'])} minus {brief(d['against'])}", *difference_cells(d[name])] for d in found.values()]
        caption = f"Differences, {cells.heading(name, accuracy(document))}"
        return Sheet(caption, ["difference", *DIFFERENCE], rows, frozenset({0, 6}), notes=notes).without_empty()

    others = [sheet(name, []) for name in metrics if name != metric]
    return section("Differences", sheet(metric, notes), Folded("The other metrics", others), _spread(run, metric))


def _spread(run: Run, metric: str) -> Picture | None:
    """How few-shot's gain over the control is spread over users."""
    if not {"fewshot", "control"} <= set(run.methods):
        return None
    few, control = run.values("fewshot", metric), run.values("control", metric)
    return figures.gains(few, control, ("fewshot", "control"), metric, people(run))


def closeness(run: Run) -> Section | None:
    """What was generated beside what teachers have found for the same users."""
    columns = amortised.columns(run.document)
    if not columns:
        return None
    rows: list[list[Cell]] = [[name, *own] for name, own in amortised.rows(run.document)]
    strong = frozenset(number for number, row in enumerate(rows) if row[0] == "all modules")
    caption = amortised.TITLE.capitalize()
    sheet = Sheet(caption, ["module", *columns], rows, strong=strong, notes=amortised.lines(run.document))
    return section("Closeness to teachers", sheet)


def curves(run: Run, metric: str) -> Section | None:
    """Learning curves of meta-training and of pretraining, with gradients and step sizes."""
    kept = run.document.get("training", {}).get("best_step")
    supervised = run.document["algorithm"] == "supervised"
    name, clips = "training" if supervised else "meta-training", run.document["config"]
    own, first = (float(clips.get(key, {}).get("clip_norm", 0.0)) for key in ("optimizer", "pretrain"))
    pictures: list[Block] = [
        *figures.learning_curves(run.history(), metric, name, kept, first if supervised else own),
        *figures.learning_curves(run.history("pretrain_history.jsonl"), metric, "pretraining", None, first),
    ]
    return section("Learning curves", *pictures)


def support(run: Run, metric: str) -> Section | None:
    """The K-curve and the heat maps of step size by steps."""
    document = run.document
    blocks: list[Block | None] = []
    if document.get("k_curve"):
        blocks.append(figures.k_curve(document["k_curve"], metric))
    if found := document.get("grid"):
        split = "validation" if found["split"] == "val" else found["split"]
        where = f"on {found['users']:,} {split} {'episodes' if tokens(document) else 'users'}"
        for method, values in found["methods"].items():
            blocks.append(figures.grid(method, found["lrs"], found["steps"], values, found["metric"], where))
    return section("Support pairs, step size and steps", *blocks)
