"""timescales.png and pretrain_timescales.png: how the timescales of each loop went, a panel a figure; needs matplotlib.

Updates and products stand on logarithmic axes, where what is rare is seen beside what is not; the dashed line is the limit
of the delta rule's explicit form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarec.report.plots import save
from metarec.report.timescales import FILES, LIMIT, OVER_TIME, Series, drawn, over_time
from metarec.runs.history import read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
LOGARITHMIC = ("updates", "largest")
PICTURES = {"pretraining": "pretrain_timescales.png", "training": "timescales.png"}


def plot_timescales(directory: Path, document: Mapping[str, Any]) -> list[Path]:
    """The pictures of a run in `directory`, whose metrics.json will be `document`; none without matplotlib."""
    told: Mapping[str, Any] = document.get("timescales") or {}
    if not told or importlib.util.find_spec("matplotlib") is None:
        return []
    title = f"{document['dataset']}, {document['algorithm']}, residual {document['residual']}"
    made = []
    for loop, name in FILES.items():
        path = directory / name
        found = over_time(read_history(path)) if loop in told and path.exists() else {}
        if found:
            made.append(save(figure(found, f"{title}: {loop}"), directory / PICTURES[loop]))
    return made


def figure(found: Mapping[str, Series], title: str) -> Figure:
    """A panel for each figure, the steps below all of them."""
    from matplotlib.figure import Figure

    out = Figure(figsize=(7.2, 2.4 * len(found) + 0.6), dpi=150, layout="constrained")
    panels = out.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    for axes, (what, series) in zip(panels, found.items(), strict=True):
        for colour, (name, (steps, values)) in zip(COLOURS, drawn(series).items(), strict=False):
            label = f"level {name}" if name.isdigit() else name
            staircase = "steps-post" if what == "updates" else "default"
            axes.plot(steps, values, color=colour, linewidth=1.6, label=label, drawstyle=staircase)
        if what in LOGARITHMIC:
            axes.set_yscale("symlog", linthresh=1) if what == "updates" else axes.set_yscale("log")
        if what == "largest":
            axes.axhline(LIMIT, color="#666666", linewidth=1.0, linestyle="--", label="limit of the explicit form")
        axes.set_ylabel(OVER_TIME[what], fontsize=9)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_title(title, loc="left", fontsize=11)
    panels[-1].set_xlabel("step")
    return out
