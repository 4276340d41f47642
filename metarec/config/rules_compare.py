"""Rules of `metarec compare` alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def variants_of_a_comparison(seen: Seen) -> Iterator[Refusal]:
    """Variants beside residuals, none at all, or a name that is no name of a directory."""
    variants = seen.get("variants")
    if variants is None:
        return
    if seen.get("residuals") is not None:
        yield "residuals", "variants say what is compared", "drop it, and give each residual as a variant"
    if not variants:
        yield "variants", "holds none", "give some, such as {r1: residual=lora residual.rank=1}"
    for name in variants:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            yield "variants", f"{name!r} is no name of a directory", "take letters, digits, ._+-"
