"""`metarec teachers`: a table and a directory, the same bytes after a kill, refused where they do not fit, made once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.tiny_runs import MODEL, PRETRAIN, WORLD, Work

from metarec import build
from metarec.config.overrides import check_words
from metarec.core.batch import EpisodeBatch
from metarec.core.offsets import Dense
from metarec.core.seeding import generator
from metarec.core.weights import FastWeight, Weights
from metarec.errors import CheckpointError
from metarec.evaluate import monitored, ranks, scored
from metarec.runs.signals import Stop
from metarec.runs.teachers import Teachers
from metarec.verbs import teachers as verb
from metarec.verbs.warm_start import warm_start

TUNE = ("evaluation.control.users=12", "evaluation.control.lrs=[0.3]", "logger.console=quiet")
TINY = (*WORLD, *MODEL, *PRETRAIN, *TUNE, "residual.rank=2", "algorithm.teacher.users=50", "algorithm.teacher.chunk=8")
GIVEN = ("algorithm.teacher.lr=0.5", "algorithm.teacher.steps=3")
FILES = {"card.json", "config.yaml", "environment.json", "manifest.json", "overrides.json", "start.safetensors",
         "teachers.json"}  # fmt: skip


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 8 a shard: four shards of 50 users."""
    monkeypatch.setattr(verb, "SHARD_USERS", 16)


def teach(work: Work, to: str | None = "made", *words: str) -> Path:
    where = [] if to is None else [f"to={work.root / to}"]
    return work._run("teachers", *TINY, *words, *where)


def lasting(path: Path) -> dict[str, bytes]:
    """What is the same whenever and wherever teachers are made."""
    return {
        entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name.endswith(("safetensors", "est.json"))
    }


def bench_of(work: Work, *words: str, verb: str = "train") -> tuple[Any, Any, Any, Any]:
    """(config, bench, frozen weights, residual) of a run with these words."""
    taught = ("algorithm=generator", "algorithm.loss.delta_w=1") if verb == "train" else ()
    method = () if any(word.startswith("residual=") for word in words) or verb != "train" else ("residual=lora",)
    _, *rest = work.words(verb, *taught, *method, *words)
    (job,) = check_words(verb, rest).jobs
    config: Any = job.config
    on = build.hardware(config.hardware)
    bench: Any = build.bench(config, config.evaluation, build.data(config, config.dataset, lambda line: None), on)
    base = warm_start(config, bench, work.root, Stop()).params
    return config, bench, base, build.residual(config.residual, bench.model, base)


def test_a_directory_and_a_table(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY[:-2], "logger.console=plain", "algorithm.teacher.chunk=8"]
    assert work.main("teachers", *words, f"to={work.root / 'made'}") == 0
    found = Teachers.open(work.root / "made")
    out, err = capsys.readouterr()
    assert "users/s" in out
    assert f"teachers of {len(found)} users in {work.root / 'made'}: 1 of 1 modules (100 %)" in out
    assert "query" in out
    assert "loss" in out
    assert f"teachers {len(found)}/{len(found)}" in err
    told = json.loads((work.root / "made" / "teachers.json").read_text())
    assert told["users"] == len(found) > 150
    assert told["pairs_mean"] == pytest.approx(float(found.pairs.double().mean()))
    before, after = found.losses
    assert told["loss_before"] == pytest.approx(float(before.double().mean()))
    assert told["loss_after"] == pytest.approx(float(after.double().mean()))
    assert told["fell"] == pytest.approx(float((after < before).double().mean()))
    assert told["seconds"] > 0
    assert {entry.name for entry in found.path.iterdir() if entry.name[0] != "." and "shard" not in entry.name} == FILES
    assert work.directories("teachers") == []  # all is in `to`


def test_without_to_they_are_in_the_commands_own_directory_and_steps_are_tuned(work: Work) -> None:
    made = teach(work, None)
    assert made.parent == work.root / "outputs" / "teachers"
    tuning = json.loads((made / "teachers.json").read_text())["tuning"]
    assert sorted({row["lr"] for row in tuning["tried"]}) == [0.3, 3.0, 10.0]
    assert {row["steps"] for row in tuning["tried"]} == {5, 10, 20}
    best = max(row["ndcg@10"] for row in tuning["tried"])
    terms = Teachers.open(made).terms
    assert {"lr": terms.lr, "steps": terms.steps, "ndcg@10": best} in tuning["tried"]


