"""Numbers as the tables write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metarec import metrics

NOTHING = "-"  # a figure that does not exist, such as the interval of one user


def share(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """.4053 for 0.4053, +.0020 with a sign: the leading zero of a share is dropped, so that columns stay narrow."""
    if value is None:
        return NOTHING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def ends(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """[.391,.418], or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{share(low, 3, sign=sign)}, {share(high, 3, sign=sign)}]"


def p_value(value: float | None) -> str:
    """Three digits, "<.001" below that; a dash where there was no test."""
    return NOTHING if value is None else "<.001" if value < 0.001 else share(value, 3)


def number(value: object, digits: int = 3) -> str:
    """1,234 and 0.062; text as it is."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def per_cent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage, never "-0"; a dash where there is none."""
    return NOTHING if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def plain(value: object) -> str:
    """A value of a configuration as it would be typed: null, true, [1,2]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(plain(element) for element in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if str(value) else "''"


def listed(names: Sequence[str], most: int = 3) -> str:
    """a, b, c and 4 more."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def heading(metric: str, accuracy: str | None = None) -> str:
    """The name of a metric as the heading of its column; `accuracy`: what hr@1 is called there."""
    return accuracy if accuracy is not None and metric == "hr@1" else metrics.heading(metric)


def funnel_columns(steps: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the steps of a preparation count: of a log and of images, or of text."""
    of_text = bool(steps) and "examples" in steps[0]
    return (*(("examples", "domains", "tokens") if of_text else ("rows", "users", "items", "sessions")), "dropped")
