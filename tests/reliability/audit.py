"""Known vulnerabilities of what constraints.txt pins: pip-audit by each of its services, one JSON, one command.

    python tests/reliability/audit.py                  pip-audit, where it is installed, else in an environment of its own
    python tests/reliability/audit.py --installed      what this interpreter has, in place of constraints.txt
    python tests/reliability/audit.py --lowest         the lowest versions that pyproject.toml states

Services differ in what they know and in whether they can be reached, so all are asked, and a package counts as looked at
where one has answered for its very version. Where none has, the index's document of the project is read, which tells the
vulnerabilities of its newest release: an answer where that is the version asked for, and nothing where it is not. Whether
that document tells any at all is shown by a control, a package whose newest release is known to be vulnerable.

It writes OUT/audit.json (--out, outputs/reliability): services, control, packages with their findings, those that could
not be looked at and why. Exit code 1: a finding that docs/dependencies.md does not name; 2: nothing could be looked at.
Not a driver: it needs the network.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dependencies.md"
SERVICES = ("osv", "pypi")
INDEX = "https://pypi.org/pypi/{name}/json"
CONTROL = ("pycrypto", "2.6.1", "PYSEC-2017-94")  # its last release; no later one will mend it
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)")

Answers = dict[str, dict[str, Any]]


def normal(name: str) -> str:
    """The one spelling of a project's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Name -> version of the NAME==VERSION lines of a requirements file."""
    return {normal(match[1]): match[2] for line in text.splitlines() if (match := PIN.match(line.strip()))}


def read(document: dict[str, Any]) -> tuple[Answers, dict[str, str]]:
    """(name -> {"findings": ...} of what was looked at, name -> reason of what was not) of pip-audit's JSON."""
    looked, skipped = {}, {}
    for one in document["dependencies"]:
        name = normal(one["name"])
        if "skip_reason" in one:
            skipped[name] = one["skip_reason"]
        else:
            found = [{k: v[k] for k in ("id", "aliases", "fix_versions")} for v in one["vulns"]]
            looked[name] = {"findings": found}
    return looked, skipped


def ask(tool: str, service: str, requirements: Path) -> tuple[dict[str, Any], Answers, dict[str, str]]:
    """(what the service is worth here, what it looked at, what it skipped)."""
    command = [tool, "-s", service, "-r", str(requirements), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False, timeout=1800
    )
    try:
        looked, skipped = read(json.loads(done.stdout))
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"answered": False, "said": last[:400]}, {}, {}
    return {"answered": True, "looked_at": len(looked), "skipped": len(skipped)}, looked, skipped


def project(name: str) -> dict[str, Any]:
    """{"version", "vulnerabilities"} of the newest release, from the index's document of a project."""
    with urllib.request.urlopen(INDEX.format(name=name), timeout=30) as answer:
        document = json.load(answer)
    return {"version": document["info"]["version"], "vulnerabilities": document.get("vulnerabilities") or []}


def of_newest(
    name: str, version: str, fetch: Callable[[str], dict[str, Any]] = project
) -> tuple[list[Any] | None, str]:
    """(findings, how they are known), or (None, why they are not) where the newest release is another one."""
    try:
        newest = fetch(name)
    except (OSError, ValueError, KeyError) as error:
        return None, f"the index's document of the project: {type(error).__name__}: {error}"
    if newest["version"] != version:
        return None, f"the index tells vulnerabilities of the newest release only, which is {newest['version']}"
    found = [
        {"id": one["id"], "aliases": one.get("aliases", []), "fix_versions": one.get("fixed_in", [])}
        for one in newest["vulnerabilities"]
        if not one.get("withdrawn")
    ]
    return found, "the index's document of the project: the newest release"


def unexplained(packages: Sequence[dict[str, Any]], page: str) -> list[str]:
    """NAME VERSION: ID of the findings that a page names by neither id nor alias."""
    return [
        f"{one['name']} {one['version']}: {found['id']}"
        for one in packages
        for found in one["findings"]
        if not any(word in page for word in (found["id"], *found["aliases"]))
    ]


