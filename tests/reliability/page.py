"""docs/results/reliability.md's table from what the drivers measured: number asked, number measured, command.

python -m tests.reliability          writes OUT/reliability.md behind OUT/reliability.json
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROMISES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("No file can run code", ("hostile",)),
    ("Numbers are never silently wrong", ("not_finite",)),
    ("No leakage", ("properties",)),
    ("`kill -9` anywhere, the same answer", ("kill_anywhere", "save_path", "broken_save_path")),
    ("Damage is detected", ("damage",)),
    ("Bad input gets one clear line", ("bad_inputs", "fuzz")),
    ("Deterministic by contract", ("determinism",)),
    ("Full disk, lost permission, signals", ("signals", "save_path")),
    ("No two writers", ("locks",)),
    ("A sweep survives its jobs", ("sweep_jobs",)),
    ("Workers may die", ("workers",)),
    ("It lasts", ("soak",)),
)  # in the order of their numbers, from 1


def numbers(driver: str) -> list[int]:
    """Of the promises that a driver measures."""
    return [number for number, (_, names) in enumerate(PROMISES, 1) if driver in names]


def table(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row a figure, of driver -> its document; one that was not measured in full says so."""
    lines = ["| # | promise | figure | asked | measured | kept |", "|---|---|---|---|---|---|"]
    told: set[str] = set()
    for number, (promise, names) in enumerate(PROMISES, 1):
        for name in names:
            document, at = documents.get(name), f"{number} | {promise}, `{name}`"
            if name in told:
                lines.append(f"| {at} | as under {numbers(name)[0]} | | | |")
            elif document is None:
                lines.append(f"| {at} | | | not measured | |")
            else:
                size = "" if document["full"] else " (quick)"
                lines += [
                    f"| {at}{size} | {cell(one['what'])} | {cell(one['asked'])} | {cell(one['measured'])} "
                    f"| {'yes' if one['kept'] else '**no**'} |"
                    for one in document["figures"]
                ]
            told.add(name)
    rows = [
        f"| `{document['command']}` | {document['seconds']:,.0f} |"
        for name, document in documents.items()
        if numbers(name)
    ]
    return "\n".join([*lines, "", "| command | seconds |", "|---|---|", *rows]) + "\n"


def cell(value: object) -> str:
    """As it stands in a table."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
