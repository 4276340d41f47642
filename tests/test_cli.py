"""The command: verbs, help, exit codes, run directories, sweeps, resume, completion. The runs themselves are fakes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from reference.composed_once import shipped_files_composed_once as shipped_files_composed_once

from metarec import cli, parts
from metarec.config.completion import first_words, split_line
from metarec.config.compose import config_to_yaml
from metarec.config.overrides import check_words
from metarec.config.paths import conf_dir
from metarec.config.schema import TrainConfig
from metarec.config.sweep import collect, exit_code
from metarec.errors import DataError, DivergedError

ROOT = Path(__file__).parent.parent
Run = Callable[[str, Any, Path, bool], dict[str, Any]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Path, bool]]:
    """Replace the runs by one that notes its arguments and fails where the seed says so; work in an empty directory."""
    noted: list[tuple[str, Any, Path, bool]] = []

    def run(verb: str, config: Any, run_dir: Path, resume: bool, given: Any = ()) -> dict[str, Any]:
        noted.append((verb, config, run_dir, resume))
        seed = getattr(config, "seed", 0)
        if seed == 13:
            raise DataError("log.csv:3", "x", "bad row", "mend it")
        (run_dir / "metrics.json").write_text("{}")
        if seed == 14:
            raise DivergedError("loss", "nan", "not finite", "lower the step size")
        if seed == 15:
            raise ZeroDivisionError("planted")
        if seed == 16:
            raise KeyboardInterrupt
        if seed == 17:
            sys.exit(143)
        if seed == 18:
            sys.exit("planted exit")
        return {"run_dir": str(run_dir), "headline": {"hr@10": 0.25 + seed / 1000}}

    monkeypatch.setattr(cli, "run_verb", run)
    monkeypatch.chdir(tmp_path)
    return noted


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Help and usage


def test_help_needs_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, metarec.cli as c; c.main(['--help']); c.main(['train', '--help']);"
        "print([m for m in ('torch', 'duckdb', 'pandas', 'numpy', 'hydra', 'omegaconf', 'optuna') if m in sys.modules])"
    )
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        found = python("-c", code)
        best = min(best, time.perf_counter() - start)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr
    assert best < 0.5


def test_a_refusal_needs_nothing_heavy() -> None:
    code = (
        "import sys, metarec.cli as c; assert c.main(['train', 'seed=x']) == 2;"
        "print([m for m in ('torch', 'duckdb', 'pandas', 'numpy', 'optuna') if m in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


def test_help_lists_verbs_groups_choices_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("prepare", "train", "eval", "metarec train dataset=events dataset.path=FILE"))
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for path in conf_dir().glob("*/*.yaml"):
        assert f" {path.stem} " in text or f"*{path.stem} " in text
    assert "*meta_sgd" in text
    assert "train.meta_batch_size        32" in text
    assert cli.main(["eval", "-h"]) == cli.main(["prepare", "--help"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "--help"]) == cli.main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    for said in ("metarec report RUN...", "metarec compare RUN...", "formats      [html,md]", "against      null"):
        assert said in text


def test_examples_of_the_help_pass_the_check() -> None:
    from metarec.config.help import examples
    from metarec.config.reading import parse_reading

    commands = [line for path in conf_dir().rglob("*.yaml") for line in examples(path)]
    assert len(commands) > 40
    for command in commands:
        _, verb, *words = shlex.split(command.split("  ")[0])
        if "--cfg" in words:
            continue
        words = [word.replace("=FILE", "=/f.csv").replace("=DIR", "=/d") for word in words]
        if verb == "compare" and any("=" not in word for word in words if word != "-m"):  # of runs that are there
            parse_reading(verb, words)
            continue
        multirun = "-m" in words
        words = [word for word in words if word != "-m"]
        if verb in ("train", "prepare", "compare") and not any(
            word.startswith(("data_dir=", "resume=")) for word in words
        ):
            words.append("data_dir=/data")
        check_words(verb, words, multirun=multirun)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == cli.main(["train", "--version"]) == 0
    assert capsys.readouterr().out.startswith("metarec ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "command line: trian: not a verb -- did you mean `metarec train`?"),
        (["xyzzy"], "the verbs are prepare, train, eval"),
        (["train", "--steps", "5"], "not understood -- write key=value"),
        (["train", "--config-name", "mine"], "unrecognized arguments"),
        (["train", "--experimental-rerun", "config.pickle"], "unrecognized arguments"),
        (["train", "--cfg", "job", "residual=maybe"], "residual: maybe"),
        (["train", "hydra.run.dir=/tmp"], "hydra.run.dir: set: is set by metarec itself -- use output_dir=DIR"),
        (["train", "hydra.mode=MULTIRUN"], "use -m"),
        (["train", "-m", "--cfg", "job"], "does not go with"),
        (["eval"], "ckpt: null: nothing to evaluate"),
        (["train", "--config-dir", "nowhere"], "--config-dir: nowhere: no such directory"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    words: list[str], line: str, runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert line in captured.err
    assert (captured.out, runs, list(tmp_path.iterdir())) == ("", [], [])


def test_all_errors_together_are_a_line_each(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "train.stpes=1", "seed=x", "residual=maybe"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


# One run


def test_a_run_gets_its_checked_config_and_a_directory_of_its_own(runs: list[Any], tmp_path: Path) -> None:
    assert cli.main(["train", "residual=no", "output_dir=a b/out", "train.steps=200"]) == 0
    assert cli.main(["train", "residual=no", "output_dir=a b/out", "train.steps=200"]) == 0
    (verb, config, first, resume), (_, _, second, _) = runs
    assert (verb, resume) == ("train", False)
    assert isinstance(config, TrainConfig)
    assert (config.residual.name, config.train.steps) == ("off", 200)
    assert first.parent == second.parent == tmp_path / "a b" / "out" / "train"
    assert first != second
    assert [path.name for path in first.iterdir()] == ["metrics.json"]  # nothing of Hydra's


@pytest.mark.parametrize("verb", [["prepare"], ["eval", "ckpt=x"]])
def test_other_verbs(verb: list[str], runs: list[Any], tmp_path: Path) -> None:
    assert cli.main(verb) == 0
    assert runs[0][2].parent == tmp_path / "outputs" / verb[0]


@pytest.mark.parametrize(("seed", "code"), [(13, 3), (14, 6), (16, 130)])
def test_exit_codes_without_traceback(
    seed: int, code: int, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", f"seed={seed}"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert runs[0][2].exists() == (seed != 13)  # a directory in which nothing was written does not stay


def test_a_bug_shows_its_traceback_and_exits_1(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "seed=15"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: planted" in err
    assert "this is a bug in metarec" in err.splitlines()[-1]


def test_termination_exits_143(runs: list[Any]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "seed=17"])
    assert caught.value.code == 143


def test_sigterm_exits_143(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time, metarec.cli as c\n"
        "c.run_verb = lambda *a: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9)\n"
        "sys.exit(c.main(['train']))"
    )
    assert python("-c", code, PYTHONPATH=str(ROOT)).returncode == 143


def test_an_output_directory_that_cannot_be_made(
    runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "output_dir=file"]) == 5
    assert "cannot make the run directory -- give output_dir=DIR" in capsys.readouterr().err


def test_show_runs_nothing_and_makes_nothing(
    runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "--cfg", "job", "dataset=events", "optimizer=sgd"]) == 0
    text = capsys.readouterr().out
    assert "  name: sgd" in text
    assert "n_support: 5" in text  # an option that dataset/events.yaml does not list
    assert cli.main(["train", "--info", "defaults"]) == 0
    assert "algorithm/meta_sgd" in capsys.readouterr().out
    assert (runs, list(tmp_path.iterdir())) == ([], [])


# Sweeps


def test_a_sweep_runs_every_job_apart_and_sums_up(
    runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "-m", "algorithm=fomaml", "residual=off,yes", "seed=1,2"]) == 0
    directories = [run_dir for _, _, run_dir, _ in runs]
    assert len({*directories}) == 4
    assert [(c.residual.name, c.seed) for _, c, _, _ in runs] == [("off", 1), ("off", 2), ("on", 1), ("on", 2)]
    (sweep,) = (tmp_path / "outputs" / "train").iterdir()
    assert {path.parent for path in directories} == {sweep}
    assert directories[0].name == "0_algorithm-fomaml_residual-off_seed-1"
    out = capsys.readouterr().out
    assert "4 of 4 jobs ok" in out
    assert out.count("0.2510") == out.count("0.2520") == 2
    summary = json.loads((sweep / "sweep.json").read_text())
    assert summary["counts"] == {"ok": 4, "failed": 0, "interrupted": 0, "not run": 0}
    assert summary["jobs"][3]["overrides"] == ["algorithm=fomaml", "residual=on", "seed=2"]
    assert summary["jobs"][3]["headline"] == {"hr@10": 0.252}


def test_a_failing_job_does_not_end_the_sweep(
    runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "-m", "seed=1,13,14,15,18,2"]) == 3  # the first failure's code
    assert len(runs) == 6
    captured = capsys.readouterr()
    assert "2 of 6 jobs ok" in captured.out
    assert "job 1: error: log.csv:3: x: bad row -- mend it" in captured.out
    assert "job 2: error: loss: nan: not finite -- lower the step size" in captured.out
    assert "job 3: error: a bug in metarec: ZeroDivisionError: planted" in captured.out
    assert "job 4: error: the run called sys.exit(planted exit)" in captured.out
    assert "ZeroDivisionError: planted" in captured.err
    (sweep,) = (tmp_path / "outputs" / "train").iterdir()
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job["exit_code"] for job in jobs] == [0, 3, 6, 1, 1, 0]


def test_an_interrupt_ends_the_sweep_and_still_sums_up(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "seed=1,16,2"]) == 130
    assert len(runs) == 2
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "not run" in out
    assert "1 of 3 jobs ok" in out


def test_a_bad_job_stops_the_sweep_before_it_begins(runs: list[Any], tmp_path: Path) -> None:
    assert cli.main(["train", "-m", "seed=1,x"]) == 2
    assert (runs, list(tmp_path.iterdir())) == ([], [])


def test_jobs_without_a_record_count_as_not_run(tmp_path: Path) -> None:
    records = collect(tmp_path, [["seed=1"]])
    assert (records[0].status, exit_code(records)) == ("not run", 1)


# Resume


def test_resume_reads_the_stored_config(runs: list[Any], tmp_path: Path) -> None:
    (job,) = check_words("train", ["algorithm.inner.lr=1e-5", "optimizer=sgd", "schedule=cosine"]).jobs
    run_dir = tmp_path / "run 1"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(config_to_yaml(job.config))
    assert cli.main(["train", f"resume={run_dir}"]) == 0
    assert runs == [("train", job.config, run_dir, True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run 1"]  # no other directory


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["resume=nowhere"], "resume: nowhere: no such run directory"),
        (["resume=run", "seed=2"], "a run carries on with its own options, not with seed=2 -- give it alone"),
        (["-m", "resume=run"], "not with -m"),
        (["resume=run"], "not readable, so this is no run directory"),
    ],
)
def test_resume_refuses(words: list[str], line: str, runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    assert cli.main(["train", *words]) == 2
    assert line in capsys.readouterr().err
    assert runs == []


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarec ", ["prepare", "train", "eval", "export", "compare", "teachers", "report", "--help", "--version"]),
        ("metarec tr", ["train"]),
        ("metarec train algor", ["algorithm=", "algorithm."]),
        ("metarec train residual=", [f"residual={name}" for name in parts.names("residual")]),
        ("metarec train -m residual=o", ["residual=off", "residual=on"]),
        ("metarec train residual=memory+o", ["residual=memory+off", "residual=memory+on"]),
        ("metarec train seed=2 optimizer.l", ["optimizer.lr="]),
        ("metarec train dataset.episodes.n_s", ["dataset.episodes.n_support="]),
        ("metarec eval hard", ["hardware=", "hardware."]),
        ("metarec export mer", ["merge="]),
        ("metarec report outputs/train/RUN out", ["output=", "output_dir="]),
        ("metarec nothing x", []),
    ],
)
def test_completion(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ConfigStore.instance().repo.get("residual", {})  # a list that an earlier test of this process has composed
    for name in [name for name in known if "+" in name]:
        del known[name]
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert cli.main(["-sc", "query=bash"]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(expected)


def test_completion_installs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("-F hydra_bash_completion metarec")


def test_the_verb_leaves_the_line() -> None:
    assert split_line("metarec train algor") == ("train", "metarec algor")
    assert split_line("metarec  train ") == ("train", "metarec ")
    assert split_line("metarec tra") == (None, "")
    assert first_words("metarec p") == ["prepare"]
    assert first_words("metarec e") == ["eval", "export"]
