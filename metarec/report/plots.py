"""Loss and validation curves of a run as two pictures; needs the extra ``plot`` (matplotlib).

One picture for one question: did the losses fall, and how did the monitored metric of each method move? Numbers come
from the records of history.jsonl; a dict inside a record is one series for each number in it (val.fewshot.ndcg@10).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarec.errors import EnvironmentFault
from metarec.metrics import heading as heading_of
from metarec.runs.history import numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "curves left out: matplotlib is not installed -- pip install 'metarec[plot]'"
Series = dict[str, tuple[list[int], list[float]]]

# Okabe & Ito 2008: told apart with any colour vision; a method keeps its colour in every picture
_COLOURS = {"fewshot": "#0072B2", "zeroshot": "#E69F00", "control": "#009E73", "train": "#000000"}
_SPARE = ("#CC79A7", "#56B4E9", "#D55E00")
_NAMES = {"fewshot": "few-shot (meta)", "zeroshot": "zero-shot (meta)", "control": "fine-tune control"}


def plot_curves(
    records: Sequence[Mapping[str, Any]], directory: Path, *, metric: str, title: str = "", best_step: int | None = None
) -> list[Path] | str:
    """Write loss.png and validation.png into ``directory``; returns their paths, or one line without matplotlib.

    ``metric``: the monitored one, such as "ndcg@10". A picture without any series is not written. ``best_step`` is
    marked in the validation curve.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return MISSING
    found = series(records)
    losses = {name: points for name, points in found.items() if name.rsplit(".", 1)[-1].endswith("loss")}
    validation = {
        name: points for name, points in found.items() if name.startswith("val.") and name.endswith(f".{metric}")
    }
    pictures = []
    if losses:
        figure = _draw(losses, "cross-entropy (nats)", f"{title}: losses" if title else "Losses", None, smooth=True)
        pictures.append(_save(figure, directory / "loss.png"))
    if validation:
        heading = f"{title}: validation" if title else "Validation"
        pictures.append(_save(_draw(validation, heading_of(metric), heading, best_step), directory / "validation.png"))
    return pictures


def series(records: Sequence[Mapping[str, Any]]) -> Series:
    """``<kind>.<key>[.<key>]`` -> (steps, values) for every number in the records but ``step``."""
    out: Series = {}
    for record in records:
        for name, value in numbers(record, ".").items():
            steps, values = out.setdefault(name, ([], []))
            steps.append(record["step"])
            values.append(value)
    return out


def _draw(found: Series, ylabel: str, title: str, best_step: int | None, *, smooth: bool = False) -> Figure:
    from matplotlib.figure import Figure  # the object interface: no global state, no display, no backend to choose

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    spare = iter(_SPARE * len(found))
    for name, (steps, values) in found.items():
        method = name.split(".")[1] if name.startswith("val.") else name.split(".")[0]
        plain_loss = method == "train" and name != "train.loss"  # a second training loss needs a colour of its own
        colour = next(spare) if plain_loss or method not in _COLOURS else _COLOURS[method]
        label = _label(name)
        if smooth and len(values) > 50:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(
                steps, _running_mean(values, len(values) // 25), color=colour, linewidth=1.8, label=f"{label}, smoothed"
            )
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
    if best_step is not None:
        axes.axvline(best_step, color="#666666", linewidth=1.0, linestyle="--", label=f"kept: step {best_step:,}")
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _label(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "val" and len(parts) > 2:
        return _NAMES.get(parts[1], parts[1]) + (", validation" if parts[-1].endswith("loss") else "")
    return f"{' '.join(parts[1:]).replace('_', ' ')} ({parts[0]})"


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last ``width`` values (fewer at the start): a curve that never looks ahead."""
    width = max(width, 1)
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _save(figure: Figure, path: Path) -> Path:
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(scratch, format="png")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise EnvironmentFault(
            path, type(error).__name__, error.strerror or str(error), "free space or set logger.plots=false"
        ) from error
    return path
