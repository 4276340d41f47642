"""The twelve properties of episodes, over random logs through the real preparation: 20,000 examples each in full, 500 else.

The properties themselves are tests/data/test_properties.py, run with METAREC_PROPERTY_EXAMPLES. They are drawn in parts of
PART examples with a seed each, and a part that is finished is not done again: all of it takes an hour and a half on two
cores. What counts is the examples in which a property was looked at and held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "properties"
HERE = Path(__file__).resolve().parents[1]
FULL, QUICK, PART = 20_000, 500, 1_000
# properties that an example of a test may be looked at for: 10 and 11 not for every rule of the split
TESTS = {"test_1_to_11_of_one_log": ("1 to 7", "8 and 9", "10", "11"), "test_12_no_history": ("12",)}
AT_ONCE = 2


def tried(test: str, examples: int, seed: int, counts: Path) -> list[str]:
    """The last lines of a test that fails with so many examples of a seed; none where it holds. Writes `counts`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "data/test_properties.py"), "-k", test,
         f"--hypothesis-seed={seed}"],
        cwd=HERE.parent, capture_output=True, text=True, check=False,
        env=os.environ | {"METAREC_PROPERTY_EXAMPLES": str(examples), "METAREC_PROPERTY_COUNTS": str(counts)},
    )  # fmt: skip
    return [] if done.returncode == 0 else done.stdout.splitlines()[-12:]


def part(test: str, examples: int, seed: int, out: Path) -> dict[str, Any]:
    """What is found in one part, from `out` where it was measured before: {"found": lines of a failure, "checked": by
    property}."""
    done = out / f"{test}-{seed}.json"
    if not done.exists():
        began, half = time.monotonic(), done.with_suffix(".new")
        half.unlink(missing_ok=True)
        found = tried(test, examples, seed, half)
        checked = json.loads(half.read_text()) if half.exists() else {}
        half.write_text(json.dumps({"found": found, "checked": checked, "seconds": round(time.monotonic() - began, 1)}))
        half.rename(done)
    stored: dict[str, Any] = json.loads(done.read_text())
    return stored


def run(full: bool, out: Path) -> dict[str, Any]:
    """A figure for each property. Parts are added until every property was looked at in as many examples as are asked."""
    asked, figures = FULL if full else QUICK, []
    size = min(PART, asked)
    for test, properties in TESTS.items():
        parts: list[dict[str, Any]] = []
        with ThreadPoolExecutor(AT_ONCE if full else 1) as pool:
            while len(parts) < 2 * -(-asked // size) and not any(told["found"] for told in parts):
                lacks = asked - min(sum(told["checked"].get(name, 0) for told in parts) for name in properties)
                if lacks <= 0:
                    break
                seeds = range(len(parts), len(parts) + -(-lacks // size))
                parts += pool.map(lambda seed, of=test: part(of, size, seed, out), seeds)
        found = [line for told in parts for line in told["found"]]
        for name in properties:
            checked = sum(told["checked"].get(name, 0) for told in parts)
            measured = f"{'falsified' if found else '0 falsified'} of {checked:,}"
            figures.append({"what": f"property {name}", "asked": f"{asked:,} examples, 0 falsified",
                            "measured": measured, "kept": not found and checked >= asked, "first": found})  # fmt: skip
        took = sum(told["seconds"] for told in parts)
        print(f"  {test}: {len(parts)} parts, {took:,.0f} s", flush=True)
    return {"figures": figures}
