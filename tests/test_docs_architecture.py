"""docs/architecture.md says what is so: its examples are taken out of the page and run; its limits on files hold."""

from __future__ import annotations

import importlib
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.small_models import MODEL, weights
from reference.tiny_runs import Work, metrics, tiny

from metarec import build, cli, parts
from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.evaluate import Control

ROOT = Path(__file__).parent.parent
FILES = re.compile(r"^<!-- (?P<path>\S+) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PAGE = {found["path"]: found["body"] for found in FILES.finditer(TEXT)}
CONTROL = Control(0.1, 2, 0.0, [])


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, sources as if they lay in metarec, YAML in a directory for --config-dir."""
    root = tmp_path_factory.mktemp("page")
    for path, body in PAGE.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(body)
    rooms = [importlib.import_module(f"metarec.{room}") for room in ("algorithms", "residual")]
    for room in rooms:
        room.__path__.append(str(root / room.__name__.replace(".", "/")))
    yield root
    for room in rooms:
        room.__path__.remove(str(root / room.__name__.replace(".", "/")))
    for path in PAGE:
        sys.modules.pop(path.removesuffix(".py").replace("/", "."), None)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path, tmp_path / "cache")


def test_the_page_has_both_files_of_both_examples() -> None:
    assert list(PAGE) == [
        "metarec/algorithms/boil.py", "conf/algorithm/boil.yaml", "metarec/residual/bitfit.py", "conf/residual/bitfit.yaml",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("path", [path for path in PAGE if path.endswith(".py")])
def test_the_page_keeps_to_the_style(path: str, folder: Path) -> None:
    for words in (["check"], ["format", "--check"]):
        command = ["ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(folder / path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [("algorithm=boil", "residual=off"), ("algorithm=fomaml", "residual=bitfit")])
def test_a_whole_run(words: tuple[str, ...], folder: Path, work: Work) -> None:
    asked = work.words("train", *tiny(*words), "--config-dir", str(folder / "conf"))
    assert cli.main(asked) == 0
    (run,) = work.directories("train")
    assert {"pretrained", "control", "zeroshot", "fewshot"} <= set(metrics(run)["metrics"])
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]


def learner(algorithm: str, residual: str) -> Any:
    config, on = parts.default("algorithm", algorithm), parts.default("residual", residual)
    return build.algorithm(config, on, MODEL, CONTROL, outer_steps=10, support_share=0.5)


def test_what_adapts() -> None:
    every = set(MODEL.shapes())
    assert learner("boil", "off").inner.adapted == every - set(MODEL.head)
    vectors = {name for name, shape in MODEL.shapes().items() if len(shape) == 1}
    assert learner("fomaml", "bitfit").inner.adapted == vectors
    over = build.residual(parts.default("residual", "bitfit"), MODEL, weights())
    assert over.init(torch.Generator()).keys() == every


def test_options_are_checked_like_all_others(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.order: third: not a choice"):
        check_words("train", ["algorithm=boil", "algorithm.order=third"], config_dir=folder / "conf")
    config, off = parts.default("algorithm", "boil"), parts.default("residual", "off")
    config.inner.adapt = list(MODEL.head)[:1]
    with pytest.raises(ConfigError, match="nothing adapts but the head -- use residual=off"):
        build.algorithm(config, off, MODEL, CONTROL, outer_steps=1, support_share=0.5)


# The limits of the house


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short() -> None:
    sources = [lines_of(path) for path in (ROOT / "metarec").rglob("*.py")]
    tests = [lines_of(path) for path in (ROOT / "tests").rglob("*.py")]
    assert statistics.median(sources) <= 150
    every = [path for room in ("metarec", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    assert [path for path in every if lines_of(path) > 400] == []
    assert sum(tests) >= 0.8 * sum(sources)


def test_every_page_that_is_named_is_there() -> None:
    for name in re.findall(r"\]\(([\w./]+\.md)(?:#[\w-]+)?\)", TEXT):
        assert (ROOT / "docs" / name).is_file(), name
