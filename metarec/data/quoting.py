"""Text, names and paths as they are written into the engine's SQL."""

from __future__ import annotations

import os
from pathlib import Path


def literal(text: str) -> str:
    """``text`` as a string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as the name of a column."""
    return '"' + name.replace('"', '""') + '"'


def engine_path(path: Path) -> str:
    """``path`` as the engine takes it for one file: [ * ? are a pattern to it, so they are bracketed."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in os.fspath(path))


def paths(files: list[Path]) -> str:
    """The list of ``files`` that a reading function of the engine takes."""
    return "[" + ", ".join(literal(engine_path(path)) for path in files) + "]"
