"""The wheel that is built runs outside the checkout, with every YAML in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from metarec.config.paths import conf_dir


@pytest.mark.slow
def test_a_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("metarec-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    shipped = {f"metarec/conf/{path.relative_to(conf_dir()).as_posix()}" for path in conf_dir().rglob("*.yaml")}
    assert shipped <= names
    assert "metarec/py.typed" in names
    assert not {name for name in names if name.startswith(("tests/", "conf/"))}
    for words in (["--help"], ["train", "--cfg", "job"]):
        code = f"import sys; sys.path.insert(0, {str(site)!r}); import metarec.cli as c; sys.exit(c.main({words!r}))"
        found = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert found.returncode == 0, found.stderr
        assert "train" in found.stdout
