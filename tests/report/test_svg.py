"""Charts: round ticks, places on the page by hand, well-formed whatever the text, told apart without colour."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.small_reports import HOSTILE, everything

from metarec.report import figures, svg
from metarec.report.blocks import Picture
from metarec.report.markup import Markup, el, escape

NS = "{http://www.w3.org/2000/svg}"


def parsed(markup: str) -> ET.Element:
    return ET.fromstring(markup)


def points(element: ET.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in element.attrib["points"].split())
    return [(float(a), float(b)) for a, b in pairs]


@pytest.mark.parametrize(
    ("rough", "step"), [(0.3, 0.5), (1.0, 1.0), (1.01, 2.0), (2.1, 2.5), (26, 50), (0.0011, 0.002)]
)
def test_steps_are_round(rough: float, step: float) -> None:
    assert svg.round_step(rough) == pytest.approx(step)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_an_axis_holds_its_values_and_few_different_ticks(values: list[float], tight: bool) -> None:
    axis = svg.linear(values, "x", tight=tight)
    near = 1e-6 * max(1.0, *map(abs, values))
    assert axis.low <= min(values) + near
    assert axis.high >= max(values) - near
    assert 1 <= len(axis.ticks) <= 8
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels)
    for place, label in axis.ticks:
        assert float(label.replace(",", "")) == pytest.approx(place, rel=1e-6, abs=1e-9)
        assert axis.low - near <= place <= axis.high + near


def test_a_line_lies_where_it_should() -> None:
    x, y = svg.linear([0, 10], "step", tight=True), svg.linear([0, 1], "loss")
    (drawn,) = parsed(svg.chart("t", "d", x, y, [svg.line(x, y, [(0, 0), (5, 0.5), (10, 1)], 0)])).iter(f"{NS}polyline")
    left, right, bottom, top = svg.LEFT, svg.WIDTH - svg.RIGHT, svg.HEIGHT - svg.BOTTOM, svg.TOP
    assert points(drawn) == [(left, bottom), ((left + right) / 2, (bottom + top) / 2), (right, top)]


def test_a_band_goes_there_below_and_back_above() -> None:
    x, y = svg.places(["0", "1"], "K"), svg.linear([0, 1], "m")
    drawn = parsed(svg.band(x, y, [(0, 0.0, 0.5), (1, 0.5, 1.0)], 0))
    found = points(drawn)
    assert found[0][0] == found[3][0] < found[1][0] == found[2][0]
    assert found[0][1] > found[3][1]  # low is further down the page than high
    assert found[1][1] > found[2][1]


def test_bars_are_as_high_as_their_counts() -> None:
    x, y = svg.linear([0, 2], "x", tight=True), svg.linear([0, 10], "n")
    rects = list(
        parsed(svg.bars(x, y, [(0, 1, 10.0, 0, "a"), (1, 2, 5.0, 1, "b"), (1, 2, 0.0, 1, "none")])).iter("rect")
    )
    heights = [float(rect.attrib["height"]) for rect in rects]
    assert heights == [svg.HEIGHT - svg.BOTTOM - svg.TOP, (svg.HEIGHT - svg.BOTTOM - svg.TOP) / 2]


def test_styles_differ_without_colour() -> None:
    """Dash and marker together name a style, so that a grey print can be read."""
    x, y = svg.linear([0, 1], "x"), svg.linear([0, 1], "y")
    shapes = set()
    for style in range(svg.STYLES):
        drawn = parsed(svg.line(x, y, [(0, 0), (1, 1)], style))
        mark = next(e for e in drawn.iter() if e.get("class", "").startswith("mark"))
        shapes.add(
            (drawn.find("polyline").get("stroke-dasharray"), mark.tag, len(mark.attrib.get("points", "").split()))
        )
    assert len(shapes) == svg.STYLES


def test_a_heat_map_frames_the_highest_and_leaves_gaps() -> None:
    values = [[0.1, None], [0.3, 0.2]]
    drawn = parsed(
        svg.heat_map("t", "d", ["a", "b"], ["1", "2"], values, [[".1", "-"], [".3", ".2"]], "rows", "columns")
    )
    cells = [e for e in drawn.iter(f"{NS}rect") if e.get("class") == "cell"]
    (best,) = [e for e in drawn.iter(f"{NS}rect") if e.get("class") == "best"]
    assert (best.get("x"), best.get("y")) == (cells[2].get("x"), cells[2].get("y"))
    assert [cell.get("fill") == "none" for cell in cells] == [False, True, False, False]
    brightness = [sum(bytes.fromhex(cells[k].get("fill", "")[1:])) for k in (0, 3, 2)]
    assert brightness == sorted(brightness, reverse=True)  # darker where higher, in grey too
    assert parsed(svg.heat_map("t", "d", ["a"], ["1"], [[0.5]], [[".5"]], "r", "c")) is not None  # no spread


def all_pictures() -> list[Picture]:
    blocks = everything()
    history = [{"step": s, "kind": "train", "loss": 4 - s / 999} for s in range(500)]
    history += [{"step": s, "kind": "val", HOSTILE: {"mrr": s / 999}} for s in range(0, 500, 50)]
    rng = np.random.default_rng(1)
    grid = blocks["grid"]
    found = [
        *figures.learning_curves(history, "mrr", HOSTILE, 50),
        figures.k_curve(blocks["k_curve"], "ndcg@10"),
        figures.gains(rng.random(50), rng.random(50), ("fewshot", HOSTILE), "mrr"),
        *[figures.grid(m, grid["lrs"], grid["steps"], v, "mrr", HOSTILE) for m, v in grid["methods"].items()],
    ]
    return [picture for picture in found if picture is not None]


@pytest.mark.parametrize("number", range(6))
def test_every_picture_is_well_formed_and_says_what_it_shows(number: int) -> None:
    picture = all_pictures()[number]
    root = parsed(picture.svg)
    assert root.tag == f"{NS}svg"
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == [f"{NS}title", f"{NS}desc"]
    assert all(child.text for child in root[:2])
    assert not list(root.iter(f"{NS}script")) and not list(root.iter(f"{NS}image"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for text in root.iter(f"{NS}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


def test_a_crowded_k_curve_keeps_the_bands_that_are_argued_about() -> None:
    curve = everything()["k_curve"]
    own = curve["methods"]
    few = figures.k_curve(curve, "ndcg@10")
    many = figures.k_curve(
        {**curve, "methods": {**own, "scratch": own["control"], "markov": own["control"]}}, "ndcg@10"
    )
    assert (few.svg.count('class="band'), many.svg.count('class="band')) == (4, 2)
    assert few.caption.endswith("intervals over users")
    assert many.caption.endswith("intervals over users of few-shot and control")
    assert many.svg.count("<polyline") == 6


def test_a_forest_has_each_interval_where_it_lies_and_0_marked() -> None:
    """Ticks from -.1 to .2 between 128 and 456: a unit of .1 is (456 - 128) / 3 wide."""
    rows = [("mars", 0.1, 0.05, 0.2, 0, "a"), (HOSTILE, -0.05, -0.1, 0.0, 1, "b")]
    root = parsed(svg.forest("t", "d", rows, "gain"))
    zero = 128 + (456 - 128) / 3
    (rule,) = (one for one in root.iter(f"{NS}line") if one.attrib["class"] == "rule")
    assert float(rule.attrib["x1"]) == pytest.approx(zero, abs=0.05)
    drawn = [one for one in root.iter(f"{NS}line") if one.attrib["class"].startswith("line")]
    unit = (456 - 128) / 0.3
    for one, (_, _, low, high, style, _) in zip(drawn, rows, strict=True):
        assert float(one.attrib["x1"]) == pytest.approx(zero + low * unit, abs=0.06)
        assert float(one.attrib["x2"]) == pytest.approx(zero + high * unit, abs=0.06)
        assert one.attrib["class"] == f"line s{style}"
    (circle,) = root.iter(f"{NS}circle")
    assert float(circle.attrib["cx"]) == pytest.approx(zero + 0.1 * unit, abs=0.06)
    assert HOSTILE in [text.text for text in root.iter(f"{NS}text")]


def test_a_long_curve_is_thinned_to_means() -> None:
    history = [{"step": s, "kind": "train", "loss": float(s)} for s in range(1000)]
    (picture,) = figures.learning_curves(history, "mrr", "training", 1)
    (drawn,) = parsed(picture.svg).iter(f"{NS}polyline")
    assert len(points(drawn)) == 112  # blocks of 9
    assert "each point the mean of 9 records" in picture.caption
    assert len(picture.svg) < 20_000


def test_gradients_stand_on_a_logarithmic_axis_beside_their_clip() -> None:
    """Norms 0.1, 1, 10 and a clip of 100: three decades between bottom and top, so a decade is a third of the height."""
    history = [
        {"step": s, "kind": "train", "loss": 1.0, "grad_norm": v, "lr": 0.1} for s, v in enumerate((0.1, 1.0, 10.0))
    ]
    _, norms, rates = figures.learning_curves(history, "mrr", "training", None, 100.0)
    root = parsed(norms.svg)
    (drawn,) = root.iter(f"{NS}polyline")
    bottom, top = svg.HEIGHT - svg.BOTTOM, svg.TOP
    decade = (bottom - top) / 3
    assert [y for _, y in points(drawn)] == pytest.approx([bottom, bottom - decade, bottom - 2 * decade], abs=0.06)
    (rule,) = (one for one in root.iter(f"{NS}line") if one.attrib["class"] == "rule")
    assert {float(rule.attrib[key]) for key in ("y1", "y2")} == {float(top)}
    assert {"0.1", "1", "10", "100", "clip 100"} <= {text.text for text in root.iter(f"{NS}text")}
    assert "clipped at 100 in 0 of 3 records" in norms.caption
    assert rates.caption == "training: step size"
    _, free, _ = figures.learning_curves(history, "mrr", "training", None, 0.0)
    assert 'class="rule"' not in free.svg
    _, above, _ = figures.learning_curves(history, "mrr", "training", None, 0.5)
    assert "clipped at 0.5 in 2 of 3 records" in above.caption


def test_gains_count_every_user_once() -> None:
    of, against = np.array([0.5, 0.5, 0.2, 0.4, 0.0]), np.array([0.1, 0.5, 0.5, 0.1, 1.0])
    picture = figures.gains(of, against, ("fewshot", "control"), "mrr")
    assert picture.caption == "better for 2 users (40 %), equal for 1 (20 %), worse for 2 (40 %)"
    titles = [title.text or "" for title in parsed(picture.svg).iter(f"{NS}title")][1:]
    counts = [int(title.split()[0]) for title in titles]
    assert sum(counts) == 5
    bars = list(parsed(picture.svg).iter(f"{NS}rect"))
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == pytest.approx([max(heights) / max(counts) * count for count in counts], abs=0.2)
    zero = svg.LEFT + (svg.WIDTH - svg.RIGHT - svg.LEFT) / 2
    for bar in bars:
        middle = float(bar.attrib["x"]) + float(bar.attrib["width"]) / 2
        expected = "s7" if abs(middle - zero) < 1 else "s0" if middle > zero else "s1"
        assert bar.attrib["class"] == f"bar {expected}"
    nothing = figures.gains(against, against, ("fewshot", "control"), "mrr")
    assert "equal for 5 (100 %)" in nothing.caption


def test_a_method_keeps_its_style() -> None:
    assert figures.styles(["markov", "control", "fewshot"])["fewshot"] == figures.styles(["fewshot"])["fewshot"]
    many = figures.styles(["control", "fewshot", "pretrained", "a", "b", "c", "d", "e"])
    assert len(set(many.values())) == 8


def test_markup_is_escaped_unless_it_is_markup() -> None:
    assert el("td", "<b>", Markup("<i/>"), scope="a\"b'c") == '<td scope="a&quot;b&#39;c">&lt;b&gt;<i/></td>'
    assert el("td") == "<td></td>"
    assert el("br") == "<br/>"
    assert el("rect", stroke_width=2, class_="a", x=None) == '<rect stroke-width="2" class="a"/>'
    assert escape("a\x00\x1b\ud800b") == "a\ufffd\ufffd\ufffdb"
