"""The sections of one run that stand behind its results: slices, tuning, cost, configuration, environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarec.options import flat
from metarec.report import cells, figures
from metarec.report.blocks import Block, Folded, Listing, Section, section
from metarec.report.comparison_text import MB
from metarec.report.configurations import Configuration
from metarec.report.finished import Run
from metarec.report.labels import label
from metarec.report.measured import accuracy
from metarec.report.sections import figure_of
from metarec.report.sheet import Cell, Sheet

Json = dict[str, Any]
SLICES = {
    "history_length": "By length of the history",
    "target_popularity": "By popularity of the target",
}
SLICED = ("pretrained", "control", "zeroshot", "fewshot")  # columns of a slice table, those that were measured


def slices(run: Run, metric: str) -> Section | None:
    """The monitored metric of parts of the targets, with few-shot's gain in each."""
    found = run.document.get("slices") or {}
    sheets = [_slice(SLICES.get(name, name.replace("_", " ")), parts, metric, run) for name, parts in found.items()]
    return section("Slices", *sheets, _repeats(run, metric))


def _slice(title: str, found: Sequence[Json], metric: str, run: Run) -> Sheet | None:
    if not found:
        return None
    methods = [m for m in SLICED if any(m in part["metrics"] for part in found)]
    rows: list[list[Cell]] = []
    for part in found:
        gain = (part.get("gain") or {}).get(metric) or {}
        rows.append([
            part["label"], cells.number(part["users"]), cells.number(part["targets"]),
            *[cells.share(part["metrics"].get(m, {}).get(metric)) for m in methods],
            (cells.share(gain.get("mean"), sign=True), cells.ends(gain.get("low"), gain.get("high"), sign=True)),
        ])  # fmt: skip
    against = "control" if "control" in methods else "zero-shot"
    columns = ["slice", "users", "targets", *map(label, methods), f"few-shot minus {against}"]
    return Sheet(f"{title}, {cells.heading(metric, accuracy(run.document))}", columns, rows).without_empty()


def _repeats(run: Run, metric: str) -> Sheet | None:
    """Targets that stand in the prefix or support already, and the others."""
    document = run.document
    parts = {"already in prefix or support": document.get("repeat"), "new to the user": document.get("novel")}
    known = {name: part for name, part in parts.items() if part and part["metrics"]}
    methods = [m for m in document["metrics"] if all(m in part["metrics"] for part in known.values())]
    if not known or accuracy(run.document) is not None:
        return None
    rows: list[list[Cell]] = [
        [
            name,
            cells.number(part["users"]),
            cells.number(part["targets"]),
            *[figure_of(part, m, metric) for m in methods],
        ]
        for name, part in known.items()
    ]
    columns = ["targets", "users", "number", *map(label, methods)]
    return Sheet(f"Repeat and novel targets, {cells.heading(metric)}", columns, rows)


GUARDED = {"events.jsonl": "training", "pretrain_events.jsonl": "pretraining"}
EVENTS = 50  # rows of a table of events; the file has all


def guard(run: Run) -> Section | None:
    """Every event of the guard, a table for each loop that had any."""
    sheets = []
    for name, loop in GUARDED.items():
        events = run.history(name)
        rows: list[list[Cell]] = [
            [
                str(event["step"]), event["kind"].replace("_", " "), cells.plain(event["value"]),
                cells.plain(event["threshold"]) if event["threshold"] is not None else "", event["action"],
                f"step {event['to']}" if "to" in event else "", cells.plain(event["rate"]) if "rate" in event else "",
            ]
            for event in events[:EVENTS]
        ]  # fmt: skip
        notes = [f"the first {EVENTS} of {len(events):,}: all stand in {name}"] if len(events) > EVENTS else []
        columns = ["step", "what", "found", "allowed", "action", "back to", "rate then"]
        if rows:
            sheets.append(Sheet(f"Guard, {loop}", columns, rows, frozenset({0, 1, 4, 5}), notes=notes).without_empty())
    return section("Guard", *sheets)


def tuning(run: Run) -> Section | None:
    """What each row was tuned over on validation, and what was chosen: equal budgets are seen, or not."""
    document = run.document
    found = dict(document.get("tuning") or {})
    if not found and document.get("control") and document.get("control_grid"):
        control, grid = document["control"], document["control_grid"]
        metric = next(key for key in grid[0] if key not in ("lr", "steps"))
        chosen = {key: control[key] for key in ("lr", "steps")}
        found = {"control": {"chosen": chosen, "value": control["value"], "metric": metric, "tried": grid}}
    if not found:
        return None
    rows: list[list[Cell]] = []
    for method, row in found.items():
        rows.append([
            label(method),
            "; ".join(f"{key} {cells.plain(value)}" for key, value in row["chosen"].items()),
            f"{cells.heading(row['metric'])} {cells.share(row['value'])}",
            cells.number(row.get("users")),
            cells.number(len(row["tried"])),
            _tuned_over(row),
        ])  # fmt: skip
    columns = ["method", "chosen", "on validation", "users", "settings tried", "tuned over"]
    note = "settings tried: those that gave a figure; one that diverges is out"
    pictures: list[Block | None] = []
    if not document.get("grid"):
        pictures = [_grid(method, row) for method, row in found.items()]
    sheet = Sheet("What each row was tuned over", columns, rows, frozenset({0, 1, 5}), notes=[note])
    return section("Tuning", sheet.without_empty(), *pictures)


