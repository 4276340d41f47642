"""The twelve properties of episodes, over random logs through the real preparation: 20,000 examples each in full, 500 else.

The properties themselves are tests/data/test_properties.py and, of the sampler, tests/data/test_splits.py, run with
METAREC_PROPERTY_EXAMPLES. They are drawn in parts of PART examples with a seed each, and a part that is finished is not done
again: all of it takes hours.
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
AT_ONCE = 2


def names() -> list[str]:
    """The tests that are properties, and that of property 12."""
    found = PROPERTY.findall((HERE / "data/test_properties.py").read_text())
    return [f"data/test_properties.py::{name}" for name in found] + ["data/test_splits.py"]


def falsified(test: str, examples: int, seed: int) -> list[str]:
    """The last lines of a test that fails with so many examples of a seed; none where it holds."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / test.partition("::")[0]), "-k",
         test.partition("::")[2] or "sampler", f"--hypothesis-seed={seed}"],
        cwd=HERE.parent, env=os.environ | {"METAREC_PROPERTY_EXAMPLES": str(examples)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return [] if done.returncode == 0 else done.stdout.splitlines()[-12:]


def part(test: str, examples: int, seed: int, out: Path) -> dict[str, Any]:
    """What is found in one part, from `out` where it was measured before."""
    done = out / f"{re.sub(r'[^A-Za-z0-9_]', '-', test)}-{seed}.json"
    if not done.exists():
        began = time.monotonic()
        found = falsified(test, examples, seed)
        told = {"found": found, "examples": examples, "seconds": round(time.monotonic() - began, 1)}
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
        tried, took = sum(told["examples"] for told in its), sum(told["seconds"] for told in its)
        measured = f"{'falsified' if found else '0 falsified'} of {tried:,}, {took:,.0f} s"
        figures.append({"what": test, "asked": f"{examples:,} examples, 0 falsified", "measured": measured,
                        "kept": not found, "first": found})  # fmt: skip
    return {"figures": figures}
