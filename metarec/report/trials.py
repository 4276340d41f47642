"""The trials of a search as one table, the best first, and as the document of summary.json.

metric, n_trials, counts          {ok, pruned, failed, running}
trials                            one entry each, by value: number, value, status, params, minutes, directory, error
importance                        {key: share} or null; best: best.json or null
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


class TrialRow(Protocol):
    """What is shown of a trial."""

    @property
    def number(self) -> int:
        """From 0, in order of drawing."""

    @property
    def params(self) -> dict[str, Any]:
        """Key of the configuration -> the value drawn."""

    @property
    def status(self) -> str:
        """ok, pruned, failed or running."""

    @property
    def value(self) -> float | None:
        """The monitored validation figure; None while there is none."""

    @property
    def notes(self) -> dict[str, Any]:
        """What stands beside it: seconds, directory, error."""


def trials_document(
    rows: Sequence[TrialRow], *, metric: str, n_trials: int, best: Mapping[str, Any] | None,
    importance: Mapping[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    """Ordered by status (ok before pruned before the others), then value, then number."""
    order = ("ok", "pruned", "failed", "running")
    ordered = sorted(rows, key=lambda row: (order.index(row.status), -(row.value or 0.0), row.number))
    return {
        "metric": metric,
        "n_trials": n_trials,
        "counts": {status: sum(row.status == status for row in rows) for status in order},
        "trials": [
            {
                "number": row.number, "value": row.value, "status": row.status, "params": row.params,
                "minutes": None if row.notes.get("seconds") is None else round(row.notes["seconds"] / 60, 2),
                "directory": row.notes.get("directory"), "error": row.notes.get("error"),
            }
            for row in ordered
        ],
        "importance": None if importance is None else dict(importance),
        "best": None if best is None else dict(best),
    }  # fmt: skip


def print_trials(directory: Path, found: Mapping[str, Any]) -> None:
    """The table; below it the reason of each failure, what mattered, and where the best is or how to go on."""
    console = Console() if sys.stdout.isatty() else Console(width=2000, color_system=None)
    keys = list(dict.fromkeys(key for row in found["trials"] for key in row["params"]))
    table = Table(box=SIMPLE)
    for heading in ("trial", f"val {found['metric']}", *keys, "status", "minutes", "directory"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("status", "directory") else "right")
    for row in found["trials"]:
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        given = [figure(row["params"].get(key)) for key in keys]
        minutes = "-" if row["minutes"] is None else f"{row['minutes']:.1f}"
        table.add_row(str(row["number"]), value, *given, row["status"], minutes, row["directory"] or "-")

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"search {directory}")
    console.print(table)
    for row in found["trials"]:
        if row["status"] == "failed":
            line(f"trial {row['number']}: {row['error']}")
    if found["importance"]:
        shares = sorted(found["importance"].items(), key=lambda pair: -pair[1])
        line("importance: " + ", ".join(f"{key} {share:.2f}" for key, share in shares))
    done = sum(found["counts"][status] for status in ("ok", "pruned", "failed"))
    line(f"{done} of {found['n_trials']} trials: {found['counts']['ok']} ok, {found['counts']['pruned']} pruned, "
         f"{found['counts']['failed']} failed")  # fmt: skip
    if found["best"] is not None:
        best = found["best"]
        test = ", ".join(f"{method} {value:.4f}" for method, value in best["test"].items())
        line(f"best: trial {best['trial']} ({' '.join(best['words'])}), validation {best['validation']:.4f}; "
             f"test {best['metric']}: {test}; run in {directory / 'best'}")  # fmt: skip
    elif done < found["n_trials"]:
        line(f"go on by metarec train resume={directory}")


def figure(value: object) -> str:
    """A drawn value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
