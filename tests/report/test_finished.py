"""Finding and reading finished runs: what a word names, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference.small_reports import write_run

from metarec.errors import CheckpointError, ConfigError
from metarec.report.finished import distinct, find, read_runs
from metarec.runs import rundir


def names(words: list[str]) -> list[str]:
    return [path.name for path in find(words)]


def test_a_word_names_a_run_a_sweep_a_comparison_or_a_pattern(tmp_path: Path) -> None:
    sweep, compared = tmp_path / "train" / "s", tmp_path / "compare" / "c"
    for number in (0, 2, 10):
        write_run(sweep / f"{number}_seed-{number}", seed=number, n_users=3)
    (sweep / "sweep.json").write_text("{}")
    write_run(compared / "jobs" / "maml_seed1", n_users=3)
    (compared / "config.yaml").write_text("seed: 1\n")
    (compared / "manifest.json").write_text("{}")
    jobs = ["0_seed-0", "2_seed-2", "10_seed-10"]  # by number, not by letter
    assert names([str(sweep)]) == names([str(tmp_path / "train")]) == jobs
    assert names([str(sweep / "*")]) == jobs  # sweep.json is no directory
    assert names([str(sweep / "1*")]) == ["10_seed-10"]
    assert names([str(compared)]) == names([str(compared / "jobs")]) == ["maml_seed1"]
    assert names([str(sweep / "2_seed-2"), str(sweep)]) == ["2_seed-2", "0_seed-0", "10_seed-10"]  # each once
    assert [run.name for run in read_runs([str(sweep / "0*"), str(compared)])] == ["0_seed-0", "maml_seed1"]


@pytest.mark.parametrize(
    ("word", "said"),
    [("nowhere", "no such run directory"), ("no*where", "matches nothing"), ("file", "a file, not a run"),
     ("empty", "no run in it"), ("fi*", "matches files only")],
)  # fmt: skip
def test_a_word_that_names_no_run(word: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        find([str(tmp_path / word)])


def test_an_unfinished_run_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0_a", n_users=3)
    write_run(tmp_path / "sweep" / "1_b", seed=2, n_users=3, sealed=False)
    with pytest.raises(CheckpointError, match=r"1_b: no manifest.json: the run did not finish --"):
        read_runs([str(tmp_path / "sweep")])
    (tmp_path / "sweep" / "1_b" / "job.json").write_text(json.dumps({"error": "error: planted"}))
    with pytest.raises(CheckpointError, match=r"1_b.*did not finish \(error: planted\)"):
        read_runs([str(tmp_path / "sweep")])


def test_a_job_that_left_nothing_but_its_record_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "0_a", n_users=3)
    (tmp_path / "1_b").mkdir()
    (tmp_path / "1_b" / "job.json").write_text(json.dumps({"error": None}))
    with pytest.raises(CheckpointError, match="1_b"):
        read_runs([str(tmp_path)])


def test_a_damaged_run_is_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", n_users=3)
    text = (run / "metrics.json").read_text()
    (run / "metrics.json").write_text(text.replace('"users": 3', '"users": 4', 1))
    with pytest.raises(CheckpointError, match=r"run/metrics.json: damaged"):
        read_runs([str(run)])


def test_what_is_no_run_of_train_or_eval_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "prepare"
    other.mkdir()
    (other / "funnel.json").write_text("{}")
    rundir.seal(other)
    with pytest.raises(ConfigError, match=r"no metrics\.json"):
        read_runs([str(other)])
    old = write_run(tmp_path / "old", n_users=3, sealed=False)
    document = json.loads((old / "metrics.json").read_text())
    del document["protocol"]
    (old / "metrics.json").write_text(json.dumps(document))
    rundir.seal(old)
    with pytest.raises(CheckpointError, match=r"protocol is missing.*metarec eval ckpt="):
        read_runs([str(old)])


def test_names_are_the_shortest_endings_that_differ() -> None:
    assert distinct([Path("/a/x/1"), Path("/a/y/1"), Path("/a/y/2")]) == ["x/1", "y/1", "y/2"]
    assert distinct([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
