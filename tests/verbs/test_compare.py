"""`metarec compare`: its jobs are ordinary runs, its table is theirs, it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import Work, metrics, tiny

from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.report.comparison import comparison
from metarec.runs import rundir
from metarec.verbs import run_verb

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
    assert [row["algorithm"] for row in document["rows"]] == ["fomaml", "maml"]
    runs = [metrics(run / "jobs" / f"maml_seed{seed}") for seed in (1, 2)]
    row = document["rows"][1]
    few = [found["metrics"]["fewshot"]["ndcg@10"] for found in runs]
    assert row["fewshot"] == pytest.approx(np.mean(few))
    assert row["sd_seeds"] == pytest.approx(np.std(few, ddof=1))
    users = [
        pq.read_table(run / "jobs" / f"maml_seed{s}" / "per_user.parquet").column("fewshot.ndcg@10").to_numpy()
        for s in (1, 2)
    ]
    assert row["sd_tasks"] == pytest.approx(np.std(np.mean(users, 0), ddof=1))
    assert row["low"] < row["fewshot"] < row["high"]
    assert row["seconds_per_step"] > 0
    assert row["peak_bytes"] > 100e6
    pairs = [(entry["of"], entry["against"]) for entry in document["differences"]]
    assert pairs == [("fomaml", "control"), ("maml", "control"), ("maml", "fomaml")]
    page = (run / "comparison.md").read_text()
    assert "| maml |" in page
    assert "maml minus fomaml" in page


def test_resuming_runs_what_is_missing_only(compared: tuple[Work, Path]) -> None:
    _work, run = compared
    kept, gone = run / "jobs" / "fomaml_seed1", run / "jobs" / "maml_seed2"
    before = (kept / "metrics.json").stat().st_mtime_ns
    wanted = metrics(gone)["metrics"]
    shutil.rmtree(gone)
    (run / "manifest.json").unlink()
    from metarec import cli

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


def test_the_interval_is_wider_where_users_differ_more(tmp_path: Path) -> None:
    """A law of the table that shares no code with it: two users sets of the same mean, one spread out."""
    rows = []
    for spread in (0.01, 0.2):
        rng = np.random.default_rng(1)
        few = np.clip(0.5 + spread * rng.standard_normal(200), 0, 1)
        import pyarrow as pa

        directory = tmp_path / str(spread)
        directory.mkdir()
        (directory / "environment.json").write_text("{}")
        pq.write_table(pa.table({"fewshot.mrr": few, "control.mrr": few - 0.01}), directory / "per_user.parquet")
        run = {
            "algorithm": "maml", "dataset": "d", "model": "m", "residual": "off", "seeds": {"run": 1},
            "training": {"steps": 3}, "seconds": {"total": 1.0}, "metrics": {
                name: {"mrr": float(few.mean())} for name in ("fewshot", "zeroshot", "control", "pretrained")
            },
            "cost": {"seconds_per_step": 0.1, "seconds": 0.3, "peak_bytes": 5, "growth_bytes": None, "loss": 1.0},
        }  # fmt: skip
        config = {"evaluation": {"monitor": "mrr", "bootstrap": 500, "confidence": 0.95}}
        document = comparison({"maml_seed1": (run, directory)}, {}, config)
        rows.append(document["rows"][0])
        assert document["differences"][0]["mean"] == pytest.approx(0.01)
        width = 2 * 1.96 * few.std(ddof=1) / np.sqrt(200)
        assert rows[-1]["high"] - rows[-1]["low"] == pytest.approx(width, rel=0.15)
