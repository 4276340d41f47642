"""From the runs of a comparison to its table: one row an algorithm, over all seeds.

    s/step         median over seeds of the mean time of an outer step (validations left out)
    memory         largest over seeds: the process's peak, and what training added to what stood there before
    zero, few      mean over targets and seeds of the monitored metric, before and after adaptation
    interval       95 %: users (tasks) are drawn, every seed's figures of a drawn user with him (cluster bootstrap)
    sd tasks       standard deviation over users of the mean over seeds and targets;  sd seeds: of the runs' figures
    gain           few-shot minus the same user's fine-tune control of the same run, and minus the first algorithm's

Differences are paired over users; p-values are Holm-corrected over the table (`metrics.intervals`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from metarec.metrics.intervals import Difference, holm, paired_difference, verdict

Json = dict[str, Any]
MB = 1024.0**2


def comparison(found: Mapping[str, tuple[Json, Path]], failures: Mapping[str, str], config: Json) -> Json:
    """The document of comparison.json from each run's metrics.json and directory."""
    monitor = config["evaluation"]["monitor"]
    bootstrap, confidence = config["evaluation"]["bootstrap"], config["evaluation"]["confidence"]
    by_algorithm: dict[str, list[tuple[Json, Path]]] = {}
    for run, directory in found.values():
        by_algorithm.setdefault(run["algorithm"], []).append((run, directory))
    rows, differences = list[Json](), list[tuple[str, str, Difference]]()
    first: np.ndarray | None = None
    for name, runs in by_algorithm.items():
        tables = [pq.read_table(directory / "per_user.parquet") for _, directory in runs]
        few, control = (
            np.mean([_column(table, method, monitor) for table in tables], 0) for method in ("fewshot", "control")
        )
        users = np.arange(len(few))
        of_seeds = [run["metrics"]["fewshot"][monitor] for run, _ in runs]
        options = {"n_resamples": bootstrap, "confidence": confidence, "seed": 0}
        whole = paired_difference(few, np.zeros_like(few), users, **options)
        row = {
            "algorithm": name,
            "seeds": [run["seeds"]["run"] for run, _ in runs],
            "steps": [run["training"]["steps"] for run, _ in runs],
            "seconds_per_step": _median(run["cost"]["seconds_per_step"] for run, _ in runs),
            "seconds": _median(run["cost"]["seconds"] for run, _ in runs),
            "total_seconds": _median(run["seconds"]["total"] for run, _ in runs),
            "peak_bytes": _largest(run["cost"]["peak_bytes"] for run, _ in runs),
            "growth_bytes": _largest(run["cost"]["growth_bytes"] for run, _ in runs),
            "loss": _median(run["cost"]["loss"] for run, _ in runs),
            "zeroshot": float(np.mean([run["metrics"]["zeroshot"][monitor] for run, _ in runs])),
            "fewshot": float(np.mean(of_seeds)),
            "low": _or_none(whole.low),
            "high": _or_none(whole.high),
            "sd_tasks": float(np.std(few, ddof=1)) if len(few) > 1 else None,
            "sd_seeds": float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else None,
            "n_users": len(few),
        }
        if "share_of_gap" in runs[0][0] and runs[0][0]["share_of_gap"]:
            shares = [run["share_of_gap"]["fewshot"][monitor]["share"] for run, _ in runs]
            row["share_of_gap"] = float(np.mean(shares)) if all(s is not None for s in shares) else None
        rows.append(row)
        differences.append((name, "control", paired_difference(few, control, users, **options)))
        if first is None:
            first = few
        else:
            differences.append((name, rows[0]["algorithm"], paired_difference(few, first, users, **options)))
    corrected = holm([difference.p_value for _, _, difference in differences])
    return {
        "monitor": monitor,
        "dataset": next(iter(found.values()))[0]["dataset"],
        "model": next(iter(found.values()))[0]["model"],
        "residual": next(iter(found.values()))[0]["residual"],
        "classification": bool(next(iter(found.values()))[0].get("protocol", {}).get("classification", False)),
        "rows": rows,
        "differences": [
            {
                "of": of, "against": against, "mean": d.mean, "low": _or_none(d.low), "high": _or_none(d.high),
                "p_value": d.p_value, "p_holm": float(p), "verdict": verdict(d.low, d.high),
            }
            for (of, against, d), p in zip(differences, corrected, strict=True)
        ],
        "failures": dict(failures),
        "pretrained": _mean_metric(found, "pretrained", monitor),
        "control": _mean_metric(found, "control", monitor),
        "bayes_fewshot": _mean_metric(found, "bayes_fewshot", monitor),
        "environment": _environment(next(iter(found.values()))[1]),
        "config": config,
    }  # fmt: skip


