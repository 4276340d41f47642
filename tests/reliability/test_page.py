"""The table of docs/results/reliability.md: every driver stands under a promise, every figure has its row."""

from __future__ import annotations

import re
from pathlib import Path

from reliability.__main__ import drivers
from reliability.figures import figure
from reliability.page import PROMISES, numbers, table

PAGE = Path(__file__).parents[2] / "docs/results/reliability.md"


def test_every_driver_measures_a_promise_and_every_promise_is_measured() -> None:
    assert {name for _, names in PROMISES for name in names} == set(drivers())
    assert len(PROMISES) == 12
    assert numbers("save_path") == [4, 8]


def test_what_was_asked_stands_beside_what_was_measured() -> None:
    locks = {"full": True, "command": "python -m tests.reliability locks", "seconds": 12.4,
             "figures": [figure("8 starts", 1, "1 | 1", True), figure("refusals", 7, 6, False)]}  # fmt: skip
    soak = {"full": False, "command": "x", "seconds": 3.0, "figures": [figure("steps", 20_000, 400, True)]}
    told = table({"locks": locks, "soak": soak}).splitlines()
    assert "| 9 | No two writers, `locks` | 8 starts | 1 | 1 \\| 1 | yes |" in told
    assert "| 9 | No two writers, `locks` | refusals | 7 | 6 | **no** |" in told
    assert "| 12 | It lasts, `soak` (quick) | steps | 20,000 | 400 | yes |" in told
    assert "| 3 | No leakage, `properties` | | | not measured | |" in told
    assert "| `python -m tests.reliability locks` | 12 |" in told


def test_the_page_has_all_twelve() -> None:
    found = {int(number) for number in re.findall(r"^\| (\d+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)}
    assert found == set(range(1, 13))
