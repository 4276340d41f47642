"""A table on a terminal loses nothing: what is too wide goes on below, each row named again."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from metarec.report.sheet import Sheet, rich_table


def printed(sheet: Sheet, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(rich_table(sheet))
    return captured.get()


def wide(n_columns: int) -> Sheet:
    cells = [[f"row {r}", *((f"{r}.{c:03d}", f"[{r}, {c}]") for c in range(n_columns))] for r in range(3)]
    return Sheet("A caption", ["method", *(f"figure {c}" for c in range(n_columns))], cells)


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_every_cell_is_there_and_every_part_names_its_rows(width: int) -> None:
    text = printed(wide(12), width)
    assert all(f"{r}.{c:03d} [{r}, {c}]" in text for r in range(3) for c in range(12))
    parts = text.count("row 0")
    assert parts == text.count("row 2") == text.count("method")
    assert text.count("A caption") == 1
    assert max(map(len, text.splitlines())) <= width
    assert (parts == 1) == (width == 200)


def test_a_table_that_fits_is_one() -> None:
    text = printed(wide(3), 100)
    assert text.count("method") == 1
    assert re.search(r"row 1 +1\.000 \[1, 0\] +1\.001", text)
