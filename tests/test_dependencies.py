"""Dependencies: each has a lower bound, is known to the two commands that test and audit them, and is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from reliability import audit, lowest

ROOT = Path(__file__).parent.parent
GROUPS = lowest.wanted(lowest.told())
EVERY = sorted({line for lines in GROUPS.values() for line in lines})
PAGE = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")


def bound(line: str) -> str:
    """The version after >= by packaging's own grammar, which shares nothing with that of lowest.py."""
    (found,) = [one.version for one in Requirement(line).specifier if one.operator == ">="]
    return found


def test_no_group_is_forgotten() -> None:
    assert set(GROUPS) == {
        "build", "core", "plot", "sweep", "tensorboard", "mlflow", "wandb", "lm", "test", "fuzz", "dev",
    }  # fmt: skip
    assert len(GROUPS["core"]) == 11
    assert len(EVERY) == 33


@pytest.mark.parametrize("line", EVERY)
def test_it_has_a_lower_bound_that_the_command_takes_and_the_page_explains(line: str) -> None:
    name = Requirement(line).name
    assert lowest.lowest([line]) == ({name: bound(line)}, [])
    row = re.compile(rf"\| `{re.escape(name)}` +\| {re.escape(bound(line))} +\| \S")
    rows = [one for one in PAGE.splitlines() if row.match(one)]
    assert len(rows) == 1, f"docs/dependencies.md has no row for {name} {bound(line)}"


def test_none_is_dropped_in_silence() -> None:
    assert lowest.lowest(["numpy", "rich<16", "torch>=2.10,<3"]) == ({"torch": "2.10"}, ["numpy", "rich<16"])
    document = {
        "build-system": {"requires": ["b>=1"]},
        "project": {"dependencies": ["c"], "optional-dependencies": {"x": ["metarec[y]", "d>=2"], "y": ["e"]}},
    }
    assert lowest.wanted(document) == {"build": ["b>=1"], "core": ["c"], "x": ["d>=2"], "y": ["e"]}


def test_pinned_versions_lie_within_the_bounds() -> None:
    pinned = audit.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert len(pinned) == 37
    for line in EVERY:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        assert name in pinned or name == "atheris", f"{name} is not pinned in constraints.txt"  # no test needs atheris
        if name in pinned:
            assert Version(pinned[name]) in wanted.specifier
        assert audit.normal(wanted.name) == name


def test_files_of_the_smoke_test_are_there() -> None:
    assert [name for name in lowest.SMOKE if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("2.10", "2.10.0+cpu", True),
        ("6", "6.0", True),
        ("2.10", "2.1.0", False),
        ("2.1", "2.10.0", False),
        ("4", "not installed", False),
    ],
)
def test_same_version(one: str, other: str, alike: bool) -> None:
    assert lowest.same(one, other) is alike


def test_outcome_is_counted_from_the_xml(tmp_path: Path) -> None:
    file = tmp_path / "x.xml"
    file.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1" time="2.34">'
        '<testcase classname="a" name="good"/><testcase classname="a" name="two"/>'
        '<testcase classname="a" name="left"><skipped/></testcase>'
        '<testcase classname="b" name="bad"><failure/></testcase><testcase classname="b" name="worse"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert lowest.outcome(file) == {
        "passed": 2, "failed": 1, "errors": 1, "skipped": 1, "seconds": 2.3, "not_passed": ["b::bad", "b::worse"],
    }  # fmt: skip


VULNERABLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"], "description": "long"}
SAID = {
    "dependencies": [
        {"name": "A_b", "version": "1", "vulns": [VULNERABLE]},
        {"name": "c", "version": "1", "vulns": []},
        {"name": "d", "skip_reason": "not found"},
    ]
}


def test_what_pip_audit_says_is_read() -> None:
    looked, skipped = audit.read(SAID)
    one = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
    assert looked == {"a-b": {"findings": [one]}, "c": {"findings": []}}
    assert skipped == {"d": "not found"}


def test_a_service_that_fails_has_looked_at_nothing(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho 'Traceback' >&2; echo 'cannot reach it' >&2; exit 1\n")
    tool.chmod(0o755)
    assert audit.ask(str(tool), "osv", tmp_path) == ({"answered": False, "said": "cannot reach it"}, {}, {})
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps(SAID)}\nE\nexit 1\n")
    told, looked, skipped = audit.ask(str(tool), "osv", tmp_path)
    assert told == {"answered": True, "looked_at": 2, "skipped": 1}
    assert (sorted(looked), sorted(skipped)) == (["a-b", "c"], ["d"])


def test_the_document_of_a_project_answers_for_its_newest_release_only() -> None:
    gone = {"id": "PYSEC-2", "withdrawn": "2026-01-01"}

    def fetch(_: str) -> dict[str, Any]:
        return {"version": "2.0", "vulnerabilities": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fixed_in": ["3"]}, gone]}

    found, _ = audit.of_newest("x", "2.0", fetch)
    assert found == [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]
    found, why = audit.of_newest("x", "1.9", fetch)
    assert found is None
    assert "newest release only, which is 2.0" in why

    def fails(_: str) -> dict[str, Any]:
        raise OSError("no network")

    assert audit.of_newest("x", "2.0", fails) == (None, "the index's document of the project: OSError: no network")


def look(monkeypatch: pytest.MonkeyPatch, tells: bool) -> dict[str, Any]:
    """An audit of c, d and e: pip-audit answers for c; the index has d as its newest, e older than its newest."""
    known = [{"id": audit.CONTROL[2], "aliases": [], "fix_versions": []}] if tells else []
    newest: dict[str, Any] = {audit.CONTROL[0]: (known, ""), "d": ([], "newest"), "e": (None, "newest is 2")}
    answers = {"osv": ({"answered": False}, {}, {}), "pypi": ({"answered": True}, *audit.read(SAID))}
    monkeypatch.setattr(audit, "of_newest", lambda name, version: newest[name])
    monkeypatch.setattr(audit, "ask", lambda tool, service, file: answers[service])
    return audit.look({"c": "1", "d": "1", "e": "1"}, "tool")


def test_a_package_counts_as_looked_at_where_one_way_answered_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, tells=True)
    assert [one["by"] for one in found["packages"]] == ["pypi", "newest", None]
    assert found["packages"][1]["findings"] == []
    assert found["packages"][2]["skipped"] == {"index": "newest is 2"}


def test_an_index_that_does_not_tell_the_control_answers_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, tells=False)
    assert found["control"]["told"] is False
    assert [one["by"] for one in found["packages"]] == ["pypi", None, None]


def test_a_finding_is_explained_by_its_id_or_an_alias() -> None:
    one = {"name": "a", "version": "1", "findings": [VULNERABLE]}
    assert audit.unexplained([one], "nothing here") == ["a 1: PYSEC-1"]
    assert audit.unexplained([one], "CVE-1: not read here") == []
