"""Elements of HTML and SVG as text that is always well-formed and always escaped.

`el("td", name)` escapes `name`; only what `el` and `join` return, `Markup`, goes in as it stands. Everything is written
as XML (empty elements closed), so that a browser and an XML parser read the same tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# elements of SVG, and of HTML where it has no end tag, that are closed when empty; a browser reads <td/> as a <td> without
# end, so all others get their end tag
_CLOSED = {"meta", "br", "hr", "line", "path", "rect", "circle", "polyline", "polygon"}
# what XML 1.0 has no way to write: control characters, lone surrogates, the two non-characters
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | float | None


def escape(text: object) -> Markup:
    """`text` as it must stand in markup, inside elements and inside quoted attributes."""
    if isinstance(text, Markup):
        return text
    return Markup(_UNWRITABLE.sub("\ufffd", str(text)).translate(_ESCAPES))


def el(name: str, /, *children: Child, **attributes: object) -> Markup:
    """The element `name`. An attribute `class_` is class, `stroke_width` is stroke-width; None leaves it out.

    >>> el("td", "a < b", scope="row")
    '<td scope="row">a &lt; b</td>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = join(children)
    if not inner and name in _CLOSED:
        return Markup(f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{inner}</{name}>")


def join(parts: Iterable[Child]) -> Markup:
    """The parts one after the other, each escaped unless it is markup; None is nothing."""
    return Markup("".join(escape(part) for part in parts if part is not None))
