"""`metarec train -m`: a directory for every job, one summary, and a failing job that ends only itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference.tiny_runs import Work, metrics, tiny, without_paths

from metarec.config.threads import cores
from metarec.runs.rundir import verify


def test_four_jobs_four_directories_one_summary(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main("train", "-m", *tiny("residual=off,on"), "residual=off,on", "seed=1,2") == 0
    (sweep,) = work.directories("train")
    summary = json.loads((sweep / "sweep.json").read_text())
    runs = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    assert len(runs) == len({job["directory"] for job in summary["jobs"]}) == 4
    assert summary["counts"] == {"ok": 4, "failed": 0, "interrupted": 0, "not run": 0}
    seen = set()
    for run, job in zip(runs, summary["jobs"], strict=True):
        found = metrics(run)
        seen.add((found["residual"], found["seeds"]["run"]))
        assert job["headline"]["fewshot"] == found["metrics"]["fewshot"]["ndcg@10"]
        assert json.loads((run / "overrides.json").read_text())[-2:] == job["overrides"][-2:]
        unlisted = verify(run)
        assert unlisted in ([], ["job.json"])
    assert seen == {("off", 1), ("off", 2), ("on", 1), ("on", 2)}
    out = capsys.readouterr().out
    assert out.count(f"sweep {sweep}") == 1
    assert "4 of 4 jobs ok" in out

    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*/*")}
    assert work.main("train", "-m", *tiny("residual=off,on"), "residual=off,on", "seed=1,2") == 0
    assert (
        f"going on with {sweep}, where 4 of 4 jobs are done" in capsys.readouterr().out
    )  # Hydra's words, not those typed
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*/*")} == before


def test_a_failing_job_ends_only_itself(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The second job names weights that are not there, which only the run itself can find out."""
    run = work.train()
    words = tiny("warm_start=none")
    assert work.main("train", "-m", *words, f"warm_start={run},missing.pth", "seed=1,2") == 4
    (sweep,) = set(work.directories("train")) - {run}
    summary = json.loads((sweep / "sweep.json").read_text())
    assert [job["status"] for job in summary["jobs"]] == ["ok", "ok", "failed", "failed"]
    assert [job["exit_code"] for job in summary["jobs"]] == [0, 0, 4, 4]
    for job in summary["jobs"][2:]:
        assert "missing.pth" in job["error"]
        assert job["error"].count("\n") == 0
        assert [path.name for path in Path(job["directory"]).iterdir()] == ["job.json"]  # nothing half-written
    assert len(list(sweep.glob("*/metrics.json"))) == 2
    told = capsys.readouterr()
    assert "2 of 4 jobs ok" in told.out
    assert "Traceback" not in told.err


@pytest.mark.slow
def test_the_joblib_launcher_runs_jobs_side_by_side_as_the_basic_one(
    work: Work, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each job its directory, record and failure, with the cores divided; the figures are those of one after the other."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="parallel sweeps need metarec[sweep]")
    run = work.train()
    words = [word for word in tiny("warm_start=none") if not word.startswith("hardware.threads")]
    words += [f"warm_start={run},missing.pth", "seed=1,2"]
    assert work.main("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *words) == 4
    (sweep,) = set(work.directories("train")) - {run}
    summary = json.loads((sweep / "sweep.json").read_text())
    assert [job["status"] for job in summary["jobs"]] == ["ok", "ok", "failed", "failed"]
    assert [job["exit_code"] for job in summary["jobs"]] == [0, 0, 4, 4]
    assert len({job["directory"] for job in summary["jobs"]}) == 4
    for job in summary["jobs"][2:]:
        assert "missing.pth" in job["error"]
        assert [path.name for path in Path(job["directory"]).iterdir()] == ["job.json"]
    for seed, job in zip((1, 2), summary["jobs"][:2], strict=True):
        found = metrics(Path(job["directory"]))
        assert found["config"]["hardware"]["threads"] == max(1, cores() // 2)
        assert found["seeds"]["run"] == seed
        assert verify(Path(job["directory"])) in ([], ["job.json"])
        alone = work.train(f"warm_start={run}", f"seed={seed}", f"hardware.threads={max(1, cores() // 2)}")
        assert without_paths(metrics(alone)) == without_paths(found)
    told = capfd.readouterr()
    assert "2 of 4 jobs ok" in told.out
    assert "Traceback" not in told.err
