"""How the cells of a survey trained, and what a user costs in each: losses, the guard, time, numbers, memory.

    smoothed[i] = mean of loss[i : i + w],   w = a twentieth of the records, at least 5
    late / lowest = smoothed[last] / min over i of smoothed[i]     1 = the end is the lowest, 1.5 = half as much again

One run is one figure; of several seeds all are shown, for a mean would hide the one that broke away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarec.report import cells, figures
from metarec.report.blocks import Picture
from metarec.report.finished import Array, Run
from metarec.report.sheet import Cell, Sheet

Json = dict[str, Any]
Names = tuple[str, str]  # residual, algorithm
SHARE, LEAST = 0.05, 5  # of the records, in a window


def smoothed(losses: Sequence[float]) -> Array:
    """Running means [n - w + 1] of losses [n], n >= 1."""
    width = min(len(losses), max(LEAST, round(SHARE * len(losses))))
    return np.convolve(losses, np.full(width, 1 / width), mode="valid")


def late_over_lowest(losses: Sequence[float]) -> float | None:
    """How far the smoothed loss [n] has risen above its lowest by the end; None of too few records to tell."""
    if len(losses) < 2 * LEAST:
        return None
    means = smoothed(losses)
    return float(means[-1] / means.min())


def losses_of(run: Run) -> tuple[list[int], list[float]]:
    """Steps [n] and meta-losses [n] of the records of training."""
    records = [one for one in run.history() if one["kind"] == "train" and "loss" in one]
    return [int(one["step"]) for one in records], [float(one["loss"]) for one in records]


def of_run(run: Run) -> Json:
    """What one run says of its training; null where it has not measured something."""
    _, losses = losses_of(run)
    document: Json = run.document
    cost, latency = document.get("cost") or {}, document.get("latency") or {}
    guard = (document.get("guard") or {}).get("training")
    means = smoothed(losses) if losses else np.zeros(0)
    return {
        "seed": run.seed,
        "records": len(losses),
        "first": float(means[0]) if len(means) else None,
        "lowest": float(means.min()) if len(means) else None,
        "late": float(means[-1]) if len(means) else None,
        "late_over_lowest": late_over_lowest(losses),
        "steps": document["training"]["steps"],
        "guard": guard,
        "seconds_per_step": cost.get("seconds_per_step"),
        "adapted_numbers": cost.get("adapted_numbers"),
        "single_seconds_per_user": latency.get("single_seconds_per_user"),
        "batched_seconds_per_user": latency.get("batched_seconds_per_user"),
        "divergence": (document.get("divergence") or {}).get("fewshot"),
    }


def training_rows(found: Sequence[tuple[Names, Sequence[Run]]]) -> list[Json]:
    """A row for each cell, with what each of its seeds says."""
    return [
        {"residual": names[0], "algorithm": names[1], "runs": [of_run(run) for run in runs]} for names, runs in found
    ]


def training_sheet(rows: Sequence[Json], block: str) -> Sheet | None:
    """The rows as a table; None where no cell has trained anything."""
    if not any(run["records"] for row in rows for run in row["runs"]):
        return None
    body = [_row(row) for row in rows]
    columns = [
        "cell", "loss at first", "lowest", "late", "late / lowest", "guard", "KL to pretrained", "cross-entropy",
        "numbers a user", "ms a user alone", "ms a user in a batch", "ms a meta-step",
    ]  # fmt: skip
    notes = [
        "losses: running means over a twentieth of the records, each seed apart; the other columns are means over seeds",
        "KL and cross-entropy of the adapted model, nats a target on the measured episodes",
        "times are those of this machine, beside whatever else ran on it",
    ]
    return Sheet(f"Training, {block}", columns, body, frozenset({0, 5}), notes=notes).without_empty()


def _row(row: Json) -> list[Cell]:
    runs = row["runs"]

    def mean(key: str, scale: float = 1.0, digits: int = 3) -> str:
        known = [run[key] for run in runs if run[key] is not None]
        return f"{scale * float(np.mean(known)):.{digits}g}" if known else cells.NOTHING

    def of_divergence(key: str) -> str:
        known = [run["divergence"][key] for run in runs if run["divergence"]]
        return f"{np.mean(known):.4f}" if known else cells.NOTHING

    def each(key: str) -> str:
        return " ".join(cells.NOTHING if run[key] is None else f"{run[key]:.3f}" for run in runs)

    numbers = next((run["adapted_numbers"] for run in runs if run["adapted_numbers"] is not None), None)
    return [
        f"{row['algorithm']}, {row['residual']}", each("first"), each("lowest"), each("late"), each("late_over_lowest"),
        _guard([run["guard"] for run in runs]), of_divergence("kl"), of_divergence("cross_entropy"),
        cells.NOTHING if numbers is None else f"{numbers:,}",
        mean("single_seconds_per_user", 1000), mean("batched_seconds_per_user", 1000), mean("seconds_per_step", 1000),
    ]  # fmt: skip


def _guard(found: Sequence[Mapping[str, Any] | None]) -> str:
    """Events by kind and action, over all seeds; "none" where it watched and saw nothing."""
    watched = [one for one in found if one is not None]
    if not watched:
        return cells.NOTHING
    words = [
        f"{sum(one[group][name] for one in watched)} {name.replace('_', ' ')}"
        for group in ("kinds", "actions")
        for name in watched[0][group]
        if any(one[group][name] for one in watched)
    ]
    return ", ".join(words) or "none"


def loss_curves(found: Sequence[tuple[Names, Sequence[Run]]]) -> Picture | None:
    """The smoothed losses of every cell and seed; seeds of a cell share its style. None without any."""
    drawn: dict[str, tuple[list[int], list[float]]] = {}
    styled: dict[str, int] = {}
    for number, (names, runs) in enumerate(found):
        for run in runs:
            steps, losses = losses_of(run)
            if not losses:
                continue
            means = smoothed(losses)
            name = f"{names[1]}, {names[0]}" + (f", seed {run.seed}" if len(runs) > 1 else "")
            drawn[name] = steps[len(steps) - len(means) :], means.tolist()
            styled[name] = number
    return figures.curves(drawn, styled, "Meta-loss by outer step, smoothed", "loss") if drawn else None
