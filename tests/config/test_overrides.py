"""What the command line refuses, all at once, and what it lets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metarec import parts
from metarec.config.check import ConfigErrors
from metarec.config.overrides import check_words, normalise
from metarec.errors import ConfigError


def refused(*words: str, verb: str = "train", **options: Any) -> list[str]:
    """The lines that a command line is refused with."""
    with pytest.raises(ConfigError) as caught:
        check_words(verb, list(words), **options)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def config(*words: str, verb: str = "train", **options: Any) -> Any:
    (job,) = check_words(verb, list(words), **options).jobs
    return job.config


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.stpes=10", "train.stpes: 10: unknown key -- did you mean train.steps?"),
        ("train.lr=0.1", "did you mean algorithm.inner.lr or optimizer.lr or pretrain.lr?"),
        ("sampler=window", "sampler: window: unknown key -- did you mean train.sampler?"),
        ("optimzer=sgd", "optimzer: sgd: unknown key -- did you mean optimizer?"),
        ("optimizer=sdg", "optimizer: sdg: no such alternative -- did you mean sgd? choose adam|adamw|"),
        ("residual=maybe", f"residual: maybe: no such alternative -- choose {'|'.join(parts.names('residual'))}"),
        (
            "schedule.final_factor=0.5",
            "schedule=constant has no such key -- it belongs to schedule=cosine|warm_cosine|linear",
        ),
        ("+train.foo=1", "train.foo: 1: unknown key"),
        ("++train.foo=1", "train.foo: 1: unknown key"),
        ("+seed=1", "+seed: 1: exists already, there is nothing to add -- write seed=1"),
        ("~seed", "nothing can be removed"),
        ("optimizer@train=sgd", "optimizer@train: sgd: a group has one place -- write optimizer=sgd"),
        ("optimizer.name=sgd", "optimizer.name: sgd: chosen through the group -- write optimizer=sgd"),
        ("train.steps=abc", "train.steps: abc: wrong type -- give a whole number"),
        ("train.steps=1.5", "train.steps: 1.5: wrong type -- give a whole number"),
        ("train.steps=true", "train.steps: true: wrong type"),
        ("train.steps=null", "train.steps: null: wrong type"),
        ("train.steps=[1]", "train.steps: [1]: wrong type"),
        ("train.steps=-1", "train.steps: -1: out of range -- give a value >= 1"),
        ("train=5", "train: 5: is a section, not a value -- set one of its keys, such as train.steps"),
        ("train.patience=-1", "train.patience: -1: out of range -- give a value >= 0"),
        ("algorithm.inner.lr=nan", "algorithm.inner.lr: nan: not finite"),
        ("algorithm.inner.lr=inf", "algorithm.inner.lr: inf: not finite"),
        ("model.dropout=1", "model.dropout: 1: out of range -- give a value >= 0 and < 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas: [0.9]: wrong length -- give 2 values"),
        ("optimizer.betas=[0.9,2]", "out of range -- give a value >= 0 and < 1"),
        ("optimizer.betas.0=0.8", "optimizer.betas.0: 0.8: unknown key -- did you mean optimizer.betas?"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm: -1: out of range -- give a value >= 0"),
        ("evaluation.monitor=ndgc@10", "evaluation.monitor: ndgc@10: not a choice -- did you mean ndcg@10?"),
        ("evaluation.control.lrs=[]", "evaluation.control.lrs: []: empty list"),
        ("evaluation.control.steps=[1,x]", "evaluation.control.steps: [1,x]: wrong type"),
        ("hardware.device=tpu", "hardware.device: tpu: not a choice"),
        ("dataset.memory_limit=lots", "dataset.memory_limit: lots: not understood -- give a size"),
        ("output_dir=", "output_dir: '': empty"),
        ("dataset.split.fractions=[0.5,0.5]", "wrong length -- give 3 values"),
        ("data_dir=${nothing}", "configuration: data_dir: "),
        ("seed=1,2", "seed: 1,2: several values for one run -- add -m to run each"),
        ("fomaml", "command line: fomaml: not key=value -- did you mean algorithm=fomaml?"),
        ("seed=(1", "seed: (1: not readable"),
    ],
)
def test_one_line_says_what_is_wrong(word: str, line: str) -> None:
    (found,) = refused(word)
    assert line in found


def test_smoothing_belongs_to_the_objectives_over_all_items() -> None:
    (line,) = refused("objective=bce", "objective.label_smoothing=0.1")
    assert "objective=bce has no such key -- it belongs to objective=chunked_cross_entropy|cross_entropy" in line
    (line,) = refused("objective=gbce", "objective.t=1.5")
    assert "objective.t: 1.5: out of range -- give a value >= 0 and <= 1" in line


def test_everything_wrong_is_reported_together_and_once() -> None:
    lines = refused("train.stpes=1", "seed=abc", "optimizer=sdg", "model.dropout=2", "fomaml", "residual=maybe")
    assert len(lines) == 6
    for key in ("train.stpes", "seed", "optimizer", "model.dropout", "fomaml", "residual"):
        assert sum(key in line.partition(" -- ")[0] for line in lines) == 1


def test_every_element_and_every_job_of_a_sweep_is_checked() -> None:
    assert len(refused("seed=1,x,-2", "train.steps=5,200", multirun=True)) == 3  # two seeds and eval_every
    (line,) = refused("algorithm=supervised,fomaml", "residual=off,on", multirun=True)
    assert line.startswith("residual: on: algorithm=supervised")
    (line,) = refused("seed=interval(1,4)", multirun=True)
    assert "an interval has no list of values" in line
    (line,) = refused("seed=glob(*)", multirun=True)
    assert "matches no alternative" in line


def test_sweeps_are_expanded_as_hydra_does() -> None:
    checked = check_words("train", ["residual=off,on", "seed=range(1,3)", "optimizer=glob(adam*)"], multirun=True)
    assert len(checked.jobs) == 8
    assert checked.jobs[0].overrides == ("residual=off", "seed=1", "optimizer=adam")
    assert checked.jobs[-1].overrides == ("residual=on", "seed=2", "optimizer=adamw")


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "ON"])
def test_residual_takes_every_yes(word: str) -> None:
    assert config(f"residual={word}").residual.name == "on"


@pytest.mark.parametrize("word", ["false", "no", "off", "Off"])
def test_residual_takes_every_no(word: str) -> None:
    assert config(f"residual={word}").residual.name == "off"


def test_normalise_inside_a_sweep_and_only_there() -> None:
    assert normalise("residual=yes,False") == "residual=on,off"
    assert normalise("logger.plots=yes") == "logger.plots=yes"
    assert config("logger.plots=no").logger.plots is False
    assert config("train.steps=2e3").train.steps == 2000


@pytest.mark.parametrize("path", ["/a b/c(1).csv", "/é/ü=x.csv", "/it's.csv", "C:\\x y\\z", "/a,b/$c.csv'", "/tail\\"])
def test_paths_need_no_quotes_for_the_grammar(path: str) -> None:
    if "," in path:
        path = path.replace(",", "")
    assert config("dataset=events", f"dataset.path={path}").dataset.path == path


def test_home_directory_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("METAREC_DATA", "/data")
    monkeypatch.delenv("METAREC_CACHE", raising=False)
    found = config("output_dir=~/runs")
    assert (found.output_dir, found.data_dir, found.cache_dir) == (
        "/home/ann/runs",
        "/data",
        "/home/ann/.cache/metarec",
    )


def test_supervised_quietly_has_no_residual() -> None:
    assert config("algorithm=supervised").residual.name == "off"


def test_values_keep_their_types() -> None:
    found = config("dataset=events", "dataset.path=7", "dataset.columns.user=1", "algorithm.inner.lr=1")
    assert (found.dataset.path, found.dataset.columns.user) == ("7", "1")
    assert isinstance(found.algorithm.inner.lr, float)
    assert config("ckpt=x", "users=[1,b]", verb="eval").users == ["1", "b"]
    assert config("ckpt=x", "users=ids.txt", verb="eval").users == "ids.txt"


# Files of the user's own


def test_config_dir_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: sgd\nlr: 0.5\n")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "shop.yaml").write_text("name: shop\npath: /shop.csv\n")
    found = config("optimizer=mine", "dataset=shop", config_dir=tmp_path)
    assert (found.optimizer.lr, found.optimizer.momentum, found.dataset.path) == (0.5, 0.0, "/shop.csv")


def test_a_file_is_checked_like_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "e.yaml").write_text(
        "# @package _global_\ntrain: {stpes: 5, steps: x}\nfoo: 1\nmodel: {name: bert4rec}\nresidual: {name: on}\n"
    )
    lines = refused("experiment=e", config_dir=tmp_path)
    assert len(lines) == 5
    assert any("train.stpes: 5: unknown key -- did you mean train.steps?" in line for line in lines)
    assert any("residual.name: true" in line and "in quotes" in line for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {callbacks: {x: {_target_: os.system, command: touch PWNED}}}",
        "hydra: {job: {env_set: {LD_PRELOAD: x}}}",
        "hydra: {launcher: {_target_: subprocess.run}}",
        "hydra: {sweeper: {params: {seed: '1,2'}}}",
        "hydra: {mode: MULTIRUN}",
        "hydra: {job_logging: {handlers: {x: {'()': os.system, command: touch PWNED}}}}",
        "hydra: {run: {dir: /tmp}}",
        "defaults: [{override /hydra/launcher: joblib}]",
        "seed: !!python/object/apply:os.system [touch PWNED]",
        "train: [",
        "train: ${oc.nope:1}",
        "model: {_target_: os.system}",
        "data_dir: ${metarec_nothing:1}",
    ],
)
def test_a_hostile_or_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "c" / "experiment"
    folder.mkdir(parents=True)
    (folder / "e.yaml").write_text(f"# @package _global_\n{text}\n")
    (line,) = refused("experiment=e", config_dir=tmp_path / "c")
    assert " -- " in line
    assert not (tmp_path / "PWNED").exists()


def test_a_config_dir_may_not_hide_or_set_up(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "adam.yaml").write_text("name: adam\n")
    (line,) = refused(config_dir=tmp_path)
    assert "hidden by metarec's own file of that name -- rename it" in line
    (line,) = refused(config_dir=tmp_path / "nowhere")
    assert "no such directory" in line
    (tmp_path / "hydra").mkdir()
    (line,) = refused(config_dir=tmp_path)
    assert "may not set up Hydra itself" in line


def test_config_errors_survive_a_process_boundary() -> None:
    import pickle

    errors = ConfigErrors([ConfigError("a", 1, "x", "y"), ConfigError("b", 2, "x", "y")])
    assert str(pickle.loads(pickle.dumps(errors))) == str(errors) == "a: 1: x -- y\nb: 2: x -- y"
