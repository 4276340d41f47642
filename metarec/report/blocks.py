"""What a report is made of: sections of blocks, which `report.html` lays out and `report.pages` writes as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from metarec.report.markup import Markup
from metarec.report.sheet import Sheet


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` plain | lead | warning."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Card:
    """Names with their values; ``warned``: the names of those that a reader must not miss."""

    pairs: Sequence[tuple[str, str]]
    warned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Picture:
    """An SVG with a line beneath and what its styles stand for: (label, number of the style)."""

    svg: Markup
    caption: str
    legend: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Listing:
    """Text in which every line break counts."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Shown when asked for."""

    summary: str
    blocks: Sequence[Block]


Block = Sheet | Text | Card | Picture | Listing | Folded


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def section(title: str, *blocks: Block | None) -> Section | None:
    """The section of the blocks that there are; None where there is none."""
    found = [block for block in blocks if block is not None]
    return Section(title, found) if found else None
