"""`metarec train -m hydra/sweeper=optuna`: whole searches of tiny runs, killed, resumed, pruned, and what they look at."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="searching needs metarec[sweep]")

from reference.tiny_runs import Work, assert_same_run, ended, metrics, same_bits, tensors, tiny, wait_for

from metarec import build, cli
from metarec.config.search import Search, read_search
from metarec.errors import ConfigError, EnvironmentFault, Pruned
from metarec.runs.history import read_history
from metarec.runs.lock import hold
from metarec.runs.rundir import verify
from metarec.verbs import search as module
from metarec.verbs.search import _directory_of, run_search
from metarec.verbs.storage import Study
from metarec.verbs.train import run_train

OPTUNA = "hydra/sweeper=optuna"
NDCG = "ndcg@10"


def words(*given: str) -> list[str]:
    """Of a tiny search, after the verb; keys that it draws are left out of the tiny options."""
    drawn = [word.partition("=")[0] for word in given]
    fixed = [word for word in tiny("residual=off", *given) if word.partition("=")[0] not in drawn]
    return ["-m", OPTUNA, "residual=off", *fixed, *given]


def the_search(work: Work) -> Path:
    (found,) = (path.parent for path in (work.root / "outputs" / "train").glob("*/search.json"))
    return found


def stored(search: Path) -> dict[int, tuple[str, dict[str, float], float | None]]:
    """Number -> (state, parameters as stored, value), read from the file with sqlite3 alone."""
    with sqlite3.connect(search / "study.sqlite") as file:
        trials = file.execute("select trial_id, number, state from trials").fetchall()
        params = file.execute("select trial_id, param_name, param_value from trial_params").fetchall()
        values = dict(file.execute("select trial_id, value from trial_values").fetchall())
    assert len({number for _, number, _ in trials}) == len(trials)
    return {
        number: (state, {name: value for of, name, value in params if of == trial}, values.get(trial))
        for trial, number, state in trials
    }


def directories(search: Path) -> dict[int, Path]:
    found = {int(path.name.partition("_")[0]): path for path in (search / "trials").iterdir()}
    assert len(found) == len(list((search / "trials").iterdir()))
    return found


def assert_whole(search: Path, n_trials: int) -> None:
    """Every trial there once, measured on validation alone; the best of them, its very weights, on test."""
    trials, runs = stored(search), directories(search)
    assert sorted(trials) == sorted(runs) == list(range(n_trials))
    assert len({json.dumps(params, sort_keys=True) for _, params, _ in trials.values()}) == n_trials
    for number, (state, _, value) in trials.items():
        assert state == "COMPLETE"
        found = metrics(runs[number])
        assert found["protocol"]["split"] == found["config"]["evaluation"]["split"] == "val"
        assert value == found["training"][f"val_{NDCG}"]
        assert value == pytest.approx(found["metrics"]["fewshot"][NDCG], abs=1e-12)  # measured anew at the end
        assert set(verify(runs[number])) <= {"job.json"}
    best = json.loads((search / "best.json").read_text())
    assert best["validation"] == max(value for _, _, value in trials.values() if value is not None)
    assert best["validation"] == trials[best["trial"]][2]
    found = metrics(search / "best")
    assert found["protocol"]["split"] == "test"
    assert best["test"]["fewshot"] == found["metrics"]["fewshot"][NDCG]
    assert same_bits(tensors(search / "best", "best"), tensors(runs[best["trial"]], "best"))
    assert list(search.rglob("metrics.json")).count(search / "best" / "metrics.json") == 1
    assert len(list(search.rglob("metrics.json"))) == n_trials + 1
    summary = json.loads((search / "summary.json").read_text())
    assert summary["counts"] == {"ok": n_trials, "pruned": 0, "failed": 0, "running": 0}
    values = [row["value"] for row in summary["trials"]]
    assert values == sorted(values, reverse=True)


def untouched(search: Path) -> dict[str, int]:
    """When each finished run's result was written; a run killed after its result and before its manifest is none."""
    finished = [path for path in search.rglob("metrics.json") if (path.parent / "manifest.json").exists()]
    return {str(path): path.stat().st_mtime_ns for path in finished}


def killed(work: Work, *command: str, number: int = signal.SIGKILL, at_least: int = 1) -> Path:
    """Start a command and send it a signal once `at_least` trials are stored and another has a checkpoint."""
    process = work.start(*command, daemon=False)

    def far_enough() -> bool:
        found = list((work.root / "outputs" / "train").glob("*/study.sqlite"))
        if not found or not (found[0].parent / "trials").exists():
            return False
        begun = [path.parent.parent for path in found[0].parent.glob("trials/*/checkpoints/last.json")]
        going = [path for path in begun if not (path / "job.json").exists()]
        return bool(going) and sum(s == "COMPLETE" for s, _, _ in stored(found[0].parent).values()) >= at_least

    try:
        wait_for(far_enough, process, seconds=240)
    except AssertionError:
        process.kill()
        raise
    assert process.pid is not None
    os.kill(process.pid, number)
    assert ended(process) in (-number, 128 + number), work.output(process)
    return the_search(work)