def test_tuning_judges_validation_users_on_all_their_earlier_pairs(work: Work) -> None:
    config, bench, base, over = bench_of(work, *TINY)
    chosen = verb.tune_teacher(config, bench, base, over)
    moving, phi = verb._start(config, bench, over)
    past = bench.past("val", bench.tuning_rows(), 64)
    tasks = bench.tasks(over)
    (row,) = [row for row in chosen.tried if (row["lr"], row["steps"]) == (3.0, 10)]
    loop = verb.InnerLoop(3.0, 10, adapted=moving)
    own = {int(part["user"][i]): {n: part[n][i] for n in moving}
           for part in verb.teach.found(tasks, phi, past, loop) for i in range(len(part["user"]))}  # fmt: skip

    def theirs(batch: EpisodeBatch) -> Weights:
        def number(name: str) -> FastWeight:
            return FastWeight(phi[name], Dense(torch.stack([own[int(u)][name] for u in batch.user]) - phi[name]))

        return {name: number(name) for name in phi}

    rank, _ = ranks(bench.episodes("val", rows=bench.tuning_rows()), scored(tasks, theirs), bench.evaluation.ties)
    assert monitored(rank, bench.n_items)["ndcg@10"] == pytest.approx(row["ndcg@10"], abs=1e-6)


def test_the_same_command_again_has_nothing_to_do_and_another_is_refused(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    made = teach(work, "made", *GIVEN)
    before = {entry.name: entry.read_bytes() for entry in made.iterdir()}
    words = [*TINY, *GIVEN, f"to={made}"]
    assert work.main("teachers", *words) == 0
    assert "finished before, nothing to do: teachers of 50 users" in capsys.readouterr().out
    for other, text in (
        ("algorithm.teacher.pairs=9", "pairs is 64 there, and 9 here"),
        ("residual.alpha=3", "residual.alpha is 16.0 there, and 3.0 here"),
        ("seed=2", "another run's teachers: base_sha256 is"),
    ):
        assert work.main("teachers", *words, other) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
        assert line.endswith("give another directory, to=DIR, or the words of that run")
    assert {entry.name: entry.read_bytes() for entry in made.iterdir()} == before


@pytest.mark.parametrize("harm", ["last shard gone", "truncated", "all of it"])
def test_what_is_lost_is_made_again_with_the_same_bytes(harm: str, work: Work) -> None:
    made = teach(work, "made", *GIVEN)
    before = lasting(made)
    assert len(before) == 4 + 2
    last = made / "shard-00003.safetensors"
    if harm == "last shard gone":
        last.unlink()
    elif harm == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    else:
        for entry in [
            *made.glob("shard-*"),
            made / "manifest.json",
            *(made / name for name in FILES - {"manifest.json"}),
        ]:
            entry.unlink()
    assert teach(work, "made", *GIVEN) == made
    assert lasting(made) == before
    told = json.loads((made / "teachers.json").read_text())
    assert told["users_made"] == (50 if harm == "all of it" else 2)


KILLED = """
import os, signal, sys
from metarec import cli
from metarec.runs.teachers import Writer
from metarec.verbs import teachers
teachers.SHARD_USERS, whole = 16, Writer.add
def add(self, number, tensors):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, number, tensors)
Writer.add = add
cli.main(sys.argv[1:])
"""


def test_after_a_kill_the_same_command_ends_with_the_same_bytes(work: Work) -> None:
    killed, words = work.root / "killed", [*TINY, *GIVEN]
    command = [sys.executable, "-c", KILLED, *work.words("teachers", *words, f"to={killed}")]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(killed.glob("shard-*"))) == 2
    with pytest.raises(CheckpointError, match="32 of 50 users: its making was interrupted"):
        Teachers.open(killed)
    config, bench, base, over = bench_of(work, *words)
    config.algorithm.teacher.path = str(killed)
    with pytest.raises(CheckpointError, match="run `metarec teachers` with the same words and to="):
        verb.teachers_for(config, bench, base, over)
    assert work.main("teachers", *words, f"to={killed}") == 0
    assert json.loads((killed / "teachers.json").read_text())["users_made"] == 18
    assert lasting(killed) == lasting(teach(work, "whole", *GIVEN))


