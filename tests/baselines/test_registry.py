"""Rows by name: what a name costs, files that do not fit their line, and whether a row is still the one that was tuned."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from reference.baselines_reference import spelt

from metarec import baselines
from metarec.baselines import BASELINES, NAMES
from metarec.baselines.source import source_hash
from metarec.config.rules_evaluation import ALWAYS
from metarec.config.schema import OF_A_MODEL, PANELS

FOLDER = Path(baselines.__file__).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose files are as good as those of metarec/baselines."""
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"metarec.baselines.{file.stem}", None)
        vars(baselines).pop(file.stem, None)


def test_names_are_known_without_numpy() -> None:
    code = (
        "import sys, metarec.config.rules_evaluation, metarec.report.labels as labels\n"
        "from metarec.baselines import BASELINES\n"
        "assert 'ease' in BASELINES and labels.groups(['control', 'ease']) == [['ease', 'control']]\n"
        "print([name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_every_line_has_its_row_and_every_row_its_line() -> None:
    for file in FOLDER.glob("*.py"):
        rows = getattr(import_module(f"metarec.baselines.{file.stem}"), "ROWS", {})
        assert set(rows) == {name for name, of in NAMES.items() if of == file.stem}, file.name
    assert [BASELINES[name].label for name in ("repeat_last", "v_sknn")] == ["repeat last", "V-SKNN"]
    assert not set(NAMES) & {*OF_A_MODEL, *PANELS, *ALWAYS}
    assert "markof" not in BASELINES
    with pytest.raises(KeyError):
        BASELINES["markof"]


def test_a_line_that_does_not_fit_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, "markof", "markov")
    with pytest.raises(ImportError, match=r"baselines.markov: its ROWS hold markov, and no markof, as NAMES says"):
        BASELINES["markof"]


def test_the_hash_follows_the_file_and_all_that_it_imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, "own", "own")
    files = {"own": "import metarec.baselines.near\n", "near": "from metarec.baselines import far\n", "far": "",
             "other": ""}  # fmt: skip
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    found = [source_hash("own")]
    for name, text in files.items():
        (folder / f"{name}.py").write_text(f"{text}# changed\n")
        found.append(source_hash("own"))
    assert len(set(found[:4])) == 4
    assert found[3] == found[4]  # `other` is not imported
    assert source_hash("markov") != source_hash("v_sknn")


def test_a_log_keeps_the_latest_value_of_a_key() -> None:
    log, made = spelt("ab", "ab").log, []

    def value(of: int | None) -> int:
        return log.once("number", lambda: made.append(of) or len(made), of=of)

    assert [value(of) for of in (None, None, 3, 3, 4, 3)] == [1, 1, 2, 2, 3, 4]
    assert log.once("another", lambda: "kept beside it") == "kept beside it"
    assert value(3) == 4


def test_what_is_kept_is_let_go_before_the_next_is_made() -> None:
    log = spelt("ab", "ab").log
    log.once("number", lambda: 1, of=1)
    log.once("number", lambda: [log.once("number", lambda: "nothing kept now", of=1)], of=2)
    assert log.once("number", lambda: "another", of=2) == ["nothing kept now"]
