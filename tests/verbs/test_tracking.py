"""Whole runs with a tracker: it holds what the run directory says, read back by its own reader, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.tiny_runs import Work, ended, metrics, same_bits, tensors, tiny, wait_for, without_paths
from reference.tracker_readers import NAMES, Told, flat_values, needs, read

from metarec import cli, trackers
from metarec.runs import rundir
from metarec.runs.history import read_history
from metarec.runs.rundir import verify
from metarec.trackers import mlflow as own_mlflow
from metarec.trackers.tracker import Tracker
from metarec.train import Store
from metarec.verbs.tracking import group_of

EACH = pytest.mark.parametrize("tracker", [needs(name) for name in NAMES])
MLFLOW = pytest.mark.parametrize("tracker", [needs("mlflow")])
WANDB = pytest.mark.parametrize("tracker", [needs("wandb")])


@pytest.fixture(autouse=True)
def store_with_tables(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """An empty store where a run of `work` will look for one: making the tables takes seconds."""
    if "mlflow" in getattr(getattr(request.node, "callspec", None), "params", {}).values():
        template = request.getfixturevalue("mlflow_tables")
        (tmp_path / "outputs").mkdir()
        shutil.copy(template, tmp_path / "outputs" / "mlflow.db")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The run without a tracker."""
    return Work(tmp_path_factory.mktemp("plain"), cache).train()


def expected_rows(run: Path) -> dict[tuple[str, int], float]:
    """Name and step -> value, of every number of history.jsonl."""
    found: dict[tuple[str, int], float] = {}
    for record in read_history(run / "history.jsonl"):
        if record["kind"] == "train":
            found |= {(f"train/{key}", record["step"]): record[key] for key in ("loss", "grad_norm", "lr")}
        else:
            (method,) = set(record) - {"step", "kind"}
            found |= {(f"val/{method}/{key}", record["step"]): value for key, value in record[method].items()}
    return found


def assert_told(tracker: str, told: Told, run: Path) -> None:
    """Everything once, and as the files have it; TensorBoard keeps 24 bits of a number."""
    kept: Callable[[float], float] = (lambda x: float(np.float32(x))) if tracker == "tensorboard" else float
    assert {key: kept(value) for key, value in expected_rows(run).items()} == {
        key: value for key, (value,) in told.rows.items()
    }
    document = metrics(run)
    for method, row in document["metrics"].items():
        for metric, value in row.items():
            assert told.figures[f"metrics/{method}/{metric}"] == kept(value)
            if interval := document["intervals"][method][metric]:
                ends = [told.figures[f"intervals/{method}/{metric}/{end}"] for end in ("low", "high")]
                assert ends == [kept(value) for value in interval]
    assert told.figures["cost/peak_bytes"] == kept(document["cost"]["peak_bytes"])
    assert told.figures["training/best_step"] == document["training"]["best_step"]
    assert told.ended
    assert json.loads((run / "tracker.json").read_text())["told"] == "everything"
    assert verify(run) == []


@EACH
def test_a_tracker_holds_what_the_files_say_and_changes_nothing(tracker: str, work: Work, plain: Path) -> None:
    run = work.train(f"logger={tracker}")
    told = read(tracker, run)
    assert_told(tracker, told, run)
    assert (told.name, told.group) == (run.name, None)
    config = flat_values(metrics(run)["config"])
    assert len(config) > 60
    assert {key: told.config[key] for key in config} == config
    for pointer in ("best", "last"):
        assert same_bits(tensors(run, pointer), tensors(plain, pointer))
    for name in ("history.jsonl", "funnel.json", "per_user.parquet"):
        assert (run / name).read_bytes() == (plain / name).read_bytes()
    with_it, without = without_paths(metrics(run)), without_paths(metrics(plain))
    assert with_it["config"].pop("logger")["name"] == tracker
    assert without["config"].pop("logger")["name"] == "files"
    assert with_it == without


