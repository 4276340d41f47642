"""The lowest versions that pyproject.toml states, in an environment of their own, with a part of the suite: one command.

    python tests/reliability/lowest.py [DIRECTORY]        a venv there (a temporary one), NAME==LOWEST of each dependency,
                                                          of the extras that users have and of what the tests need
    python tests/reliability/lowest.py --torch 2.13.0     that torch instead, and the result says so: where the lowest one
                                                          is not to be had, or only with several GB of CUDA beside it

It writes OUT/lowest.json (--out, outputs/reliability): what was asked, everything that was installed, where the two
differ, the tests by outcome, the names of those that failed. Exit code: that of the first command that failed, 2 where a
dependency states no lower bound. Not a driver: it needs the network, and minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
NOT_TESTED = ("dev", "fuzz")  # linters, types, a fuzzer: no part of the suite needs them
SMOKE = (
    "tests/config/test_schema.py", "tests/config/test_overrides.py", "tests/config/test_own_files.py",
    "tests/config/test_search.py",
    "tests/data/test_source.py", "tests/data/test_prepare.py", "tests/data/test_bad_input.py", "tests/data/test_formats.py",
    "tests/data/test_json_lines.py", "tests/data/test_export.py", "tests/data/test_cache.py", "tests/data/test_tables.py",
    "tests/core", "tests/metrics",
    "tests/algorithms/test_fomaml.py", "tests/algorithms/test_inner.py", "tests/algorithms/test_generator.py",
    "tests/models/test_causal_lm.py",
    "tests/runs/test_checkpoint.py", "tests/runs/test_legacy.py", "tests/runs/test_lock.py", "tests/runs/test_adapters.py",
    "tests/report/test_tables.py", "tests/report/test_markdown.py", "tests/report/test_plots.py",
    "tests/trackers", "tests/verbs/test_train.py", "tests/verbs/test_storage.py",
)  # fmt: skip
BOUND = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9A-Za-z.]*)")
OWN = re.compile(r"^metarec\[([^]]*)\]$")


def lowest(requirements: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({name: lowest version} of those with a lower bound, the others as they are)."""
    found = {match[1]: match[2] for line in requirements if (match := BOUND.match(line))}
    return found, [line for line in requirements if BOUND.match(line) is None]


def wanted(document: dict[str, Any]) -> dict[str, list[str]]:
    """Group -> requirements of a pyproject.toml: `build`, `core`, each extra; metarec's own extras are named by no extra."""
    project = document["project"]
    groups = {"build": document["build-system"]["requires"], "core": project["dependencies"]}
    groups |= project.get("optional-dependencies", {})
    return {group: [line for line in lines if not OWN.match(line)] for group, lines in groups.items()}


def told() -> dict[str, Any]:
    """This checkout's pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def same(one: str, other: str) -> bool:
    """Whether two versions are one but for zeros at the end and a build's own word: 2.10 = 2.10.0+cpu."""
    return re.sub(r"(\.0)+$", "", one.split("+")[0]) == re.sub(r"(\.0)+$", "", other.split("+")[0])


def outcome(report: Path) -> dict[str, Any]:
    """Tests by outcome, and the names of those that failed, from pytest's XML."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "passed": count["tests"] - count["failures"] - count["errors"] - count["skipped"],
        "failed": count["failures"], "errors": count["errors"], "skipped": count["skipped"],
        "seconds": round(float(suite.get("time", 0)), 1),
        "not_passed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
    }  # fmt: skip


def installed(python: str) -> dict[str, str]:
    """Name -> version of everything in the environment."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True, env=alone()
    )
    return {one["name"]: one["version"] for one in json.loads(listed.stdout)}


def alone() -> dict[str, str]:
    """The environment's variables without those by which another environment's packages would be found."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") and key != "VIRTUAL_ENV"}


def main() -> int:
    """Make the environment, install, and run the tests; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", nargs="?", type=Path, help="of the environment; none = a temporary one, which stays"
    )
    parser.add_argument("--torch", help="this version of torch in place of the lowest")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "reliability")
    asked = parser.parse_args()
    groups = {group: lines for group, lines in wanted(told()).items() if group not in NOT_TESTED}
    bounds, free = lowest([line for lines in groups.values() for line in lines])
    if free:
        print(f"pyproject.toml: no lower bound: {', '.join(free)} -- state the lowest version that passes", flush=True)
        return 2
    take = {**bounds, "torch": asked.torch or bounds["torch"]}
    home = asked.directory or Path(tempfile.mkdtemp(prefix="metarec-lowest-"))
    asked.out.mkdir(parents=True, exist_ok=True)
    report = asked.out / "lowest.xml"
    report.unlink(missing_ok=True)
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    pins = [f"{name}=={version}" for name, version in take.items()]
    print(f"{home}: {' '.join(pins)}", flush=True)
    began, code = time.monotonic(), 0
    for command in (
        [python, "-m", "pip", "install", "-q", *pins, "editables"],  # by which hatchling installs a checkout in place
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)],
        [python, "-m", "pip", "check"],
        [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}", *SMOKE],
    ):
        if code := subprocess.run(command, cwd=ROOT, check=False, env=alone()).returncode:
            print(f"failed with {code}: {' '.join(command[:6])} ...", flush=True)
            break
    has = installed(python)
    by_name = {name.lower().replace("_", "-"): version for name, version in has.items()}
    got = {name: by_name.get(name.lower().replace("_", "-")) for name in bounds}
    differ = {name: got[name] for name, version in bounds.items() if not same(version, got[name] or "not installed")}
    result = {
        "exit_code": code,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "torch_asked": asked.torch,
        "lowest": bounds,
        "tested_with": got,
        "not_the_lowest": differ,
        "tests": outcome(report) if report.exists() else None,
        "files": list(SMOKE),
        "seconds": round(time.monotonic() - began, 1),
        "installed": has,
    }
    (asked.out / "lowest.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    report.unlink(missing_ok=True)
    told_as = {key: value for key, value in (result["tests"] or {}).items() if key != "not_passed"}
    print(f"not the lowest: {differ or 'none'}; tests: {told_as or 'not run'}; {asked.out / 'lowest.json'}", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
