"""A sweep given again: what is the same command, what of it is run, what its records say; runs are stand-ins here."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metarec import cli
from metarec.config import command
from metarec.config.compose import config_to_yaml, slug
from metarec.config.overrides import Job
from metarec.config.sweep import RECORD, Record, read_record, write_record
from metarec.errors import DataError, DivergedError
from metarec.runs.lock import hold
from metarec.runs.rundir import seal, write_run_card

SEEDS = "seed=1,2,3,4,5,6"
Again = Callable[..., int]


class Jobs:
    """What stands in for runs: they note themselves, write what a run writes, and end as `ends` says of their seed."""

    def __init__(self) -> None:
        self.ends: dict[int, BaseException] = {}
        self.planned: list[Job] = []
        self.seen: list[tuple[int, bool]] = []  # seed, whether it went on

    def run(self, verb: str, config: Any, run_dir: Path, resume: bool, given: Any = ()) -> dict[str, Any]:
        self.seen.append((config.seed, resume))
        if not resume:
            write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=list(given))
        if config.seed in self.ends:
            raise self.ends[config.seed]
        seal(run_dir)
        return {"run_dir": str(run_dir), "headline": {"hr@10": config.seed / 1000}}

    def launch(self, verb: str, words: list[str], key: str, directory: Path) -> None:
        """One after the other as Hydra's own launcher does, which composes each of them anew for a third of a second."""
        assert key == "hydra.sweep.dir"
        for number, job in enumerate(self.planned):
            path = directory / f"{number}_{slug(','.join(job.overrides))}"
            path.mkdir(exist_ok=True)
            given = list(job.overrides)
            begin, go_on = (partial(self.run, verb, job.config, path, resume, given) for resume in (False, True))
            command.job(verb, given, command.Place(directory, path, number), begin, go_on)

    def ran(self) -> list[tuple[int, bool]]:
        """Those since the last look."""
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    found = Jobs()
    asked = command.asked

    def noted(verb: str, args: Any, checked: Any) -> dict[str, Any]:
        found.planned = checked.jobs
        return asked(verb, args, checked)

    monkeypatch.setattr(command, "asked", noted)
    monkeypatch.setattr(cli, "run_verb", found.run)
    monkeypatch.setattr(cli, "compose_and_run", found.launch)
    monkeypatch.chdir(tmp_path)
    return found


def sweeps() -> list[Path]:
    return sorted(Path("outputs/train").iterdir())


def ended(words: list[str]) -> int:
    """The exit code of the process, which a signal may raise."""
    try:
        return cli.main(words)
    except SystemExit as left:
        return int(str(left.code))


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in json.loads((sweep / "sweep.json").read_text())["jobs"]]