def killed_and_resumed(work: Work, n_trials: int, *command: str) -> Path:
    search = killed(work, *command)
    before, finished = stored(search), untouched(search)
    running = {number for number, (state, _, _) in before.items() if state == "RUNNING"}
    assert running
    assert finished
    assert cli.main(["train", f"resume={search}"]) == 0
    after = stored(search)
    for number, (state, params, value) in before.items():  # none lost, none drawn again
        assert after[number][1] == params
        assert state == "RUNNING" or after[number] == (state, params, value)
    assert finished.items() <= untouched(search).items()  # and none of the finished ones run again
    assert_whole(search, n_trials)
    return search


DRAWN = (
    "optimizer.lr=tag(log,interval(1e-3,1e-1))",
    "algorithm.inner.steps=range(1,4)",
    "algorithm.order=first,second",
)
LONG = ("algorithm=maml", "train.steps=40", "train.eval_every=5", "train.checkpoint_every=5")


def test_a_search_killed_and_resumed_loses_and_repeats_nothing(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.startup_trials=1")
    search = killed_and_resumed(work, 3, *work.words("train", *words(*LONG, *DRAWN, *options)))
    out = capsys.readouterr().out
    assert "3 of 3 trials: 3 ok, 0 pruned, 0 failed" in out
    once = untouched(search)
    assert cli.main(["train", f"resume={search}"]) == 0  # finished: the table again, test not
    assert untouched(search) == once
    assert f"best: trial {json.loads((search / 'best.json').read_text())['trial']} (" in capsys.readouterr().out


@pytest.mark.slow
def test_twelve_trials_killed_terminated_and_resumed(work: Work) -> None:
    options = ("hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=2", "hydra.sweeper.startup_trials=4")
    search = killed(work, *work.words("train", *words(*LONG, *DRAWN, *options)), at_least=2)
    killed(work, "train", f"resume={search}", number=signal.SIGTERM, at_least=5)
    # one whose directory was only just made has no job yet
    saved = [path / "job.json" for path in directories(search).values() if not (path / "metrics.json").exists()]
    assert all(json.loads(path.read_text())["status"] == "interrupted" for path in saved if path.exists())
    assert cli.main(["train", f"resume={search}"]) == 0
    assert_whole(search, 12)


def test_failed_and_pruned_trials_and_the_search_goes_on(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """By a grid, in its order: a good step size, one that diverges, one too small to learn."""
    options = ("hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=median", "hydra.sweeper.startup_trials=1")
    assert work.main("train", *words("optimizer.lr=0.02,1e37,1e-12", *options)) == 6
    search = the_search(work)
    runs, summary = directories(search), json.loads((search / "summary.json").read_text())
    assert [(row["number"], row["status"]) for row in summary["trials"]] == [(0, "ok"), (2, "pruned"), (1, "failed")]
    assert [state for state, _, _ in stored(search).values()] == ["COMPLETE", "FAIL", "PRUNED"]
    assert "is not finite" in summary["trials"][2]["error"]
    job = json.loads((runs[2] / "job.json").read_text())
    assert (job["status"], job["exit_code"]) == ("pruned", 0)
    assert "the search ended this run" in job["error"]
    assert [line["step"] for line in read_history(runs[2] / "history.jsonl") if line["kind"] == "val"] == [0, 2]
    assert not list(runs[2].glob("m*.json"))  # neither metrics nor manifest, and it can be gone on with
    assert json.loads((search / "best.json").read_text())["trial"] == 0
    told = capsys.readouterr()
    assert "3 of 3 trials: 1 ok, 1 pruned, 1 failed" in told.out
    assert "trial 1: error: outer step 1, inner step 0" in told.err
    assert "Traceback" not in told.err


def test_a_mean_over_seeds_is_what_counts(work: Work) -> None:
    options = ("hydra.sweeper.seeds=[1,2]", "hydra.sweeper.n_trials=1")
    assert work.main("train", *words("optimizer.lr=0.02,0.05", "train.steps=4", *options)) == 0
    search = the_search(work)
    for number, (_, _, value) in stored(search).items():
        found = [metrics(directories(search)[number] / f"seed{seed}") for seed in (1, 2)]
        assert [(one["seeds"]["run"], one["protocol"]["split"]) for one in found] == [(1, "val"), (2, "val")]
        assert value == pytest.approx(sum(one["training"][f"val_{NDCG}"] for one in found) / 2)
    best = json.loads((search / "best.json").read_text())
    test = [metrics(search / run)["metrics"]["fewshot"][NDCG] for run in best["runs"].values()]
    assert len(test) == 2
    assert best["test"]["fewshot"] == pytest.approx(sum(test) / 2)


# One run


def test_a_run_measured_on_validation_never_asks_for_the_test_episodes(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, episodes = [], build.SequenceBench.episodes

    def spy(self: Any, split: str, **options: Any) -> Any:
        asked.append(split)
        return episodes(self, split, **options)

    monkeypatch.setattr(build.SequenceBench, "episodes", spy)
    run = work.train("residual=off", "evaluation.split=val")
    assert "val" in asked
    assert "test" not in asked
    assert metrics(run)["protocol"]["split"] == "val"
    work.train("residual=off")
    assert "test" in asked


def test_a_pruned_run_is_told_each_validation_and_can_be_gone_on_with(work: Work) -> None:
    whole = work.train("residual=off", "evaluation.split=val")
    (job,) = (read_search([OPTUNA, *work.words("train", *words("optimizer.lr=0.02,1"))[3:]], None),)
    config, run = job.config, work.root / "run"
    config.evaluation.split, config.optimizer.lr = "val", 0.02
    run.mkdir()
    module.rundir.write_run_card(run, config_yaml=module.config_to_yaml(config), overrides=[])
    told: list[tuple[int, float]] = []

    def at_four(step: int, value: float) -> bool:
        told.append((step, value))
        return step == 4

    with pytest.raises(Pruned, match=r"step 4: 0\.\d{4}: the search ended this run"):
        run_train(config, run, True, [], at_four)
    lines = [line for line in read_history(run / "history.jsonl") if line["kind"] == "val"]
    assert told == [(line["step"], line["fewshot"][NDCG]) for line in lines[1:]]
    assert [step for step, _ in told] == [2, 4]
    run_train(config, run, True, [], lambda step, value: True)  # after the last validation there is nothing to end
    assert_same_run(run, whole)


# The storage


def asked(storage: Path, *given: str) -> Search:
    return read_search([OPTUNA, f"hydra.sweeper.storage={storage}", *given], None)


def test_the_same_storage_goes_on_and_another_search_is_refused(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    went_on: list[Path] = []
    monkeypatch.setattr(module._Trials, "run", lambda self: went_on.append(self.directory))
    storage = work.root / "kept" / "study.sqlite"
    run_search(asked(storage, "optimizer.lr=1e-3,1e-2"))
    run_search(asked(storage, "optimizer.lr=1e-3,1e-2", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"))
    assert len(went_on) == 2
    assert went_on[0] == went_on[1]
    for given, said in (
        (["optimizer.lr=1e-3,1e-1"], "has other words: optimizer.lr=1e-3,1e-1 optimizer.lr=1e-3,1e-2"),
        (["optimizer.lr=1e-3,1e-2", "seed=2"], "has other words: seed=2"),
        (["optimizer.lr=1e-3,1e-2", "hydra.sweeper.sampler=random"], "has other options: sampler=tpe"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_search(asked(storage, *given))
    run_search(asked(storage, "optimizer.lr=1e-3,1e-1", "hydra.sweeper.study_name=another"))
    assert len({*went_on}) == 2
    went_on[0].rename(work.root / "moved")
    with pytest.raises(ConfigError, match="is gone"):
        run_search(asked(storage, "optimizer.lr=1e-3,1e-2"))


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    search = asked(tmp_path / "study.sqlite", "optimizer.lr=1e-3,1e-2")
    Study(tmp_path / "study.sqlite", search).draw()
    with pytest.raises(ConfigError, match="is no search of metarec"):
        _directory_of(Study(tmp_path / "study.sqlite", search), search)


def test_one_process_at_a_time_and_no_more_trials_once_test_was_seen(work: Work) -> None:
    search = asked(
        work.root / "study.sqlite", "optimizer.lr=1e-3,1e-2,1e-1", "hydra.sweeper.n_trials=2", "logger.console=quiet"
    )
    study = Study(work.root / "study.sqlite", search)
    held, done = threading.Event(), threading.Event()

    def other() -> None:  # a lock is held by a thread, and a second block of the same one is inside of the first
        with hold(work.root):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=other)
    holder.start()
    assert held.wait(60)
    try:
        with pytest.raises(EnvironmentFault, match="another process is writing this run"):
            module._go_on(work.root, study, search)
    finally:
        done.set()
        holder.join()
    (work.root / "best.json").write_text("{}")
    with pytest.raises(ConfigError, match="its best setting was measured on test"):
        module._go_on(work.root, study, search)
    assert not (work.root / "search.json").exists()  # the words of the finished one stay


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["eval", "-m", OPTUNA, "ckpt=x"], "metarec eval has nothing to search by"),
        (["train", OPTUNA, "optimizer.lr=1e-3,1e-2"], "a search runs several jobs -- add -m"),
        (
            ["train", "-m", OPTUNA, "optimizer.lr=interval(1,2)", "hydra.sweeper.sampler=grid"],
            "a grid has no end of it",
        ),
    ],
)
def test_refusals_make_nothing(given: list[str], said: str, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main(*given) == 2
    assert said in capsys.readouterr().err
    assert not (work.root / "outputs").exists()