def test_a_run_makes_its_teachers_once_and_keeps_them(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    config, bench, base, over = bench_of(work, *TINY, *GIVEN)
    config.cache_dir = str(work.root / "own")
    said = list[str]()
    found = verb.teachers_for(config, bench, base, over, said.append)
    (directory,) = [entry for entry in (work.root / "own" / "teachers").iterdir() if entry.is_dir()]
    assert found.path == directory
    assert said == [f"teachers of 50 users in {directory}: 1 of 1 modules (100 %), 3 steps"]
    monkeypatch.setattr(verb.teach, "found", lambda *rest: pytest.fail("they are there"))
    assert lasting(verb.teachers_for(config, bench, base, over, said.append).path) == lasting(directory)
    asked = bench.past("train").user[[0, 3]]
    assert not verb.teachers_for(config, bench, base, over, said.append).has(asked).all()  # 50 of all users


def test_teachers_of_the_verb_and_of_a_run_are_the_same_bits(work: Work) -> None:
    made = Teachers.open(teach(work, "made", *GIVEN))
    config, bench, base, over = bench_of(work, *TINY, *GIVEN)
    found = verb.teachers_for(config, bench, base, over, lambda line: None)
    assert lasting(found.path) == lasting(made.path)
    phi = over.init(generator(config.seed, "residual"))
    assert all(torch.equal(made.start[name], phi[name]) for name in made.names)
    assert made.scales == {"gru.weight_ih_l0": 8.0}


MISFITS: list[tuple[tuple[str, ...], str]] = [
    (
        ("residual.rank=4",),
        "rank 2: teachers have rank 2, residual.rank is 4 -- give residual.rank=2, or make teachers",
    ),
    (("seed=2",), "another model, or another seed of pretraining"),
    (("model.hidden_dim=24",), "another model, or another seed of pretraining"),
    (("dataset.world.seed=3",), "rows of users mean others"),
    (("dataset.world.n_items=31",), "the dataset has another vocabulary"),
    (("residual.targets=['gru.*']",), "teachers cover 2 of the 4 numbers that adapt in the run"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Teachers that are not to be changed."""
    return teach(Work(tmp_path_factory.mktemp("teachers"), cache), "made", *GIVEN)


@pytest.mark.parametrize(("words", "text"), MISFITS)
def test_a_directory_that_does_not_fit_is_refused_in_one_line(
    words: tuple[str, ...], text: str, shared: Path, work: Work
) -> None:
    own = [word for word in TINY if not word.startswith(("algorithm.teacher", *(f"{w.split('=')[0]}=" for w in words)))]
    config, bench, base, over = bench_of(work, *own, *words, f"algorithm.teacher.path={shared}")
    with pytest.raises(CheckpointError) as caught:
        verb.teachers_for(config, bench, base, over)
    assert text in str(caught.value)
    assert str(shared) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_directory_that_fits_is_taken_as_it_is(shared: Path, work: Work) -> None:
    own = [word for word in TINY if not word.startswith("algorithm.teacher")]
    config, bench, base, over = bench_of(work, *own, f"algorithm.teacher.path={shared}")
    said = list[str]()
    found = verb.teachers_for(config, bench, base, over, said.append)
    assert said == [f"teachers of 50 users in {shared}: 1 of 1 modules (100 %), 3 steps"]
    some = found.users.numpy()[[5, 2]]
    assert {name: tuple(value.shape) for name, value in found.of(some).items()} == {
        "gru.weight_ih_l0.lora_a": (2, 2, 8), "gru.weight_ih_l0.lora_b": (2, 48, 2),
    }  # fmt: skip


def test_a_path_is_looked_at_before_anything_is_trained(shared: Path, work: Work) -> None:
    own = [word for word in TINY if not word.startswith("algorithm.teacher")]
    config, *_ = bench_of(work, *own, f"algorithm.teacher.path={shared}")
    verb.check_path(config)
    config.algorithm.teacher.path = str(work.root)
    with pytest.raises(
        CheckpointError, match=r"no manifest\.json: no directory of teachers -- make it by `metarec teach"
    ):
        verb.check_path(config)
    config.algorithm.teacher.path = None
    verb.check_path(config)


def test_contexts_have_teachers_too(work: Work) -> None:
    words = [word for word in TINY if not word.startswith("residual.")]
    made = Teachers.open(work._run("teachers", *words, *GIVEN, "residual=context", f"to={work.root / 'made'}"))
    assert made.names == {"context.state": (16,), "context.shift": (16,)}
    assert made.terms.products == {}
    assert set(made.sizes) == set(made.names)
    assert all(float(value.abs().max()) == 0 for value in made.start.values())
    config, bench, base, over = bench_of(work, *words, *GIVEN, "residual=context")
    assert lasting(verb.teachers_for(config, bench, base, over, lambda line: None).path) == lasting(made.path)


def test_with_users_held_out_teachers_are_of_them_alone(work: Work) -> None:
    words = ("pretrain.hold_out=0.3", *(word for word in TINY if "users=50" not in word), *GIVEN)
    made = Teachers.open(work._run("teachers", *words, f"to={work.root / 'made'}"))
    _, bench, _, _ = bench_of(work, *words)
    assert made.users.tolist() == sorted(bench.unread.tolist())


def test_a_directory_with_something_else_is_not_touched(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    (work.root / "thesis").mkdir()
    (work.root / "thesis" / "a.tex").write_text("x")
    assert work.main("teachers", *TINY, f"to={work.root / 'thesis'}") == 5
    assert "a.tex: the directory is not empty, and holds no teachers -- give another" in capsys.readouterr().err
    assert work.directories("teachers") == []
    assert np.array_equal([entry.name for entry in (work.root / "thesis").iterdir()], ["a.tex"])


@pytest.fixture(autouse=True)
def nothing_in_the_way(work: Work) -> Iterator[None]:
    yield
    assert not list(work.root.rglob("*.tmp"))