def _tuned_over(row: Json) -> str:
    """lr [0.1,0.3]; steps [1,3]: the values of every option that were tried."""
    values: dict[str, dict[Any, None]] = {}
    for one in row["tried"]:
        for key, value in one.items():
            if key != row["metric"]:
                values.setdefault(key, {})[value] = None
    return "; ".join(f"{key} {cells.plain(list(tried))}" for key, tried in values.items())


def _grid(method: str, row: Json) -> Block | None:
    """A heat map of what was tried, where that was step sizes by steps."""
    tried = row["tried"]
    if not tried or any(not {"lr", "steps"} <= set(one) for one in tried) or len(tried[0]) != 3:
        return None
    lrs, steps = sorted({one["lr"] for one in tried}), sorted({one["steps"] for one in tried})
    if len(lrs) < 2 or len(steps) < 2:
        return None
    value = {(one["lr"], one["steps"]): one.get(row["metric"]) for one in tried}
    table = [[value.get((lr, count)) for count in steps] for lr in lrs]
    return figures.grid(method, lrs, steps, table, row["metric"], "on validation")


def costs(run: Run) -> Section | None:
    """Time and memory of the run, and of adapting to one user."""
    document = run.document
    cost, seconds, latency = document.get("cost") or {}, document.get("seconds") or {}, document.get("latency") or {}
    memory = {key: cost[key] / MB for key in ("peak_bytes", "growth_bytes") if cost.get(key) is not None}
    pairs = [
        ("seconds a step", cells.number(cost.get("seconds_per_step"), 4)),
        ("meta-training, seconds", cells.number(cost.get("seconds"), 1)),
        ("whole run, seconds", cells.number(seconds.get("total"), 1)),
        ("peak memory, MB", cells.number(memory.get("peak_bytes"), 0)),
        ("added by training, MB", cells.number(memory.get("growth_bytes"), 0)),
        ("numbers kept for a user", cells.number(cost.get("adapted_numbers"))),
        ("bytes kept for a user", cells.number(cost.get("adapted_bytes"))),
    ]
    trained = [[name, value] for name, value in pairs if value != cells.NOTHING]
    served = [[key.replace("_", " "), cells.number(value, 5)] for key, value in latency.items() if value is not None]
    return section(
        "Cost",
        Sheet("Training", ["what", "figure"], trained) if trained else None,
        Sheet("Latency: few-shot adaptation and scoring of one user", ["what", "figure"], served) if served else None,
    )


def configuration(run: Run) -> Section | None:
    """Every option with its value, folded."""
    lines = [f"{key}: {cells.plain(value)}" for key, value in flat(run.config).items()]
    typed = run.json("overrides.json")
    words = [Listing(" ".join(map(str, typed)))] if typed else []
    folded = Folded(f"All {len(lines)} options", [Listing("\n".join(lines))])
    return section("Configuration", *[Folded("What was typed", words)] if words else [], folded)


def environment(run: Run) -> Section | None:
    """What the run was made with and on."""
    found = run.json("environment.json")
    if not found:
        return None
    known = {key: value for key, value in flat(found).items() if value not in (None, [], "")}
    rows = [
        [key, " ".join(map(str, value)) if key == "command" else cells.plain(value)] for key, value in known.items()
    ]
    sheet = Sheet("Environment", ["what", "value"], rows, frozenset({0, 1}))
    return section("Environment", Folded("Versions and machine", [sheet]))


def between(found: Sequence[Configuration]) -> Section | None:
    """The options in which several configurations differ."""
    keys = list(dict.fromkeys(key for one in found for key in one.differs))
    if len(found) < 2 or not keys:
        return None
    rows = [
        [key, *[cells.plain(one.differs[key]) if key in one.differs else cells.NOTHING for one in found]]
        for key in keys
    ]
    columns = ["option", *[one.name for one in found]]
    words = frozenset(range(len(columns)))
    notes = ["-: the configuration has no such option"]
    return section("What the configurations differ in", Sheet("Options that differ", columns, rows, words, notes=notes))
