"""The lowest versions that pyproject.toml states, in an environment of their own, with a smoke test: one command.

    python tests/reliability/lowest.py [DIRECTORY]         a venv there (a temporary one), with NAME==LOWEST of each
                                                           dependency that states a lower bound, and a part of the suite

What the package index does not have is told by pip, which then ends with its own exit code. Not a driver: it needs the
network, and minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = (
    "tests/config/test_schema.py", "tests/config/test_overrides.py", "tests/data/test_source.py",
    "tests/runs/test_checkpoint.py", "tests/data/test_prepare.py", "tests/core/test_ops.py", "tests/verbs/test_train.py",
)  # fmt: skip
BOUND = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9A-Za-z.]*)")


def lowest(requirements: list[str]) -> tuple[list[str], list[str]]:
    """(NAME==LOWEST of those with a lower bound, the others as they are)."""
    pinned = [f"{found[1]}=={found[2]}" for line in requirements if (found := BOUND.match(line))]
    return pinned, [line for line in requirements if BOUND.match(line) is None]


def main() -> int:
    """Make the environment, install, and run the smoke test; the exit code of the first that fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned, free = lowest(project["dependencies"])
    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="metarec-lowest-"))
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    print(f"{home}: {' '.join(pinned)}; without a bound: {' '.join(free) or 'none'}", flush=True)
    tools = ["pytest>=8", "hypothesis", "scipy"]
    for command in (
        [python, "-m", "pip", "install", "-q", *pinned, *free, *tools],
        [python, "-m", "pip", "install", "-q", "--no-deps", "-e", str(ROOT)],
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SMOKE],
    ):
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            print(f"failed with {code}: {' '.join(command[:6])} ...", flush=True)
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