def test_the_same_command_runs_what_is_missing(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of six fail: four complete, both are told with reasons; given again only the two run, and go on."""
    jobs.ends = {
        2: DivergedError("loss", "nan", "not finite", "lower the step size"),
        5: DataError("log.csv:3", "x", "bad row", "mend it"),
    }
    assert cli.main(["train", "-m", SEEDS]) == 6  # the first failure's
    (sweep,) = sweeps()
    assert statuses(sweep) == ["ok", "failed", "ok", "ok", "failed", "ok"]
    summary = json.loads((sweep / "sweep.json").read_text())
    reasons = {number: summary["jobs"][number]["error"] for number in (1, 4)}
    assert reasons == {
        1: "error: loss: nan: not finite -- lower the step size",
        4: "error: log.csv:3: x: bad row -- mend it",
    }
    told = capsys.readouterr().out
    assert all(f"job {number}: {reason}" in told for number, reason in reasons.items())
    assert "4 of 6 jobs ok" in told
    assert jobs.ran() == [(seed, False) for seed in range(1, 7)]

    del jobs.ends[2]
    assert cli.main(["train", "-m", SEEDS]) == 3
    assert jobs.ran() == [(2, True), (5, True)]
    assert statuses(sweep) == ["ok", "ok", "ok", "ok", "failed", "ok"]
    assert f"going on with {sweep}, where 4 of 6 jobs are done; --again begins" in capsys.readouterr().out

    jobs.ends.clear()
    assert cli.main(["train", "-m", SEEDS]) == 0
    assert jobs.ran() == [(5, True)]
    assert [job["start"] for job in json.loads((sweep / "sweep.json").read_text())["jobs"]] == [1, 2, 1, 1, 3, 1]
    assert cli.main(["train", "-m", SEEDS]) == 0
    assert (jobs.ran(), sweeps()) == ([], [sweep])
    assert "6 of 6 jobs ok" in capsys.readouterr().out


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt()], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_whole_and_the_next_start_goes_on(end: BaseException, jobs: Jobs) -> None:
    jobs.ends = {2: end}
    code = 143 if isinstance(end, SystemExit) else 130
    assert ended(["train", "-m", SEEDS]) == code
    (sweep,) = sweeps()
    assert statuses(sweep) == ["ok", "interrupted", *["not run"] * 4]
    jobs.ran()
    jobs.ends.clear()
    assert cli.main(["train", "-m", SEEDS]) == 0
    assert jobs.ran() == [(2, True), (3, False), (4, False), (5, False), (6, False)]


def test_a_sweep_that_was_killed_goes_on(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of `recorded` or `finally` happens after kill -9: a marker and an unfinished run are all there is."""
    assert cli.main(["train", "-m", "seed=1,2,3"]) == 0
    (sweep,) = sweeps()
    second = next(sweep.glob("1_*"))
    for name in (RECORD, "manifest.json"):
        (second / name).unlink()
    command.write_json(sweep / f"{command.RUNNING}1", vars(Record(1, ["seed=2"], "interrupted")))
    third = next(sweep.glob("2_*"))
    (third / RECORD).unlink()  # killed behind the seal, ahead of the record
    jobs.ran()
    assert cli.main(["train", "-m", "seed=1,2,3"]) == 0
    assert jobs.ran() == [(2, True), (3, True)]
    assert list(sweep.glob(f"{command.RUNNING}*")) == []


def test_what_is_another_command(jobs: Jobs) -> None:
    base = ["train", "-m", "seed=1,2"]
    assert cli.main(base) == 0
    for other in ([*base, "algorithm=fomaml"], ["train", "-m", "seed=2,1"], [*base, "--again"]):
        before = len(sweeps())
        assert cli.main(other) == 0
        assert len(sweeps()) == before + 1, other
    jobs.ran()
    assert cli.main(base) == 0
    assert (jobs.ran(), len(sweeps())) == ([], 4)


def test_other_values_behind_the_same_words(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a YAML file or a default has changed since."""
    base = ["train", "-m", "seed=1,2"]
    assert cli.main(base) == 0
    asked = command.asked

    def changed(verb: str, args: Any, checked: Any) -> dict[str, Any]:
        checked.jobs[1].config.train.steps += 1
        return asked(verb, args, checked)

    monkeypatch.setattr(command, "asked", changed)
    assert cli.main(base) == 0
    assert len(sweeps()) == 2


def test_from_another_directory_words_may_mean_another_file(jobs: Jobs, tmp_path: Path, monkeypatch: Any) -> None:
    base = ["train", "-m", "seed=1,2", f"output_dir={tmp_path / 'outputs'}"]
    assert cli.main(base) == 0
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert cli.main(base) == 0
    assert len(list((tmp_path / "outputs" / "train").iterdir())) == 2


def test_the_newest_is_gone_on_with(jobs: Jobs, tmp_path: Path) -> None:
    base = ["train", "-m", "seed=1,2"]
    assert cli.main(base) == 0
    first, second = sweeps()[0], Path("outputs/train/2999-01-01_00-00-00_0123abcd")
    second.mkdir()
    (second / command.FILE).write_bytes((first / command.FILE).read_bytes())
    jobs.ran()
    assert cli.main(base) == 0
    assert len(jobs.ran()) == 2
    assert len(list(second.glob("*/manifest.json"))) == 2


def test_a_damaged_card_is_told_and_passed_over(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "seed=1,2"]) == 0
    (sweep,) = sweeps()
    card = sweep / command.FILE
    card.write_bytes(card.read_bytes().replace(b"seed=1", b"seed=3"))
    assert cli.main(["train", "-m", "seed=3,2"]) == 0
    assert f"note: {card}: damaged" in capsys.readouterr().err
    assert len(sweeps()) == 2


def test_a_damaged_record_counts_as_not_run(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "seed=1,2"]) == 0
    (sweep,) = sweeps()
    next(sweep.glob("1_*/job.json")).write_text('{"number": 1')
    jobs.ran()
    assert cli.main(["train", "-m", "seed=1,2"]) == 0
    assert jobs.ran() == [(2, True)]
    assert "damaged, so its job counts as not run" in capsys.readouterr().err


def test_two_starts_of_one_sweep(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "seed=1,2"]) == 0
    (sweep,) = sweeps()
    held, release = _held(sweep)
    held()
    assert cli.main(["train", "-m", "seed=1,2"]) == 5
    assert "begin a new sweep by adding --again" in capsys.readouterr().err
    release()


def _held(directory: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """A lock that another thread holds, as another process would."""
    import threading

    taken, gone = threading.Event(), threading.Event()

    def body() -> None:
        with hold(directory):
            taken.set()
            gone.wait(60)

    thread = threading.Thread(target=body)
    thread.start()

    def release() -> None:
        gone.set()
        thread.join()

    return lambda: taken.wait(60) and None, release


@pytest.mark.parametrize("words", [["train", "--again", "seed=1"], ["train", "-m", "hydra/sweeper=optuna", "--again"]])
def test_again_is_for_sweeps(words: list[str], jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "--again" in capsys.readouterr().err


def test_a_killed_worker_is_told_with_its_signal(tmp_path: Path) -> None:
    """The jobs that ran are failures of this start; without one the trouble would come back for ever."""
    run = tmp_path / "0_a"
    run.mkdir()
    record = Record(0, ["seed=1"], "interrupted", directory=str(run), start=2)
    trouble = BrokenProcessPool(f"exit codes of the workers are {{{signal.SIGKILL.name}(-9)}}")
    assert not command.worker_killed(tmp_path, trouble)
    with command.running(tmp_path, record):
        assert command.worker_killed(tmp_path, trouble)
    found = read_record(run)
    assert found is not None
    assert (found.status, found.exit_code, found.start) == ("failed", 5, 2)
    assert "was ended by SIGKILL while this job ran" in str(found.error)
    assert command.tried(run, 2)
    assert not command.tried(run, 3)
    assert not command.worker_killed(tmp_path, ValueError("SIGKILL"))


def test_what_is_done(tmp_path: Path) -> None:
    write_record(tmp_path, Record(0, ["seed=1"], "ok"))
    assert command.done("eval", tmp_path, ["seed=1"])
    assert not command.done("eval", tmp_path, ["seed=2"])
    assert not command.done("train", tmp_path, ["seed=1"])  # not sealed
    seal(tmp_path)
    assert command.done("train", tmp_path, ["seed=1"])


def test_a_record_is_left_inside_of_the_sweep_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The marker of a job that ran says where; it may be a stranger's, or damaged."""
    sweep, outside = tmp_path / "sweep", tmp_path / "outside"
    (sweep / "1").mkdir(parents=True)
    outside.mkdir()
    for number, directory in enumerate((outside, sweep / ".." / "outside", sweep / "1")):
        command.write_json(
            sweep / f"{command.RUNNING}{number}", vars(Record(number, [], "interrupted", directory=str(directory)))
        )
    (sweep / f"{command.RUNNING}3").write_text("[" * 5_000)
    assert command.left(sweep, "interrupted", 143, "stopped") == 4
    assert list(outside.iterdir()) == []
    found = read_record(sweep / "1")
    assert found is not None
    assert (found.status, found.exit_code, found.error) == ("interrupted", 143, "stopped")
    assert f"{command.RUNNING}3: damaged" in capsys.readouterr().err
    assert sorted(path.name for path in sweep.iterdir()) == ["1"]