def _column(table: Any, method: str, metric: str) -> np.ndarray:
    return np.asarray(table.column(f"{method}.{metric}").to_numpy(), dtype=np.float64)


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _largest(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean_metric(found: Mapping[str, tuple[Json, Path]], method: str, metric: str) -> float | None:
    values = [run["metrics"][method][metric] for run, _ in found.values() if method in run["metrics"]]
    return float(np.mean(values)) if values else None


def _environment(directory: Path) -> Json:
    known: Json = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    return known


HEADINGS = ("algorithm", "s a step", "total s", "peak MB", "added MB", "loss", "zero", "few", "interval", "sd tasks",
            "sd seeds", "steps", "seeds")  # fmt: skip


def _cells(row: Json) -> list[str]:
    interval = "-" if row["low"] is None else f"[{_short(row['low'], 3)},{_short(row['high'], 3)}]"
    return [
        row["algorithm"],
        _number(row["seconds_per_step"], 3),
        _number(row["total_seconds"], 1),
        _number(None if row["peak_bytes"] is None else row["peak_bytes"] / MB, 0),
        _number(None if row["growth_bytes"] is None else row["growth_bytes"] / MB, 0),
        _number(row["loss"], 3),
        _short(row["zeroshot"], 4),
        _short(row["fewshot"], 4),
        interval,
        "-" if row["sd_tasks"] is None else _short(row["sd_tasks"], 3),
        "-" if row["sd_seeds"] is None else _short(row["sd_seeds"], 4),
        "/".join(str(steps) for steps in dict.fromkeys(row["steps"])),
        str(len(row["seeds"])),
    ]


def _short(value: float, digits: int) -> str:
    """.4053 for 0.4053: the leading zero of a share is dropped, so that columns stay narrow."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def comparison_table(document: Json) -> RenderableType:
    """For a person: the table, then the differences and the conditions."""
    table = Table(
        title=_title(document), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for heading in HEADINGS:
        table.add_column(
            heading.replace(" ", "\n", 1), justify="left" if heading == "algorithm" else "right", no_wrap=True
        )
    for row in document["rows"]:
        table.add_row(*_cells(row))
    return Group(table, *[Text(line) for line in _lines(document)])


def _title(document: Json) -> str:
    metric = "accuracy" if document["classification"] and document["monitor"] == "hr@1" else document["monitor"].upper()
    return f"{document['dataset']}: {document['model']}, residual {document['residual']}, {metric}"


def _lines(document: Json) -> list[str]:
    lines = []
    for entry in document["differences"]:
        ends = "" if entry["low"] is None else f" [{entry['low']:+.4f}, {entry['high']:+.4f}]"
        lines.append(
            f"{entry['of']} minus {entry['against']}: {entry['mean']:+.4f}{ends}, {entry['verdict']} "
            f"(p {entry['p_value']:.3f}, Holm {entry['p_holm']:.3f})"
        )
    beside = [(key, document[key]) for key in ("pretrained", "control", "bayes_fewshot") if document[key] is not None]
    if beside:
        lines.append("beside: " + ", ".join(f"{key} {value:.4f}" for key, value in beside))
    shares = [
        (row["algorithm"], row["share_of_gap"]) for row in document["rows"] if row.get("share_of_gap") is not None
    ]
    if shares:
        lines.append("share of the gap to Bayes few-shot: " + ", ".join(f"{n} {100 * s:.0f} %" for n, s in shares))
    lines += [f"{name} failed: {reason}" for name, reason in document["failures"].items()]
    who = "tasks" if document["classification"] else "users"
    confidence = 100 * document["config"]["evaluation"]["confidence"]
    lines.append(
        f"{document['rows'][0]['n_users']:,} test {who}; interval: {confidence:g} %, {who} drawn with all their seeds; "
        "added MB: over what stood in memory before meta-training"
    )
    return lines


def markdown(document: Json) -> str:
    """The same as a page."""
    head = f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}\n"
    body = "".join(f"| {' | '.join(_cells(row))} |\n" for row in document["rows"])
    return f"## {_title(document)}\n\n{head}{body}\n" + "".join(f"- {line}\n" for line in _lines(document))
