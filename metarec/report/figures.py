"""The pictures of a report, each the answer to one question, from what a run has written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarec.report import cells, svg
from metarec.report.blocks import Picture
from metarec.report.comparison_text import brief
from metarec.report.finished import Array
from metarec.report.plots import NORM, RATE, course, series

Json = dict[str, Any]
BANDS = 4  # more of them hide one another: then those of what is argued about
MOST = 120  # points of a curve; a longer one is shown as means of so many blocks
# a method keeps its style in every picture; whoever is not listed takes the next free one
STYLE = {"fewshot": 0, "zeroshot": 1, "control": 2, "pretrained": 3, "in_context": 4, "train": 3}


def styles(methods: Sequence[str]) -> dict[str, int]:
    """Method -> number of its style."""
    free = iter([n for n in range(svg.STYLES) if n not in {STYLE.get(m) for m in methods}] * len(methods))
    return {method: STYLE[method] if method in STYLE else next(free) for method in methods}


def learning_curves(
    records: Sequence[Mapping[str, Any]], metric: str, what: str, kept: int | None, clip_norm: float = 0.0
) -> list[Picture]:
    """Losses, the gradient's norm beside what it is clipped to (0: not), the step size, and the monitored metric on
    validation, over the steps of meta-training or pretraining (`what`)."""
    found = series(records)
    losses = {name: own for name, own in found.items() if name.rpartition(".")[2].endswith("loss")}
    validation = {n: own for n, own in found.items() if n.startswith("val.") and n.endswith(f".{metric}")}
    pictures = []
    if losses:
        names = {name: name.replace(".", " ") for name in losses}
        styled = {name: STYLE["train"] if number == 0 else 3 + number for number, name in enumerate(losses)}
        pictures.append(_curves(losses, names, styled, f"{what}: loss", "loss", None))
    own_course = course(found)
    if NORM in own_course:
        pictures.append(_norms(*own_course[NORM], f"{what}: gradient norm", clip_norm))
    if RATE in own_course:
        rate = {RATE: own_course[RATE]}
        pictures.append(
            _curves(rate, {RATE: "step size"}, {RATE: STYLE["train"]}, f"{what}: step size", "step size", None, 3)
        )
    if validation:
        names = {name: brief(name.split(".")[1]) for name in validation}
        own = styles([name.split(".")[1] for name in validation])
        styled = {name: own[name.split(".")[1]] for name in validation}
        heading = cells.heading(metric)
        pictures.append(_curves(validation, names, styled, f"{what}: validation", heading, kept))
    return pictures


def curves(
    found: Mapping[str, tuple[list[int], list[float]]], styled: Mapping[str, int], title: str, heading: str
) -> Picture:
    """Several curves, steps [n] and values [n] each, under their own names."""
    return _curves(found, {name: name for name in found}, styled, title, heading, None)


def _curves(
    found: Mapping[str, tuple[list[int], list[float]]], names: Mapping[str, str], styled: Mapping[str, int], title: str,
    heading: str, kept: int | None, digits: int | None = None,
) -> Picture:  # fmt: skip

    def said(value: float) -> str:
        return f"{value:.4f}" if digits is None else f"{value:.{digits}g}"

    thinned = {name: _thin(*own) for name, own in found.items()}
    block = max(size for _, size in thinned.values())
    points = [point for own, _ in thinned.values() for point in own]
    x = svg.linear([0.0, *(a for a, _ in points)], "step", tight=True)
    y = svg.linear([b for _, b in points], heading)
    layers = [
        svg.line(
            x, y, own, styled[name], [f"{names[name]}, step {a:,.0f}: {said(b)}" for a, b in own], alone=len(found) == 1
        )
        for name, (own, _) in thinned.items()
    ]
    if kept is not None:
        layers.insert(0, svg.rule(x, y, kept, f"kept: step {kept:,}"))
    ends = "; ".join(
        f"{names[name]} from {said(own[0][1])} to {said(own[-1][1])}" for name, (own, _) in thinned.items()
    )
    caption = title + (f"; each point the mean of {block} records" if block > 1 else "")
    legend = [(names[name], styled[name]) for name in found] if len(found) > 1 else []
    return Picture(svg.chart(title, ends, x, y, layers), caption, legend)


def _norms(steps: Sequence[int], values: Sequence[float], title: str, clip_norm: float) -> Picture:
    """The gradient's norm on a logarithmic axis, with a dashed line where it is clipped."""
    points, block = _thin(steps, values)
    x = svg.linear([0.0, *(a for a, _ in points)], "step", tight=True)
    y = svg.decades([*(b for _, b in points), *([clip_norm] if clip_norm > 0 else [])], "gradient norm")
    names = [f"gradient norm, step {a:,.0f}: {b:.3g}" for a, b in points]
    layers = [svg.line(x, y, [(a, math.log10(b)) for a, b in points], STYLE["train"], names, alone=True)]
    said = f"gradient norm from {points[0][1]:.3g} to {points[-1][1]:.3g}"
    if clip_norm > 0:
        layers.insert(0, svg.level(x, y, math.log10(clip_norm), f"clip {clip_norm:g}"))
        above = sum(value > clip_norm for value in values)
        said += f"; clipped at {clip_norm:g} in {above:,} of {len(values):,} records"
    caption = said.replace("gradient norm", title, 1) + (
        f"; each point the mean of {block} records" if block > 1 else ""
    )
    return Picture(svg.chart(title, said, x, y, layers), caption, [])


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[svg.Point], int]:
    """At most MOST points, each the mean of a block of records, and the size of the blocks."""
    size = -(-len(values) // MOST)
    starts = range(0, len(values), size)
    return [(float(np.mean(steps[i : i + size])), float(np.mean(values[i : i + size]))) for i in starts], size


def k_curve(curve: Json, metric: str) -> Picture | None:
    """Each method over the number of support pairs, on the same users and the same query pairs, with its interval.

    None where no method has the metric, as in the curve of an older version.
    """
    ks = [f"{k}" for k in curve["ks"]]
    rows = {name: own[metric] for name, own in curve["methods"].items() if metric in own}
    if not rows:
        return None
    values = [point[key] for row in rows.values() for point in row for key in ("mean", "low", "high")]
    x = svg.places(ks, "support pairs of a user (K)")
    y = svg.linear([value for value in values if value is not None], cells.heading(metric))
    styled = styles(list(rows))
    banded = list(rows) if len(rows) <= BANDS else [name for name in ("fewshot", "control") if name in rows]
    bands, lines, ends = [], [], []
    for name, row in rows.items():
        style, known = styled[name], brief(name)
        if name in banded and all(point["low"] is not None for point in row):
            bands.append(svg.band(x, y, [(i, p["low"], p["high"]) for i, p in enumerate(row)], style))
        said = [f"{known}, K={k}: {_with_ends(point)}" for k, point in zip(ks, row, strict=True)]
        lines.append(svg.line(x, y, [(i, point["mean"]) for i, point in enumerate(row)], style, said))
        ends.append(f"{known} from {_with_ends(row[0])} at K={ks[0]} to {_with_ends(row[-1])} at K={ks[-1]}")
    who = f"{curve['users']:,} {curve.get('split', 'test')} users, {curve['targets']:,} targets"
    caption = f"{cells.heading(metric)} over K, {who}, the same at every K; bands: intervals over users"
    if len(banded) < len(rows):
        caption += f" of {' and '.join(brief(name) for name in banded)}"
    legend = [(brief(name), style) for name, style in styled.items()]
    return Picture(svg.chart("K-curve", "; ".join(ends), x, y, [*bands, *lines]), caption, legend)


def _with_ends(point: Json) -> str:
    return f"{point['mean']:.4f} {cells.ends(point['low'], point['high'])}".strip()


def grid(method: str, lrs: Sequence[float], steps: Sequence[int], values: Sequence[Sequence[float | None]], metric: str,
         where: str) -> Picture | None:  # fmt: skip
    """A heat map of step sizes and step counts; None where nothing was measured."""
    every = [(row[j], lr, count) for lr, row in zip(lrs, values, strict=True) for j, count in enumerate(steps)]
    known = [(value, lr, count) for value, lr, count in every if value is not None]
    if not known:
        return None
    best = max(known, key=lambda entry: entry[0])
    digits = 4 if len(steps) <= 6 else 3
    texts = [[cells.share(value, digits) for value in row] for row in values]
    said = f"highest {best[0]:.4f} at step size {best[1]:g}, {best[2]} steps"
    picture = svg.heat_map(
        f"{brief(method)}: {cells.heading(metric)} by step size and steps", said, [f"{lr:g}" for lr in lrs],
        [f"{count}" for count in steps], values, texts, "step size", "inner steps",
    )  # fmt: skip
    lacking = "; -: not measured or diverged" if len(known) < len(every) else ""
    return Picture(picture, f"{brief(method)}, {cells.heading(metric)} {where}: {said}{lacking}")


def gains(of: Array, against: Array, names: tuple[str, str], metric: str, who: str = "users") -> Picture:
    """How the difference is spread over users: a histogram, those without a difference in a bar of their own.

    `of`, `against` [U]: the figure of each user, the same users in the same order.
    """
    delta = of - against
    reach = float(np.abs(delta).max()) or 1.0
    width = svg.round_step(reach / 10)
    count = int(np.ceil(reach / width - 1e-9))
    edges = (np.arange(-count, count + 1)) * width
    equal = np.abs(delta) < 1e-12
    heights, _ = np.histogram(delta[~equal], edges)
    n_equal, n_better, n_worse = int(equal.sum()), int((delta[~equal] > 0).sum()), int((delta[~equal] < 0).sum())
    label = f"{brief(names[0])} minus {brief(names[1])}, {cells.heading(metric)} of a user"
    x = svg.linear([float(edges[0]), float(edges[-1])], label, count=6, tight=True)
    y = svg.linear([0.0, float(max([*heights, n_equal]))], who)
    found = [
        (float(a), float(b), float(height), 0 if a >= -1e-12 else 1, f"{height} {who} from {a:+.3f} to {b:+.3f}")
        for a, b, height in zip(edges[:-1], edges[1:], heights, strict=True)
    ]
    middle = (-width / 4, width / 4, float(n_equal), 7, f"{n_equal} {who} without a difference")
    total = len(delta)
    said = (f"better for {n_better:,} {who} ({cells.per_cent(n_better / total)}), equal for {n_equal:,} "
            f"({cells.per_cent(n_equal / total)}), worse for {n_worse:,} ({cells.per_cent(n_worse / total)})")  # fmt: skip
    layers = [svg.bars(x, y, found), svg.rule(x, y, 0.0, ""), svg.bars(x, y, [middle])]
    return Picture(svg.chart("Gain by user", said, x, y, layers), said, [("worse", 1), ("equal", 7), ("better", 0)])


def forest(found: Sequence[tuple[str, Json]], what: str, metric: str) -> Picture:
    """One difference for each name, with its interval: {mean, low, high, verdict}."""
    styled = {"better": 0, "worse": 1}
    rows = [
        (name, one["mean"], one["low"], one["high"], styled.get(one["verdict"], 7),
         f"{name}: {cells.share(one['mean'], sign=True)} {cells.ends(one['low'], one['high'], sign=True)}, {one['verdict']}")
        for name, one in found
    ]  # fmt: skip
    heading = f"{what}, {cells.heading(metric)}"
    legend = [("better", 0), ("no difference shown", 7), ("worse", 1)]
    picture = svg.forest(what, "; ".join(row[-1] for row in rows), rows, heading)
    return Picture(picture, f"{what}: intervals over users with all their seeds", legend)