@EACH
def test_a_resumed_run_tells_no_step_twice(
    tracker: str, work: Work, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends behind the records of step 4, whose checkpoint is not saved: steps 3 and 4 are computed and told again."""
    save = Store.save

    def broken(self: Store, params: Any, optimizer: Any, at: Any, *more: Any) -> None:
        if at.step == 4:
            raise RuntimeError("power cut")
        save(self, params, optimizer, at, *more)

    monkeypatch.setattr(Store, "save", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        work.train(f"logger={tracker}")
    monkeypatch.undo()
    (run,) = work.directories("train")
    before = read(tracker, run)
    assert ("train/loss", 4) in before.rows
    assert before.figures == {}
    os.chdir("/")  # a relative place would be another one from here
    assert cli.main(["train", f"resume={run}"]) == 0
    assert (run / "history.jsonl").read_bytes() == (plain / "history.jsonl").read_bytes()
    assert_told(tracker, read(tracker, run), run)


@pytest.mark.slow
@EACH
def test_a_killed_run_goes_on_in_its_own_entry(tracker: str, work: Work) -> None:
    words = (
        "train.steps=40",
        "train.eval_every=8",
        "train.checkpoint_every=12",
        "train.patience=0",
        f"logger={tracker}",
    )
    process = work.start_train(*words)

    def far_enough() -> bool:
        paths = [path / "history.jsonl" for path in work.directories("train")]
        return any(path.exists() and len(path.read_bytes().splitlines()) > 15 for path in paths)

    wait_for(far_enough, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    identity = json.loads((run / "tracker.json").read_text())["id"]
    assert cli.main(["train", f"resume={run}"]) == 0
    assert json.loads((run / "tracker.json").read_text())["id"] == identity
    assert_told(tracker, read(tracker, run), run)


@EACH
def test_a_missing_extra_is_refused_before_anything_runs(
    tracker: str, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for verb in ("train", "compare"):
        assert work.main(verb, f"logger={tracker}") == 5
        assert f"is not installed -- pip install 'metarec[{tracker}]'" in capsys.readouterr().err
        assert work.directories(verb) == []


@MLFLOW
@pytest.mark.parametrize("until", ["the last step", "the end"])
def test_a_locked_store_does_not_stop_the_run(
    tracker: str,
    until: str,
    work: Work,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Locked from the first step on: the run ends with its figures, and with the tracker whole if the lock has gone."""
    monkeypatch.setattr(own_mlflow, "BUSY_S", 0.1)
    begin, finish, locks = Tracker.begin, Tracker.finish, list[sqlite3.Connection]()

    def begin_and_lock(self: Tracker, *given: Any) -> None:
        begin(self, *given)
        locks.append(sqlite3.connect(work.root / "outputs" / "mlflow.db", isolation_level=None))
        locks[0].execute("BEGIN EXCLUSIVE")

    def unlock_and_finish(self: Tracker, *given: Any) -> None:
        if until == "the last step":
            locks[0].close()
        finish(self, *given)

    monkeypatch.setattr(Tracker, "begin", begin_and_lock)
    monkeypatch.setattr(Tracker, "finish", unlock_and_finish)
    run = work.train("logger=mlflow")
    said = capsys.readouterr().err
    assert said.count("database is locked: the run goes on without it") == 1
    assert metrics(run)["metrics"] == metrics(plain)["metrics"]
    assert verify(run) == []
    if until == "the last step":
        assert "everything was told at the end" in said
        assert_told(tracker, read(tracker, run), run)
    else:
        locks[0].close()
        assert "database is locked: not everything was told" in said
        assert "database is locked" in json.loads((run / "tracker.json").read_text())["told"]
        assert not read(tracker, run).ended


@MLFLOW
def test_the_jobs_of_a_sweep_are_runs_of_one_group(tracker: str, work: Work) -> None:
    assert work.main("train", "-m", *tiny(), "logger=mlflow", "residual=on", "seed=1,2") == 0
    (sweep,) = work.directories("train")
    jobs = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    for seed, job in enumerate(jobs, 1):
        told = read(tracker, job)
        assert (told.name, told.group, told.config["seed"]) == (job.name, sweep.name, seed)


def test_the_group_of_a_run_is_what_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "outputs"
    assert group_of(out / "train" / "run", out) is None
    assert group_of(out / "train" / "sweep" / "0_seed-1", out) == "sweep"
    assert group_of(out / "compare" / "comparison" / "jobs" / "maml_seed1", out) == "comparison"
    assert group_of(tmp_path / "elsewhere" / "run", out) is None


TRAP = """
import os, socket

def refuse(what):
    def call(*given, **named):
        with open(os.environ["TRIED"], "a") as file:
            file.write(f"{what} {given} {named}\\n")
        raise OSError("no network in tests")
    return call

def connect(self, address, _connect=socket.socket.connect):
    return _connect(self, address) if self.family == socket.AF_UNIX else refuse("connect")(address)

socket.getaddrinfo, socket.socket.connect = refuse("resolve"), connect
socket.gethostname = lambda: "a-telling-host-name"
"""


@pytest.mark.slow
@EACH
def test_no_network_and_no_secret(tracker: str, work: Work, tmp_path: Path) -> None:
    """The command as it is typed, to its very end, where libraries report their use: nothing is looked up or connected
    to by Python, nor through a proxy by a process that it starts. A key of wandb's in the environment stays there, and
    so does the name of the machine."""
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sitecustomize.py").write_text(TRAP)
    tried, secret = tmp_path / "tried", "5ec2e7" + "0" * 34
    quiet = ("WANDB_", "MLFLOW_", "DO_NOT_TRACK", "CI", "PYTEST_", "GITHUB_")  # what would keep them quiet of itself
    env = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    env |= {"PYTHONPATH": os.pathsep.join([str(tmp_path / "trap"), *sys.path]), "TRIED": str(tried)}
    env |= {"WANDB_API_KEY": secret, "HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{proxy.getsockname()[1]}")
        words = work.words("train", *tiny(), "residual=on", f"logger={tracker}")
        done = subprocess.run([sys.executable, "-m", "metarec", *words], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not tried.exists(), tried.read_text()
    paths = [path for path in (work.root / "outputs").rglob("*") if path.is_file()]
    assert len(paths) > 10
    for path in paths:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert b"a-telling-host-name" not in content + path.name.encode(), path


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
@WANDB
def test_the_service_process_ends_before_the_run_is_sealed(
    tracker: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the log: as long as it lives, the log may be unfinished."""

    def alive(_: Any = None) -> list[str]:
        names = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
        return [
            line for line in names if "wandb-core" in line and line.rpartition(")")[2].split()[1] == str(os.getpid())
        ]

    seal, at_the_end = rundir.seal, list[list[str]]()
    monkeypatch.setattr(rundir, "seal", lambda run: (at_the_end.append(alive()), seal(run))[1])
    tell, before = Tracker.sync, list[list[str]]()
    monkeypatch.setattr(Tracker, "sync", lambda self: (before.append(alive()), tell(self))[1])
    work.train("logger=wandb")
    assert len(before[0]) == 1
    assert at_the_end == [[]]


@WANDB
def test_online_without_a_key_is_refused(
    tracker: str, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(work.root / "nothing"))
    assert work.main("train", *tiny(), "residual=on", "logger=wandb", "logger.online=true") == 5
    assert "logger.online: true: wandb has no API key -- set WANDB_API_KEY" in capsys.readouterr().err
    assert work.directories("train") == []
