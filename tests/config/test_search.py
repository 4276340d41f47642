"""The words of a search: its options, what stays fixed, what is refused before a trial runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarec.config import search as module
from metarec.config.overrides import check_words
from metarec.config.search import need_optuna, read_search, stored_search, write_search
from metarec.config.threads import asks_for_joblib, cores, divided, threads_each, too_many
from metarec.errors import CheckpointError, ConfigError, EnvironmentFault

OPTUNA = "hydra/sweeper=optuna"
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def refusals(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_search([OPTUNA, *words], None)
    return str(caught.value)


def test_options_fixed_words_and_space() -> None:
    found = read_search(
        [OPTUNA, "residual=no,context", LR, "seed=7", "hydra.sweeper.n_trials=12", "hydra.sweeper.sampler=random"], None
    )
    assert (found.options.n_trials, found.options.sampler, found.n_trials) == (12, "random", 12)
    assert found.words == ("seed=7",)
    assert [(one.key, one.kind) for one in found.space] == [("residual", "choice"), ("optimizer.lr", "float")]
    assert found.space[0].values == ("off", "context")  # normalised
    assert (found.config.seed, found.config.residual.name, found.config.optimizer.lr) == (7, "off", 1e-4)


@pytest.mark.parametrize(
    ("words", "n_trials"),
    [
        ([LR], 20),
        (["train.steps=100,200"], 2),  # no more than there are
        (["train.steps=100,200", "hydra.sweeper.n_trials=1"], 1),
        (["train.steps=100,200", "train.dropout=range(0,0.3,0.1)", "hydra.sweeper.sampler=grid"], 6),
    ],
)
def test_how_many_trials(words: list[str], n_trials: int) -> None:
    assert read_search([OPTUNA, *words], None).n_trials == n_trials


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to search"),
        (["optimizer.lrr=1,2"], "optimizer.lrr: 1: unknown key -- did you mean optimizer.lr?"),
        (["optimizer.lr=interval(0,1)"], "optimizer.lr: 0.0: out of range -- give a value > 0"),  # an end of it
        (["optimizer.lr=1e-3,1e-2,-1"], "optimizer.lr: -1: out of range"),  # the last of a list
        ([LR, LR], "given twice"),
        ([LR, "seed=1,2"], "give hydra.sweeper.seeds=[1,2,3]"),
        ([LR, "evaluation.monitor=mrr,hr@10"], "trials are compared by one figure"),
        ([LR, "dataset.episodes.n_support=3,5"], "on the same users"),
        ([LR, "evaluation.split=test"], "is set by the search"),
        ([LR, "algorithm=fomaml,supervised"], "leave supervised out"),
        ([LR, "hydra.sweeper.n_trails=3"], "did you mean hydra.sweeper.n_trials?"),
        ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials: 0: out of range"),
        ([LR, "hydra.sweeper.sampler=grit"], "did you mean grid?"),
        ([LR, "hydra.sweeper.sampler=grid"], "a grid has no end of it"),
        ([LR, "hydra/launcher=joblib"], "does nothing in a search"),
        ([LR, "hydra.sweeper.seeds=[1,1]"], "a seed stands twice"),
        ([LR, "seed=3", "hydra.sweeper.seeds=[1,2]"], "does nothing: hydra.sweeper.seeds is set"),
        (["optimizer.lr=tag(log,interval(0,1))"], "no logarithm"),
    ],
)
def test_what_is_refused_before_anything_runs(words: list[str], said: str) -> None:
    assert said in refusals(*words)


def test_all_refusals_come_together() -> None:
    assert len(refusals("optimizer.lr=interval(0,1)", "seed=1,2", "hydra.sweeper.n_jobs=0").splitlines()) == 3


def test_an_interval_needs_a_search() -> None:
    with pytest.raises(ConfigError, match="add -m hydra/sweeper=optuna"):
        check_words("train", [LR], multirun=True)


def test_the_file_brings_the_same_search_back(tmp_path: Path) -> None:
    words = [OPTUNA, LR, "algorithm.inner.steps=1,3", "hydra.sweeper.seeds=[1,2]", "hydra.sweeper.storage='a b.db'"]
    found = read_search([*words, "hydra.sweeper.n_jobs=2"], None)
    write_search(tmp_path, found)
    assert stored_search(tmp_path) == found
    assert found.options.storage == str(Path("a b.db").resolve())
    text = json.loads((tmp_path / "search.json").read_text())
    del text["words"]
    (tmp_path / "search.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="not readable as the description of a search"):
        stored_search(tmp_path)


def test_cores_are_divided_among_trials_unless_somebody_says_how() -> None:
    assert f"hardware.threads={max(1, cores() // 2)}" in read_search([OPTUNA, LR, "hydra.sweeper.n_jobs=2"], None).words
    assert read_search([OPTUNA, LR, "hydra.sweeper.n_jobs=2", "hardware.threads=7"], None).words == (
        "hardware.threads=7",
    )
    assert read_search([OPTUNA, LR], None).words == ()


def test_cores_are_divided_among_the_jobs_of_the_joblib_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec.config.threads.cores", lambda: 8)
    jobs = check_words("train", ["seed=1,2,3,4"], multirun=True).jobs
    assert divided([], jobs) == ("hardware.threads=2", None)  # all cores, four jobs
    assert divided(["hydra.launcher.n_jobs=2"], jobs) == ("hardware.threads=4", None)
    assert divided(["hydra.launcher.n_jobs=-6"], jobs) == ("hardware.threads=2", None)  # 8 + 1 - 6 = 3 jobs
    assert divided(["hydra.launcher.n_jobs=1"], jobs) == (None, None)
    asked = check_words("train", ["seed=1,2", "hardware.threads=8"], multirun=True).jobs
    word, note = divided([], asked)
    assert word is None
    assert note is not None
    assert "2 jobs at a time with hardware.threads=8 each are more threads than the 8 cores" in note
    assert too_many(4, 2) is None
    assert threads_each(16) == 1


def test_what_is_not_installed_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for asks in (need_optuna, lambda: asks_for_joblib(["hydra/launcher=joblib"])):
        with pytest.raises(EnvironmentFault, match=r"pip install 'metarec\[sweep\]'"):
            asks()
