"""The twelve properties of episodes, over random logs through the real preparation: 20,000 examples each in full, 500 else.

The properties themselves are tests/data/test_properties.py, run with METAREC_PROPERTY_EXAMPLES. They are drawn in parts of
PART examples with a seed each, and a part that is finished is not done again: all of it takes an hour and a half on two
cores. What counts is the examples that passed, as hypothesis tells them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "properties"
HERE = Path(__file__).resolve().parents[1]
FULL, QUICK, PART = 20_000, 500, 1_000
PROPERTY = re.compile(r"^def (test_(?:[1-9]|1[0-2])_\w+)\(", re.MULTILINE)
PASSED = re.compile(r"^ +- (\d+) passing, 0 failing", re.MULTILINE)
AT_ONCE = 2


def names() -> list[str]:
    """The tests that are properties."""
    return PROPERTY.findall((HERE / "data/test_properties.py").read_text())


def tried(test: str, examples: int, seed: int) -> tuple[int, list[str]]:
    """(examples that passed, the last lines of a test that fails) with so many examples of a seed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "data/test_properties.py"), "-k", test,
         f"--hypothesis-seed={seed}", "--hypothesis-show-statistics"],
        cwd=HERE.parent, env=os.environ | {"METAREC_PROPERTY_EXAMPLES": str(examples)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    passed = sum(int(number) for number in PASSED.findall(done.stdout))
    return passed, [] if done.returncode == 0 else done.stdout.splitlines()[-12:]


def part(test: str, examples: int, seed: int, out: Path) -> dict[str, Any]:
    """What is found in one part, from `out` where it was measured before."""
    done = out / f"{test}-{seed}.json"
    if not done.exists():
        began = time.monotonic()
        passed, found = tried(test, examples, seed)
        told = {"found": found, "examples": passed, "seconds": round(time.monotonic() - began, 1)}
        half = done.with_suffix(".new")
        half.write_text(json.dumps(told))
        half.rename(done)
    stored: dict[str, Any] = json.loads(done.read_text())
    return stored


def run(full: bool, out: Path) -> dict[str, Any]:
    """A figure for each property; every property has its first part before one has its second."""
    examples, figures = FULL if full else QUICK, []
    size = min(PART, examples)
    every = [(test, seed) for seed in range(examples // size) for test in names()]
    with ThreadPoolExecutor(AT_ONCE if full else 1) as pool:
        parts = list(pool.map(lambda one: part(one[0], size, one[1], out), every))
    for test in names():
        its = [told for (name, _), told in zip(every, parts, strict=True) if name == test]
        found = [line for told in its for line in told["found"]]
        passed, took = sum(told["examples"] for told in its), sum(told["seconds"] for told in its)
        measured = f"{'falsified' if found else '0 falsified'} of {passed:,}, {took:,.0f} s"
        figures.append({"what": test, "asked": f"{examples:,} examples, 0 falsified", "measured": measured,
                        "kept": not found and passed >= examples, "first": found})  # fmt: skip
    return {"figures": figures}
