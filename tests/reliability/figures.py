"""One measured promise, as the drivers give it and docs/results has it."""

from __future__ import annotations

from typing import Any


def figure(what: str, asked: object, measured: object, kept: bool) -> dict[str, Any]:
    """`asked` and `measured` as text or numbers that JSON can hold; `kept`: whether the promise was."""
    return {"what": what, "asked": asked, "measured": measured, "kept": bool(kept)}


def none_of(what: str, findings: list[str], tried: int, unit: str) -> dict[str, Any]:
    """A figure of which not one may be: `findings` are the cases in words, the first ones of which are told."""
    told = f"{len(findings)} of {tried} {unit}"
    return {**figure(what, f"0 of {tried} {unit}", told, not findings and tried > 0), "first": findings[:10]}
