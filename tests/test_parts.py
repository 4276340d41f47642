"""Parts: found by exact names, their options read without running their files, and the same as those of the files run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import metarec.algorithms
from metarec import parts
from metarec.config.fields import type_hints
from metarec.config.paths import conf_dir

ALL = [(group, name) for group in parts.ROOMS for name in parts.names(group)]


@pytest.mark.parametrize(("group", "name"), ALL)
def test_options_are_those_of_the_file_run(group: str, name: str) -> None:
    read, run = parts.options(group, name), parts.load(group, name).Config
    assert read is not None
    assert dataclasses.asdict(read()) == dataclasses.asdict(run())
    assert [(f.name, f.type, f.metadata) for f in dataclasses.fields(read)] == [
        (f.name, f.type, f.metadata) for f in dataclasses.fields(run)
    ]
    assert type_hints(read).keys() == type_hints(run).keys()
    assert read().name == name
    assert (conf_dir() / group / f"{name}.yaml").is_file()
    assert callable(parts.load(group, name).build)


def test_options_are_read_without_what_a_part_computes_with() -> None:
    """Help and refusals name every option of every part, and torch and numpy are not there."""
    program = (
        "import sys; from metarec import parts\n"
        "assert all(parts.options(g, n)() for g in parts.ROOMS for n in parts.names(g))\n"
        "print(sorted({'torch', 'numpy', 'hydra'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["inner", "Maml", "maml.py", "../algorithms/maml", "metarec.algorithms.maml", "os", ""]
)
def test_only_a_part_s_exact_name_finds_one(name: str) -> None:
    assert parts.options("algorithm", name) is None


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    metarec.algorithms.__path__.append(str(tmp_path))
    yield tmp_path
    metarec.algorithms.__path__.remove(str(tmp_path))


def test_what_a_config_is_made_of(folder: Path) -> None:
    (folder / "own.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from metarec.options import Inner, ranged\n"
        "import a_library_that_is_not_there\n"
        "WAYS = ('one', 'two')\n"
        "RAN = a_library_that_is_not_there.run()\n\n\n"
        "@dataclass\nclass Section(Inner):\n    way: str = ranged('one', choices=WAYS)\n\n\n"
        "@dataclass\nclass Config:\n    name: str = 'own'\n    inner: Section = field(default_factory=Section)\n"
    )
    assert "own" in parts.names("algorithm")
    assert parts.default("algorithm", "own").inner.way == "one"


def test_what_a_config_may_not_be_made_of_is_said(folder: Path) -> None:
    (folder / "own.py").write_text(
        "from dataclasses import dataclass\nfrom os import getcwd\n\n\n"
        "@dataclass\nclass Config:\n    name: str = 'own'\n    where: str = getcwd()\n"
    )
    with pytest.raises(ImportError, match=r"own\.py: Config uses getcwd, which is neither a literal constant"):
        parts.options("algorithm", "own")
