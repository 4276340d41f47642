"""docs/new_format.md says what is so: a file and a line, taken out of the page, are all that a new format needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metarec
from metarec.config.paths import conf_dir
from metarec.data.store import ARRAYS

ROOT = Path(__file__).parent.parent
FILES = re.compile(r"^<!-- (?P<path>\S+) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = {found["path"]: found["body"] for found in FILES.finditer((ROOT / "docs/new_format.md").read_text())}
SOURCE, REGISTRY, TEST = (
    "metarec/data/formats/logfmt.py",
    "metarec/data/formats/__init__.py",
    "tests/data/test_logfmt.py",
)
LAST = '    "jsonl": "json_lines",\n'  # of the registry as it is


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the page's parts in it, apart from this one."""
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(Path(metarec.__file__).parent, root / "metarec", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_dir(), root / "conf", dirs_exist_ok=True)
    for path in (SOURCE, TEST):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(PAGE[path])
    registry = (root / REGISTRY).read_text()
    assert registry.count(LAST) == 1
    (root / REGISTRY).write_text(registry.replace(LAST, LAST + PAGE[REGISTRY]))
    return root


def python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def prepare(copy: Path, *words: str) -> str:
    """Everything that the command says."""
    done = python(copy, "-m", "metarec", "prepare", "dataset=events", *words, f"cache_dir={copy / 'cache'}")
    return done.stdout + done.stderr


def test_the_page_has_a_file_a_line_and_a_test() -> None:
    assert list(PAGE) == [SOURCE, REGISTRY, TEST]
    assert PAGE[REGISTRY].count("\n") == 1


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_the_page_keeps_to_the_style(copy: Path) -> None:
    for words in (["check"], ["format", "--check"]):
        command = ["ruff", *words, "--no-cache", "--config", str(ROOT / "pyproject.toml"), *PAGE]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_metarec_prepare_reads_it(copy: Path) -> None:
    """The arrays are those of the same log as CSV."""
    events = [(f"u{n % 40}", f"i{n * 7 % 11}", 1_600_000_000 + 9 * n) for n in range(800)]
    (copy / "log.logfmt").write_text("".join(f"item_id={i} timestamp={t} user_id={u} x=1\n" for u, i, t in events))
    (copy / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))
    shape = ("dataset.split.by=user_disjoint", "dataset.episodes.n_support=2", "dataset.episodes.n_query=2")
    for name in ("log.csv", "log.logfmt"):
        said = prepare(copy, f"dataset.path={name}", *shape)
        assert "800 rows" in said, said
    one, two = (path for path in (copy / "cache/prepared").iterdir() if path.is_dir())
    for name in (*(f"{array}.npy" for array in ARRAYS), "users.parquet", "items.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(np.load(one / "item.npy")) == 800


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dataset.format=logfmd", "did you mean logfmt? choose auto|csv|parquet|jsonl|logfmt"),
        ("dataset.path=x.logfmt dataset.format=logfmt dataset.delimiter=tab", "a logfmt file has no delimiter"),
        ("dataset.path=x.orc", "an ORC file: not a kind of file that is read here -- give logfmt, JSON lines, CSV,"),
        ("dataset.path=conf dataset.format=logfmt", "logfmt is read from one file"),
    ],
)
def test_what_is_said_elsewhere_follows(copy: Path, words: str, said: str) -> None:
    (copy / "x.orc").write_bytes(b"ORC" + b"x" * 40)
    assert said in prepare(copy, *words.split())


def test_the_test_of_the_page_passes(copy: Path) -> None:
    done = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
