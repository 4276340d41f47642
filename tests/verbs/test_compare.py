"""`metarec compare`: its jobs are ordinary runs, its table is theirs, it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import Work, metrics, tiny

from metarec import cli
from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.runs import rundir
from metarec.verbs import run_verb

pytestmark = pytest.mark.usefixtures("warm_jobs")

WORDS = ("algorithms=[fomaml,maml]", "inner.steps=2", "train.steps=2", "train.eval_every=1")


def small() -> list[str]:
    """The options of a tiny run that a comparison has as well: it chooses algorithms and residual itself."""
    return [word for word in tiny() if not word.startswith(("algorithm=", "residual="))]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Path]:
    root = tmp_path_factory.mktemp("compare")
    work = Work(root, root / "cache")
    assert work.main("compare", *small(), *WORDS, "seeds=[1,2]", "residual=context") == 0
    (run,) = work.directories("compare")
    return work, run


def test_every_algorithm_and_seed_is_a_run(compared: tuple[Work, Path]) -> None:
    work, run = compared
    names = sorted(path.name for path in (run / "jobs").iterdir())
    assert names == ["fomaml_seed1", "fomaml_seed2", "maml_seed1", "maml_seed2"]
    for name in names:
        assert rundir.verify(run / "jobs" / name) == []
    assert rundir.verify(run) == []
    assert work.eval(run / "jobs" / "maml_seed2")["metrics"] == metrics(run / "jobs" / "maml_seed2")["metrics"]


def test_the_table_is_that_of_its_runs(compared: tuple[Work, Path]) -> None:
    _, run = compared
    document = json.loads((run / "comparison.json").read_text())
    assert [one["name"] for one in document["configurations"]] == ["algorithm=fomaml", "algorithm=maml"]
    runs = [metrics(run / "jobs" / f"maml_seed{seed}") for seed in (1, 2)]
    (row,) = [r for r in document["rows"] if (r["method"], r["configurations"]) == ("fewshot", ["algorithm=maml"])]
    few = [found["metrics"]["fewshot"]["ndcg@10"] for found in runs]
    assert row["mean"] == pytest.approx(np.mean(few))
    assert row["sd_seeds"] == pytest.approx(np.std(few, ddof=1))
    users = [
        pq.read_table(run / "jobs" / f"maml_seed{s}" / "per_user.parquet").column("fewshot.ndcg@10").to_numpy()
        for s in (1, 2)
    ]
    assert row["sd_users"] == pytest.approx(np.std(np.mean(users, 0), ddof=1))
    assert row["low"] < row["mean"] < row["high"]
    cost = document["configurations"][1]
    assert cost["seconds_per_step"] > 0
    assert cost["peak_bytes"] > 100e6
    pairs = [(entry["of"]["configuration"], entry["against"]["method"]) for entry in document["differences"]]
    fomaml, maml = "algorithm=fomaml", "algorithm=maml"
    assert pairs == [(fomaml, "control"), (maml, "control"), (maml, "fewshot")]
    page = (run / "comparison.md").read_text()
    assert "| few-shot (meta) | algorithm=maml |" in page
    assert "few-shot, algorithm=maml minus algorithm=fomaml" in page
    assert (run / "comparison.tex").exists()


def test_its_runs_compared_again_give_its_table(compared: tuple[Work, Path]) -> None:
    """The two paths of the verb are one mechanism: the comparison's directory, given as RUN, gives the same rows."""
    work, run = compared
    before = set(work.directories("compare"))
    assert cli.main(["compare", str(run), f"output_dir={work.root / 'outputs'}"]) == 0
    (again,) = set(work.directories("compare")) - before
    first, second = (json.loads((at / "comparison.json").read_text()) for at in (run, again))
    for key in ("rows", "differences", "protocol"):
        assert first[key] == second[key]


def test_resuming_runs_what_is_missing_only(compared: tuple[Work, Path]) -> None:
    _work, run = compared
    kept, gone = run / "jobs" / "fomaml_seed1", run / "jobs" / "maml_seed2"
    before = (kept / "metrics.json").stat().st_mtime_ns
    wanted = metrics(gone)["metrics"]
    shutil.rmtree(gone)
    (run / "manifest.json").unlink()
    assert cli.main(["compare", f"resume={run}"]) == 0
    assert metrics(gone)["metrics"] == wanted
    assert (kept / "metrics.json").stat().st_mtime_ns == before


def test_a_failing_job_is_told_and_the_others_end(
    compared: tuple[Work, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A step size of 1e30 diverges; the exit code is the job's."""
    work, _ = compared
    words = ("algorithms=[reptile]", "inner.lr=1e30", "inner.steps=2", "train.steps=2", "train.eval_every=1")
    assert work.main("compare", *small(), *words, "seeds=[1]") == 6
    assert "every job failed" in capsys.readouterr().err


def test_contradictions_are_refused_before_anything_runs(tmp_path: Path) -> None:
    work = Work(tmp_path, tmp_path / "cache")
    _, *words = work.words("compare", *small(), "algorithms=[maml,meta_sgd]", "inner.lr=0")
    (job,) = check_words("compare", words).jobs
    with pytest.raises(ConfigError, match=r"algorithm.inner.lr: 0.0: learned step sizes"):
        run_verb("compare", job.config, tmp_path / "run", False, words)
    assert not (tmp_path / "run" / "jobs").exists()
