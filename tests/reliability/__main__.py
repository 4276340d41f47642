"""What metarec promises of its reliability, measured: `make reliability`, or the same by hand.

    python -m tests.reliability                   every driver in full; hours on a busy machine, and it can be stopped:
    python -m tests.reliability                   ... what is finished is not done again, what is half done goes on
    python -m tests.reliability --quick           the sizes that the test suite runs
    python -m tests.reliability kill_anywhere     one driver
    python -m tests.reliability --again soak      from the beginning

A driver is a module of this directory with `NAME`, and `run(full, out)` that returns {"figures": [...]} of
`figures.figure`: what was asked, what was measured, whether it was kept. `out` is a directory of its own, which stays
until the driver is done. Each writes OUT/NAME.json, all together OUT/reliability.json and its table, reliability.md. Exit
code 1: a promise not kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # as pytest has it: `reliability.NAME` and `reference.NAME`


def drivers() -> dict[str, ModuleType]:
    """NAME -> module of every driver in this directory."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.name.startswith(("_", "test_")):
            continue
        module = importlib.import_module(f"reliability.{path.stem}")
        if hasattr(module, "NAME") and hasattr(module, "run"):
            found[module.NAME] = module
    return found


def environment() -> dict[str, Any]:
    """What the figures were measured on, as a run's own card says it, less its time and its command."""
    import torch  # noqa: F401  # so that its threads are told

    from metarec.runs.environment import capture

    return {key: value for key, value in capture().items() if key not in ("started", "command")}


def measure(module: ModuleType, out: Path, *, full: bool, again: bool) -> dict[str, Any]:
    """The document of a driver, from OUT where it is finished."""
    name: str = module.NAME
    done, work = out / f"{name}.json", out / f"{name}.{'full' if full else 'quick'}"
    if done.exists() and not again:
        found: dict[str, Any] = json.loads(done.read_text())
        if found["full"] == full:
            print(f"{name}: measured before, {done}", flush=True)
            return found
    if again:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
    began = time.monotonic()
    result = module.run(full, work)
    document = {
        "driver": name,
        "full": full,
        "command": f"python -m tests.reliability {'' if full else '--quick '}{name}",
        **result,
        "seconds": round(time.monotonic() - began, 1),
        "environment": environment(),
    }
    done.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return document


def show(document: dict[str, Any]) -> None:
    """One line a figure."""
    for one in document["figures"]:
        verdict = "kept" if one["kept"] else "NOT KEPT"
        print(f"  {verdict:8}  {one['what']}: {one['measured']} (asked: {one['asked']})", flush=True)


def main() -> int:
    """The exit code: 1 where a promise was not kept."""
    from reliability import page

    every = drivers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("driver", nargs="*", help=f"which; none = all of {', '.join(every)}")
    parser.add_argument("--quick", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument(
        "--out", type=lambda word: Path(word).absolute(), default=HERE.parents[1] / "outputs" / "reliability"
    )
    asked = parser.parse_args()
    unknown = [name for name in asked.driver if name not in every]
    if unknown:
        parser.error(f"no driver {unknown[0]}: {', '.join(every)}")
    kept = True
    for name in asked.driver or every:
        document = measure(every[name], asked.out, full=not asked.quick, again=asked.again)
        show(document)
        kept &= all(one["kept"] for one in document["figures"])
    paths = {name: asked.out / f"{name}.json" for name in every}
    documents = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    (asked.out / "reliability.json").write_text(json.dumps([*documents.values()], indent=2, allow_nan=False) + "\n")
    (asked.out / "reliability.md").write_text(page.table(documents))
    print(f"figures in {asked.out / 'reliability.json'}, as a table in reliability.md")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
