"""Charts as SVG: axes, lines, bands, bars, heat maps, written by hand so that a page needs no library and no script.

Sizes are in the units of the view box, 480 wide, so that text stays legible when a phone shows it at 350 pixels. A series
has a style by number: a colour (Okabe & Ito 2008), a dash and a marker, so that it is told apart in grey as well. Colours
are classes of the page's style sheet (`report.style`), which knows light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metarec.report.markup import Child, Markup, el, join

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 30, 46
STYLES = 8
DASHES = (None, "7 4", "2 4", "9 3 2 3", "12 4", "4 2", "1 3", "8 3 3 3 3 3")
MARKED = 40  # a line of more points has no markers
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with (place, label) of every tick."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str

    def at(self, value: float, start: float, end: float) -> float:
        """Where `value` stands between the places `start` and `end`."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def linear(values: Sequence[float], label: str, *, count: int = 5, tight: bool = False) -> Axis:
    """An axis over the values with ticks at round numbers; `tight` ends at the values, else at ticks."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low < max(1e-12, 1e-9 * size):  # one value: room about it
        room = 0.1 * size if size > 1e-9 else 1.0
        low, high = low - room, high + room
    step = round_step((high - low) / count)
    first = math.ceil(low / step - 1e-9) if tight else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if tight else math.ceil(high / step - 1e-9)
    places = [step * number for number in range(first, last + 1)]
    digits = next(d for d in range(20) if abs(round(step, d) - step) < 1e-9 * step)
    ticks = [(place, "0" if abs(place) < step / 2 else f"{place:,.{digits}f}") for place in places]
    return Axis(low, high, ticks, label) if tight else Axis(places[0], places[-1], ticks, label)


def decades(values: Sequence[float], label: str) -> Axis:
    """A logarithmic axis over values > 0, whole powers of ten: what stands on it is the log10 of a value."""
    low, high = (math.log10(value) for value in (min(values), max(values)))
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    last = max(last, first + 1)
    every = -(-(last - first) // 6)
    return Axis(first, last, [(n, f"{10.0**n:g}") for n in range(first, last + 1, every)], label)


def places(labels: Sequence[str], label: str) -> Axis:
    """An axis of equally spaced names, at 0, 1, 2, ..."""
    return Axis(-0.3, len(labels) - 0.7, list(enumerate(labels)), label)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= rough * (1 - 1e-9))


def chart(title: str, desc: str, x: Axis, y: Axis, layers: Sequence[Markup]) -> Markup:
    """Axes, grid and layers; `title` and `desc` are what a screen reader says."""
    return _svg(title, desc, HEIGHT, [*_axes(x, y), *layers])


def line(
    x: Axis, y: Axis, points: Sequence[Point], style: int, names: Sequence[str] = (), *, alone: bool = False
) -> Markup:
    """A line through the points, with markers where there are few; `names` are shown when pointed at. A line `alone`
    needs no dash to be told from others."""
    places = [(_x(x, a), _y(y, b)) for a, b in points]
    drawn = el("polyline", points=" ".join(f"{_n(a)},{_n(b)}" for a, b in places), class_=f"line s{style % STYLES}",
               stroke_dasharray=None if alone else DASHES[style % STYLES])  # fmt: skip
    marks: list[Markup] = []
    if len(places) <= MARKED:
        said = [el("title", name) for name in names] or [Markup("")] * len(places)
        marks = [el("g", note, marker(a, b, style)) for note, (a, b) in zip(said, places, strict=True)]
    return el("g", drawn, *marks)


def band(x: Axis, y: Axis, points: Sequence[tuple[float, float, float]], style: int) -> Markup:
    """The area between low and high of every (place, low, high)."""
    there = [(_x(x, a), _y(y, low)) for a, low, _ in points]
    back = [(_x(x, a), _y(y, high)) for a, _, high in reversed(points)]
    return el("polygon", points=" ".join(f"{_n(a)},{_n(b)}" for a, b in there + back), class_=f"band s{style % STYLES}")


def bars(x: Axis, y: Axis, found: Sequence[tuple[float, float, float, int, str]]) -> Markup:
    """Bars from (left, right, height, style, what is shown when pointed at)."""
    floor = _y(y, y.low)
    return el("g", *[
        el("rect", el("title", name), x=_n(_x(x, a) + 0.5), width=_n(max(_x(x, b) - _x(x, a) - 1, 0.5)), y=_n(_y(y, height)),
           height=_n(floor - _y(y, height)), class_=f"bar s{style % STYLES}")
        for a, b, height, style, name in found if height > 0
    ])  # fmt: skip


def rule(x: Axis, y: Axis, value: float, label: str) -> Markup:
    """A vertical line with its label at the top, on the side where there is room."""
    at = _x(x, value)
    right = at < WIDTH * 0.6
    beside, anchor = (at + 4, "start") if right else (at - 4, "end")
    text = el("text", label, x=_n(beside), y=TOP + 11, class_="note", text_anchor=anchor) if label else None
    return el("g", el("line", x1=_n(at), x2=_n(at), y1=TOP, y2=_n(_y(y, y.low)), class_="rule"), text)


def level(x: Axis, y: Axis, value: float, label: str) -> Markup:
    """A horizontal line with its label above it at the right end, or below where the top is too near."""
    at = _y(y, value)
    beside = at - 5 if at > TOP + 14 else at + 13
    text = el("text", label, x=WIDTH - RIGHT, y=_n(beside), class_="note", text_anchor="end")
    return el("g", el("line", x1=LEFT, x2=_n(_x(x, x.high)), y1=_n(at), y2=_n(at), class_="rule"), text)


def marker(x: float, y: float, style: int) -> Markup:
    """Circle, square, triangle, diamond, by style."""
    name, size = f"mark s{style % STYLES}", 3.6
    kind = style % 4
    if kind == 0:
        return el("circle", cx=_n(x), cy=_n(y), r=size, class_=name)
    if kind == 1:
        return el("rect", x=_n(x - size), y=_n(y - size), width=2 * size, height=2 * size, class_=name)
    corners = (
        [(0, -4.6), (4.4, 3.6), (-4.4, 3.6)] if kind == 2 else [(0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)]
    )  # fmt: skip
    return el("polygon", points=" ".join(f"{_n(x + a)},{_n(y + b)}" for a, b in corners), class_=name)


def swatch(style: int, *, area: bool = False) -> Markup:
    """The sample of a legend."""
    inner = (
        el("rect", x=4, y=2, width=20, height=12, class_=f"bar s{style % STYLES}") if area else
        join([el("line", x1=0, x2=28, y1=8, y2=8, class_=f"line s{style % STYLES}", stroke_dasharray=DASHES[style % STYLES]),
              marker(14, 8, style)])
    )  # fmt: skip
    return el("svg", inner, viewBox="0 0 28 16", width=28, height=16, aria_hidden="true")


def heat_map(
    title: str, desc: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]], row_label: str, column_label: str,
) -> Markup:  # fmt: skip
    """A cell for each value, darker where higher, its text in it; the highest has a frame. None is an empty cell."""
    known = [value for row in values for value in row if value is not None]
    low, high = min(known), max(known)
    left, top, tall = 80, 46, 30
    wide = (WIDTH - left - 6) / len(columns)
    parts: list[Child] = [
        el("text", column_label, x=_n(left + wide * len(columns) / 2), y=14, class_="label", text_anchor="middle"),
        el("text", row_label, x=left - 8, y=36, class_="label", text_anchor="end"),
    ]
    parts += [
        el("text", name, x=_n(left + wide * (j + 0.5)), y=36, class_="tick", text_anchor="middle")
        for j, name in enumerate(columns)
    ]
    best: list[Child] = []
    for i, name in enumerate(rows):
        y = top + tall * i
        parts.append(el("text", name, x=left - 8, y=y + 20, class_="tick", text_anchor="end"))
        for j, value in enumerate(values[i]):
            x = left + wide * j
            fill, ink = ("none", "empty") if value is None else _shade((value - low) / (high - low or 1.0))
            box = {"x": _n(x + 1), "y": y + 1, "width": _n(wide - 2), "height": tall - 2}
            parts.append(el("rect", **box, fill=fill, class_="cell"))
            middle = {"x": _n(x + wide / 2), "y": y + 20, "text_anchor": "middle"}
            parts.append(el("text", texts[i][j], **middle, class_=f"value {ink}"))
            if value == high and not best:
                best.append(el("rect", **box, class_="best"))
    return _svg(title, desc, top + tall * len(rows) + 6, [*parts, *best])


def forest(title: str, desc: str, rows: Sequence[tuple[str, float, float, float, int, str]], label: str) -> Markup:
    """A row for each (name, mean, low, high, style, what is shown when pointed at): its mean on its interval, beside 0."""
    left, right, top, tall = 128, WIDTH - 24, 12, 26  # half of the last tick's text stands right of it
    bottom = top + tall * len(rows)
    x = linear([0.0, *(value for _, _, low, high, _, _ in rows for value in (low, high))], label)

    def at(value: float) -> float:
        return x.at(value, left, right)

    parts: list[Child] = []
    for value, text in x.ticks:
        name = "rule" if abs(value) < 1e-12 else "grid"
        parts.append(el("line", x1=_n(at(value)), x2=_n(at(value)), y1=top, y2=bottom, class_=name))
        parts.append(el("text", text, x=_n(at(value)), y=bottom + 17, class_="tick", text_anchor="middle"))
    for number, (name, mean, low, high, style, said) in enumerate(rows):
        y = top + tall * (number + 0.5)
        drawn = el("line", x1=_n(at(low)), x2=_n(at(high)), y1=_n(y), y2=_n(y), class_=f"line s{style % STYLES}")
        parts.append(el("g", el("title", said), drawn, marker(at(mean), y, style)))
        parts.append(el("text", name, x=left - 8, y=_n(y + 4), class_="tick", text_anchor="end"))
    middle = _n((left + right) / 2)
    parts.append(el("text", label, x=middle, y=bottom + 40, class_="label", text_anchor="middle"))
    return _svg(title, desc, bottom + 48, parts)


def _shade(share: float) -> tuple[str, str]:
    """Fill from pale to dark blue, and the class of the text upon it; the same on a dark page and in grey print."""
    pale, dark = (0xE8, 0xF1, 0xFA), (0x00, 0x4C, 0x7F)
    mixed = [round(a + (b - a) * share) for a, b in zip(pale, dark, strict=True)]
    return f"#{''.join(f'{c:02x}' for c in mixed)}", "dark" if share > 0.5 else "pale"


def _axes(x: Axis, y: Axis) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    middle = _n((LEFT + WIDTH - RIGHT) / 2)
    out = [
        el("text", y.label, x=4, y=14, class_="label"),
        el("text", x.label, x=middle, y=HEIGHT - 6, class_="label", text_anchor="middle"),
    ]
    for value, label in y.ticks:
        at = _n(_y(y, value))
        out.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        out.append(el("text", label, x=LEFT - 6, y=_n(_y(y, value) + 4), class_="tick", text_anchor="end"))
    for value, label in x.ticks:
        at = _n(_x(x, value))
        out.append(el("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        out.append(el("text", label, x=at, y=bottom + 17, class_="tick", text_anchor="middle"))
    out.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    return out


def _svg(title: str, desc: str, height: float, parts: Sequence[Child]) -> Markup:
    return el("svg", el("title", title), el("desc", desc), *parts, viewBox=f"0 0 {WIDTH} {_n(height)}", role="img",
              xmlns="http://www.w3.org/2000/svg", class_="chart")  # fmt: skip


def _x(axis: Axis, value: float) -> float:
    return axis.at(value, LEFT, WIDTH - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return axis.at(value, HEIGHT - BOTTOM, TOP)


def _n(value: float) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
