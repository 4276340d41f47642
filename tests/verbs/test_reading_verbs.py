"""`metarec compare RUN...` and `metarec report RUN...` from the command line: files, exit codes, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reference.small_reports import write_run
from reference.tiny_runs import Work

from metarec import cli
from metarec.runs import rundir


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two algorithms with two seeds each; the working directory is empty but for them."""
    monkeypatch.chdir(tmp_path)
    for number, (algorithm, seed) in enumerate((a, s) for a in ("maml", "fomaml") for s in (1, 2)):
        gain = 0.5 if algorithm == "maml" else 0.3
        write_run(tmp_path / "sweep" / f"{number}_{algorithm}", algorithm=algorithm, seed=seed, gain=gain, n_users=20)
    return tmp_path / "sweep"


def test_compare_writes_three_files_and_prints_the_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "sweep", "metric=hr@10", "methods=[fewshot,control]"]) == 0
    (made,) = Path("outputs/compare").iterdir()
    assert rundir.verify(made) == []
    document = json.loads((made / "comparison.json").read_text())
    assert document["metric"] == "hr@10"
    assert {row["method"] for row in document["rows"]} == {"fewshot", "control"}
    assert "# needs" not in (made / "comparison.md").read_text()
    assert r"\toprule" in (made / "comparison.tex").read_text()
    assert json.loads((made / "overrides.json").read_text()) == ["sweep", "metric=hr@10", "methods=[fewshot,control]"]
    out = capsys.readouterr().out
    assert "algorithm=fomaml" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_a_quoted_pattern_is_read_by_the_command_itself(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "sweep/*_maml"]) == 0
    assert "comparison of 2 runs" in capsys.readouterr().out


def test_other_protocols_are_refused_and_nothing_is_left(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(sweep.parent / "other", seed=3, n_users=20, protocol={"split_by": "leave_one_out", "ties": "first"})
    assert cli.main(["compare", "sweep/0_maml", "other"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["split_by", "ties"]
    assert "user_time in 0_maml; leave_one_out in other" in lines[0]
    assert not Path("outputs").exists()


def test_an_unfinished_run_is_refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "1_maml" / "manifest.json").unlink()
    for verb in ("compare", "report"):
        assert cli.main([verb, "sweep"]) == 4
        assert "sweep/1_maml: no manifest.json" in capsys.readouterr().err


def test_report_goes_to_a_directory_of_its_own_or_where_it_is_told(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "sweep/0_maml"]) == 0
    (made,) = Path("outputs/report").iterdir()
    assert {"report.html", "report.md"} < {path.name for path in made.iterdir()}
    assert rundir.verify(made) == []
    assert cli.main(["report", "sweep", "output=pages/all.html", "formats=[html,tex]"]) == 0
    assert sorted(path.name for path in Path("pages").iterdir()) == ["all.html", "all.tex"]
    assert "report of 4 runs: pages/all.html, pages/all.tex" in capsys.readouterr().out
    (sweep / "file").write_text("")
    assert cli.main(["report", "sweep/0_maml", "output=sweep/file/all.html"]) == 5


def test_runs_that_cannot_be_paired_are_reported_apart(sweep: Path) -> None:
    write_run(sweep.parent / "other", seed=3, n_users=20, protocol={"ties": "first"})
    assert cli.main(["report", "sweep/0_maml", "other", "output=page.html"]) == 0
    page = Path("page.html").read_text()
    assert "Not compared: ties: conservative in 0_maml; first in other" in page
    assert "<h2>Comparison</h2>" not in page


def test_reading_runs_needs_no_torch(sweep: Path) -> None:
    code = (
        "import sys, metarec.cli as c; assert c.main(['compare', 'sweep']) == 0;"
        "assert c.main(['report', 'sweep', 'output=x.html']) == 0; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.splitlines()[-1] == "False"


def test_a_real_run_is_reported_with_its_own_figures(finished: Path, work: Work) -> None:
    assert cli.main(["report", str(finished), "output=real.html"]) == 0
    page = Path("real.html").read_text()
    document = json.loads((finished / "metrics.json").read_text())
    for row in document["metrics"].values():
        for value in row.values():
            assert f"{value:.4f}".removeprefix("0") in page
    for title in ("Funnel", "Protocol", "Results", "Differences", "Learning curves", "Tuning", "Cost", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert document["protocol"]["data_sha256"][:16] in page
    assert document["protocol"]["longest_prefix"] >= 1


def test_an_evaluation_is_compared_with_its_run(finished: Path, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    again = work.evaluated(finished, "steps=3")
    assert cli.main(["compare", str(finished), str(again), "methods=[fewshot]"]) == 0
    assert "eval.steps=3" in capsys.readouterr().out
    fewer = work.evaluated(finished, "n_support=2")
    assert cli.main(["compare", str(finished), str(fewer)]) == 2
    assert "n_support: 5 in" in capsys.readouterr().err
