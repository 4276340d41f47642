"""docs/new_metric.md says what is so: a file and a line are all that a metric of either kind needs."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reference.small_reports import write_run
from reference.tiny_runs import Work, metrics, tiny

import metarec.metrics
from metarec import benches, cli
from metarec.metrics import LISTS, METRICS, OF_LISTS, OF_RANKS, Entry
from metarec.metrics.lists import Had
from metarec.report.tables import plain_text, results_table

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/new_metric.md").read_text(encoding="utf-8")
FILES = re.compile(r"^<!-- (?P<path>\S+) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = {found["path"]: found["body"] for found in FILES.finditer(TEXT)}
LINE = re.compile(r'^The line: `"(?P<name>\S+)": Entry\("(?P<file>\w+)", "(?P<heading>[^"]+)"\),`$', re.MULTILINE)
RBP, HAD = ((found["name"], Entry(found["file"], found["heading"])) for found in LINE.finditer(TEXT))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, those of metarec/metrics as if they lay there."""
    root = tmp_path_factory.mktemp("page")
    for path, body in PAGE.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(body, encoding="utf-8")
    metarec.metrics.__path__.append(str(root / "metarec/metrics"))
    yield root
    metarec.metrics.__path__.remove(str(root / "metarec/metrics"))
    for _, entry in (RBP, HAD):
        sys.modules.pop(f"metarec.metrics.{entry.file}", None)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line of each, and nothing else."""
    monkeypatch.setitem(OF_RANKS, *RBP)
    monkeypatch.setitem(OF_LISTS, *HAD)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path, tmp_path / "cache")


def test_the_page_has_a_file_and_a_test_of_each_kind() -> None:
    assert list(PAGE) == [
        f"{place}{entry.file}.py" for _, entry in (RBP, HAD) for place in ("metarec/metrics/", "tests/metrics/test_")
    ]
    assert not {RBP[0], HAD[0]} & {*METRICS, *LISTS}  # an example, not of the product


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_the_page_keeps_to_the_style(folder: Path) -> None:
    for words in (["check", "--ignore", "I001"], ["format", "--check"]):  # what is ours is not seen from there
        done = subprocess.run(
            ["ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [path for path in PAGE if path.startswith("tests/")])
def test_the_tests_of_the_page_pass(path: str) -> None:
    found: dict[str, object] = {}
    exec(compile(PAGE[path], path, "exec"), found)
    tests = [value for name, value in found.items() if name.startswith("test_") and callable(value)]
    assert tests
    for test in tests:
        test()


def test_the_laws_hold_and_catch_one_who_breaks_them(lines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = np.arange(1, 31)
    assert METRICS["rbp"](rank, 20)[0] == 1.0
    assert not METRICS["rbp"](rank, 20)[20:].any()
    module = importlib.import_module("metarec.metrics.rank_biased_precision")
    monkeypatch.setattr(module, "rank_biased_precision", lambda rank, n_items: 0.1 * 0.9 ** (np.asarray(rank) - 1.0))
    from metrics.test_ranks import check_chance_oracle_constant

    with pytest.raises(AssertionError, match="rbp"):  # the factor 1 - p left in: the oracle has 0.1
        check_chance_oracle_constant()


def test_a_run_has_them_in_every_file_and_table(
    lines: None, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[bool] = []

    def counted(*given: object, targets: bool) -> Had:
        made.append(targets)
        return known(*given, targets=targets)  # type: ignore[arg-type]

    known = benches.known
    monkeypatch.setattr(benches, "known", counted)
    words = ["evaluation.monitor=rbp", "evaluation.ks=[0,5]"]
    assert cli.main(work.words("train", *tiny(*words), *words)) == 0
    assert sorted(made) == [False, True]  # once for all methods
    (run,) = work.directories("train")
    found = metrics(run)
    assert list(found["metrics"]["fewshot"]) == list(METRICS)
    assert 0 < found["metrics"]["fewshot"]["rbp"] < 1
    assert "rbp" in found["differences"]["gain_over_control"]
    assert "rbp" in found["k_curve"]["methods"]["fewshot"]
    assert found["training"]["val_rbp"] > 0
    assert all(list(row) == list(LISTS) and 0 <= row["had@10"] <= 1 for row in found["beyond"].values())
    assert "fewshot.rbp" in pq.read_table(run / "per_user.parquet").column_names
    shown = plain_text(results_table(found))
    assert "RBP" in shown and HAD[1].heading in shown
    assert f"differences ({len(found['differences'])} at {len(METRICS)} metrics)" in " ".join(shown.split())
    assert work.eval(run)["metrics"] == found["metrics"]
    for words in (["compare", str(run)], ["report", str(run), "metric=rbp", "output=page.html"]):
        assert cli.main(words) == 0
    assert "RBP" in capsys.readouterr().out
    page = Path("page.html").read_text(encoding="utf-8")
    assert ">RBP</th>" in page and f">{HAD[1].heading}</th>" in page


def test_the_order_of_the_lines_moves_no_other_figure(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; Holm's correction and its flips aside, which are of the whole table."""
    before = metrics(work.train("evaluation.panel=none"))
    monkeypatch.setitem(OF_RANKS, *RBP)
    monkeypatch.setitem(OF_LISTS, *HAD)
    after = metrics(work.train("evaluation.panel=none"))
    for part in ("metrics", "intervals", "macro", "beyond"):
        for method, row in before[part].items():
            assert {name: value for name, value in after[part][method].items() if name in row} == row


def test_runs_from_before_are_reported_and_refused_by_name(
    lines: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as before:
        before.delitem(OF_RANKS, "rbp")
        write_run(tmp_path / "old", n_users=12)
    assert cli.main(["report", "old", "output=page.html"]) == 0
    assert "RBP" not in Path("page.html").read_text(encoding="utf-8")
    assert cli.main(["compare", "old"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", "old", "metric=rbp"]) == 2
    assert "metric: rbp: old does not have it" in capsys.readouterr().err
    assert cli.main(["report", "old", "metric=rpb"]) == 2
    assert "did you mean rbp?" in capsys.readouterr().err
