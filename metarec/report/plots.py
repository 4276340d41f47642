"""Loss, validation and course of training of a run as three pictures; needs the extra ``plot`` (matplotlib).

One picture for one question: did the losses fall, how did the monitored metric of each method move, and how went the
training: loss, norm of the gradient beside the norm it is clipped to, and step size, one below the other? Numbers come
from the records of history.jsonl; a dict inside a record is one series for each number in it (val.fewshot.ndcg@10).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarec.durable import replace_file
from metarec.errors import EnvironmentFault
from metarec.metrics import heading as heading_of
from metarec.runs.history import numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "curves left out: matplotlib is not installed -- pip install 'metarec[plot]'"
Series = dict[str, tuple[list[int], list[float]]]
NORM, RATE = "train.grad_norm", "train.lr"
COURSE = {"train.loss": "loss", NORM: "gradient norm", RATE: "step size"}  # of training, and what its axis says

# Okabe & Ito 2008: told apart with any colour vision; a method keeps its colour in every picture
_COLOURS = {"fewshot": "#0072B2", "zeroshot": "#E69F00", "control": "#009E73", "train": "#000000"}
_SPARE = ("#CC79A7", "#56B4E9", "#D55E00")
_NAMES = {"fewshot": "few-shot (meta)", "zeroshot": "zero-shot (meta)", "control": "fine-tune control"}


def plot_curves(
    records: Sequence[Mapping[str, Any]], directory: Path, *, metric: str, title: str = "", best_step: int | None = None,
    clip_norm: float = 0.0,
) -> list[Path] | str:  # fmt: skip
    """Write loss.png, validation.png and training.png into ``directory``; returns their paths, or one line without
    matplotlib.

    ``metric``: the monitored one, such as "ndcg@10". A picture without any series is not written. ``best_step`` is
    marked in the validation curve, ``clip_norm`` (0 = off) beside the gradient's norm.
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
        pictures.append(save(figure, directory / "loss.png"))
    if validation:
        heading = f"{title}: validation" if title else "Validation"
        pictures.append(save(_draw(validation, heading_of(metric), heading, best_step), directory / "validation.png"))
    if training := course(found):
        heading = f"{title}: training" if title else "Training"
        pictures.append(save(_draw_course(training, heading, clip_norm), directory / "training.png"))
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


def course(found: Series) -> Series:
    """Of `series`, how training went: loss, norm of the gradient, step size, in this order, what there is of them.

    Norms stand on a logarithmic axis, beside a clip far above or below them; one of zero has no place there.
    """
    out = {name: found[name] for name in COURSE if name in found}
    if NORM in out:
        kept = [(step, value) for step, value in zip(*out[NORM], strict=True) if value > 0]
        out[NORM] = [step for step, _ in kept], [value for _, value in kept]
    return {name: own for name, own in out.items() if own[0]}


def _draw_course(found: Series, title: str, clip_norm: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(7.2, 2.5 * len(found) + 0.6), dpi=150, layout="constrained")
    panels = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    for axes, (name, (steps, values)) in zip(panels, found.items(), strict=True):
        if len(values) > 50 and name != RATE:
            axes.plot(steps, values, color=_COLOURS["train"], alpha=0.25, linewidth=0.8)
            axes.plot(steps, _running_mean(values, len(values) // 25), color=_COLOURS["train"], linewidth=1.6)
        else:
            axes.plot(steps, values, color=_COLOURS["train"], linewidth=1.6)
        if name == NORM:
            axes.set_yscale("log")
            shown = [*values, *([clip_norm] if clip_norm > 0 else [])]
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}" if max(shown) < 10 * min(shown) else NullFormatter())
            if clip_norm > 0:
                axes.axhline(clip_norm, color=_SPARE[-1], linewidth=1.2, linestyle="--", label=f"clip {clip_norm:g}")
                axes.legend(frameon=False, fontsize=9)
        axes.set_ylabel(COURSE[name])
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left", fontsize=11)
    panels[-1].set_xlabel("step")
    return figure


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


def save(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all; EnvironmentFault names it where that cannot be."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    try:
        replace_file(path, data.getvalue())
    except OSError as error:
        raise EnvironmentFault(
            path, type(error).__name__, error.strerror or str(error), "free space or set logger.plots=false"
        ) from error
    return path
