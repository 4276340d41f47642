"""The formats that an event log is read in: dataset.format -> the file of this folder that holds its `READER`.

A new format is one such file and one line here (docs/new_format.md). Nothing is imported before a log is opened: the
configuration takes its choices from here, and answers before an engine is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metarec.data.formats.reader import Reader

FORMATS = {  # the most usual first: what plain text is taken for where nothing says more
    "csv": "csv_text",
    "parquet": "parquet",
    "jsonl": "json_lines",
}


def reader_of(name: str) -> Reader:
    """The reader of the format ``name``, a key of FORMATS."""
    found: Reader = importlib.import_module(f"{__name__}.{FORMATS[name]}").READER
    return found


def readers() -> dict[str, Reader]:
    """All of them, in the order of FORMATS."""
    return {name: reader_of(name) for name in FORMATS}
