"""The twelve properties of episodes, over random logs through the real preparation: 20,000 examples each in full, 500 else.

The properties themselves are tests/data/test_properties.py and, of the sampler, tests/data/test_splits.py, run with
METAREC_PROPERTY_EXAMPLES; one test at a time, so that what is finished is not done again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAME = "properties"
HERE = Path(__file__).resolve().parents[1]
FULL, QUICK = 20_000, 500
PROPERTY = re.compile(r"^def (test_(?:[1-9]|1[0-2])_\w+)\(", re.MULTILINE)


def names() -> list[str]:
    """The tests that are properties, and that of property 12."""
    found = PROPERTY.findall((HERE / "data/test_properties.py").read_text())
    return [f"data/test_properties.py::{name}" for name in found] + ["data/test_splits.py"]


def falsified(test: str, examples: int) -> list[str]:
    """The last lines of a test that fails with so many examples; none where it holds."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / test.partition("::")[0]), "-k",
         test.partition("::")[2] or "sampler"],
        cwd=HERE.parent, env=os.environ | {"METAREC_PROPERTY_EXAMPLES": str(examples)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return [] if done.returncode == 0 else done.stdout.splitlines()[-12:]


def run(full: bool, out: Path) -> dict[str, Any]:
    """A figure for each property."""
    examples, figures = FULL if full else QUICK, []
    for test in names():
        done = out / f"{re.sub(r'[^A-Za-z0-9_]', '-', test)}.json"
        if not done.exists():
            began = time.monotonic()
            found = falsified(test, examples)
            done.write_text(json.dumps({"found": found, "seconds": round(time.monotonic() - began, 1)}))
        stored = json.loads(done.read_text())
        measured = f"{'falsified' if stored['found'] else '0 falsified'}, {stored['seconds']} s"
        figures.append({"what": test, "asked": f"{examples:,} examples, 0 falsified", "measured": measured,
                        "kept": not stored["found"], "first": stored["found"]})  # fmt: skip
    return {"figures": figures}