def pip_audit(home: Path) -> str:
    """Where pip-audit is: beside this interpreter, on the path, or newly installed in ``home``."""
    beside = Path(sys.executable).with_name("pip-audit")
    if beside.exists():
        return str(beside)
    if found := shutil.which("pip-audit"):
        return found
    venv.create(home, with_pip=True)
    subprocess.run([str(home / "bin" / "python"), "-m", "pip", "install", "-q", "pip-audit"], check=True)
    return str(home / "bin" / "pip-audit")


def chosen(asked: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """(what is looked at, name -> version)."""
    if asked.installed:
        every = {normal(one.metadata["Name"]): one.version.split("+")[0] for one in metadata.distributions()}
        return "this interpreter's packages", {name: every[name] for name in sorted(every) if name != "metarec"}
    if asked.lowest:
        sys.path.insert(0, str(ROOT / "tests"))
        from reliability import lowest

        groups = lowest.wanted(lowest.told())
        bounds, _ = lowest.lowest([line for group, lines in groups.items() if group != "dev" for line in lines])
        return "the lowest versions of pyproject.toml", {normal(name): version for name, version in bounds.items()}
    return "constraints.txt", pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


def look(wanted: dict[str, str], tool: str) -> dict[str, Any]:
    """Services, control and packages, by whichever way has answered for each."""
    with tempfile.TemporaryDirectory() as work:
        requirements = Path(work) / "requirements.txt"
        requirements.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()))
        answers = {service: ask(tool, service, requirements) for service in SERVICES}
    control, how = of_newest(*CONTROL[:2])
    tells = any(CONTROL[2] in (one["id"], *one["aliases"]) for one in control or [])
    packages = []
    for name, version in wanted.items():
        one: dict[str, Any] = {"name": name, "version": version, "findings": [], "by": None}
        by = [service for service in SERVICES if name in answers[service][1]]
        if by:
            every = {found["id"]: found for service in by for found in answers[service][1][name]["findings"]}
            one |= {"by": ", ".join(by), "findings": list(every.values())}
        else:
            found, said = of_newest(name, version) if tells else (None, f"the control was not told: {how}")
            reasons = {service: answers[service][2][name] for service in SERVICES if name in answers[service][2]}
            one |= {"by": said, "findings": found} if found is not None else {"skipped": {**reasons, "index": said}}
        packages.append(one)
    return {
        "services": {service: answers[service][0] for service in SERVICES},
        "control": {"package": f"{CONTROL[0]} {CONTROL[1]}", "asked": CONTROL[2], "told": tells},
        "packages": packages,
    }


def main() -> int:
    """Write the audit; 1 where a finding is not explained, 2 where nothing could be looked at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--installed", action="store_true", help="the packages of this interpreter")
    which.add_argument("--lowest", action="store_true", help="the lowest versions of pyproject.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "reliability")
    asked = parser.parse_args()
    what, wanted = chosen(asked)
    with tempfile.TemporaryDirectory() as work:
        tool = pip_audit(Path(work) / "pip-audit")
        version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        found = look(wanted, tool)
    skipped = [one for one in found["packages"] if one["by"] is None]
    open_ends = unexplained(found["packages"], PAGE.read_text(encoding="utf-8"))
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tool": version,
        "what": what,
        "packages_asked": len(wanted),
        "looked_at": len(wanted) - len(skipped),
        "not_looked_at": [f"{one['name']} {one['version']}" for one in skipped],
        "findings": sum(len(one["findings"]) for one in found["packages"]),
        "unexplained": open_ends,
        **found,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    name = "audit-installed" if asked.installed else "audit-lowest" if asked.lowest else "audit"
    path = asked.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for key, value in result.items():
        if key != "packages":
            print(f"{key}: {value}")
    print(path)
    return 2 if not result["looked_at"] else 1 if open_ends else 0


if __name__ == "__main__":
    raise SystemExit(main())
