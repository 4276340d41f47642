"""A report as one HTML file that opens from disk: nothing is fetched, nothing runs.

The Content-Security-Policy allows the page's own style and nothing else: even markup that slipped past the escaping of
`report.markup` could load or run nothing. Folding is <details>; the charts are inline SVG.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metarec.report.blocks import Block, Card, Folded, Listing, Picture, Section, Text
from metarec.report.markup import Child, Markup, el, join
from metarec.report.sheet import Cell, Sheet
from metarec.report.style import style_sheet
from metarec.report.svg import swatch

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole file; the first section's blocks stand under the title, before the contents."""
    first, *rest = sections
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(style_sheet())),
    )
    body = el(
        "body",
        el("header", el("h1", title), *_blocks(first.blocks)),
        _contents(rest),
        el("main", *[_section(section, 2, f"s{number}") for number, section in enumerate(rest, 1)]),
        el("footer", el("p", footer)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _contents(sections: Sequence[Section]) -> Markup:
    links = [el("li", el("a", section.title, href=f"#s{number}")) for number, section in enumerate(sections, 1)]
    return el("nav", el("ul", *links), aria_label="Contents")


def _section(section: Section, level: int, name: str) -> Markup:
    below = [_section(one, level + 1, f"{name}-{number}") for number, one in enumerate(section.sections, 1)]
    return el("section", el(f"h{min(level, 4)}", section.title), *_blocks(section.blocks), *below, id=name)


def _blocks(blocks: Sequence[Block]) -> Iterator[Markup]:
    """The blocks; pictures that follow each other stand beside each other where there is room."""
    pictures: list[Picture] = []
    for block in [*blocks, None]:
        if isinstance(block, Picture):
            pictures.append(block)
            continue
        if pictures:
            yield el("div", *[_picture(one) for one in pictures], class_="pictures")
            pictures = []
        if block is not None:
            yield _block(block)


def _block(block: Block) -> Markup:
    match block:
        case Sheet():
            return _sheet(block)
        case Text():
            return el("p", block.text, class_=None if block.kind == "plain" else block.kind)
        case Card():
            pairs = [
                el("div", el("dt", name), el("dd", value), class_="warned" if name in block.warned else None)
                for name, value in block.pairs
            ]
            return el("dl", *pairs, class_="card")
        case Listing():
            return el("pre", block.text)
        case Folded():
            return el("details", el("summary", block.summary), *_blocks(block.blocks))
        case Picture():
            return _picture(block)


def _picture(picture: Picture) -> Markup:
    area = 'class="bar ' in picture.svg
    legend = [el("li", swatch(style, area=area), el("span", label)) for label, style in picture.legend]
    return el(
        "figure", picture.svg, el("ul", *legend, class_="legend") if legend else None, el("figcaption", picture.caption)
    )


def _sheet(sheet: Sheet) -> Markup:
    words = ["w" if place in sheet.words else None for place in range(len(sheet.columns))]
    heads = [el("th", name, scope="col", class_=word) for name, word in zip(sheet.columns, words, strict=True)]
    rows = []
    for number, (first, *rest) in enumerate(sheet.rows):
        cells = [el("td", *_cell(cell), class_=word) for cell, word in zip(rest, words[1:], strict=True)]
        strong = "strong" if number in sheet.strong else None
        rows.append(el("tr", el("th", *_cell(first), scope="row"), *cells, class_=strong))
    caption = el("caption", el("span", sheet.caption))
    table = el("table", caption, el("thead", el("tr", *heads)), el("tbody", *rows))
    scroll = el("div", table, class_="scroll", role="region", aria_label=sheet.caption, tabindex=0)
    notes = el("ul", *[el("li", note) for note in sheet.notes], class_="notes") if sheet.notes else None
    return join([scroll, notes])


def _cell(cell: Cell) -> list[Child]:
    if isinstance(cell, str):
        return [cell]
    return [cell[0], el("small", cell[1]) if cell[1] else None]
