"""docs/baselines.md, "A row of your own": its two files are taken out of the page; with one line they are a row."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference.small_documents import PANEL, document
from reference.tiny_runs import Work, metrics

from metarec import baselines
from metarec.baselines import BASELINES, NAMES
from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.report.labels import groups
from metarec.report.tables import plain_text, results_table
from metarec.verbs.panel import rows_of

ROOT = Path(__file__).parent.parent
FILES = re.compile(r"^<!-- (?P<path>\S+) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = (ROOT / "docs/baselines.md").read_text()
PAGE = {found["path"]: found["body"] for found in FILES.finditer(TEXT)}
ROW, TEST = "metarec/baselines/association.py", "tests/baselines/test_association.py"
# the page's row, and the same for logs that no run of a test has
OWN = {
    "association": PAGE[ROW],
    "timed": PAGE[ROW].replace("association", "timed").replace("label=", "needs_clock=True, label="),
    "narrow": PAGE[ROW].replace("association", "narrow").replace("label=", "max_items=29, in_full=False, label="),
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files, as if they lay in metarec/baselines and tests, and a line for each row."""
    root = tmp_path_factory.mktemp("page")
    for path, body in {**PAGE, **{f"metarec/baselines/{name}.py": text for name, text in OWN.items()}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(body)
    patch = pytest.MonkeyPatch()
    patch.setattr(baselines, "__path__", [*baselines.__path__, str(root / "metarec/baselines")])
    for name in OWN:
        patch.setitem(NAMES, name, name)
    yield root
    patch.undo()
    for name in OWN:
        sys.modules.pop(f"metarec.baselines.{name}", None)
        vars(baselines).pop(name, None)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path, tmp_path / "cache")


def test_the_page_has_two_files_and_a_line() -> None:
    assert list(PAGE) == [ROW, TEST]
    assert '`"association": "association",`' in TEXT


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_the_page_keeps_to_the_style(folder: Path) -> None:
    options = ["--config", str(ROOT / "pyproject.toml"), *(str(folder / path) for path in PAGE)]
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *words, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_s_own_tests_pass(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("test_association", folder / TEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [of for name, of in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_its_name_is_known_its_label_shown_and_its_place_the_line_s() -> None:
    assert list(BASELINES)[-3:] == list(OWN)
    rows = rows_of("full")
    assert rows.index("association") == rows.index("in_context") - 2  # `timed` is between; `narrow` is not in full
    assert "narrow" not in rows
    for name in OWN:
        check_words("train", [f"evaluation.panel=[{name}]"])
    with pytest.raises(ConfigError, match="no row is called asociation -- did you mean association"):
        check_words("train", ["evaluation.panel=[asociation]"])
    methods = (*PANEL, "association", "narrow")
    assert groups(methods)[0] == [*(name for name in PANEL if name in NAMES), "association", "narrow"]
    text = plain_text(results_table(document(methods=methods)))
    assert any(line.startswith("association rules ") for line in text.splitlines())


def test_it_is_tuned_measured_and_refused_like_all_others(work: Work) -> None:
    for name, reason in (("timed", "the log has an order and no clock"), ("narrow", "for 29 items at most")):
        with pytest.raises(ConfigError, match=f"evaluation.panel: {name}: .*{reason}"):
            work.train(f"evaluation.panel=[{name}]")
    found = metrics(work.train("evaluation.panel=[popularity,association]", "evaluation.control.lrs=[0.01,0.1]"))
    assert 0 < found["metrics"]["association"]["mrr"] < 1
    assert [tried["last"] for tried in found["tuning"]["association"]["tried"]] == [1, 2, 5]
