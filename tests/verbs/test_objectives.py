"""Every objective through the whole of a run: same bits again, whatever the chunks, after a kill; and refusals."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, ended, metrics, same_bits, tensors, tiny, wait_for
from torch import Tensor

from metarec import build, cli, parts
from metarec.algorithms.inner import InnerLoop
from metarec.benches import SequenceBench
from metarec.config.fields import alternatives
from metarec.config.overrides import check_words
from metarec.config.schema import EvaluationConfig, HardwareConfig, TrainConfig
from metarec.core.seeding import generator
from metarec.errors import ConfigError
from metarec.evaluate import ranks, scored
from metarec.metrics.ranks import rank_of_target
from metarec.objectives import Items, drawn
from metarec.objectives.bce import BCE
from metarec.objectives.standing import Standing
from metarec.residual.off import NoResidual
from metarec.runs.checkpoint import load_checkpoint
from metarec.verbs import measure as m
from metarec.verbs import meta_train
from metarec.verbs.weighting import UNIFORM

OBJECTIVES = sorted(alternatives("objective"))
DRAWN = ("sampled_softmax", "bpr_max", "bce", "gbce")
FOMAML = ("algorithm=fomaml", "residual=off")
SECOND = ("algorithm=maml", "residual=off", "algorithm.inner.recompute=true")
SHORT = ("train.steps=2", "train.eval_every=1", "algorithm.inner.steps=2")
DOUBLE = ("hardware.precision=float64", "train.dropout=0")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[..., Path]:
    """The run of some words, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = Work(tmp_path_factory.mktemp("once"), cache).train(*words)
        return made[words]

    return run


def bench_of(work: Work, *words: str) -> tuple[TrainConfig, SequenceBench]:
    _, *rest = work.words("train", *tiny(*words), *words)
    (job,) = check_words("train", rest).jobs
    config = job.config
    assert isinstance(config, TrainConfig)
    prepared = build.data(config, config.dataset, lambda line: None)
    bench = build.bench(config, EvaluationConfig(), prepared, build.hardware(HardwareConfig("cpu", "float64", 1)))
    assert isinstance(bench, SequenceBench)
    return config, bench


@pytest.mark.parametrize("weights", ["uniform", "recency"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_is_measured(objective: str, weights: str, once: Callable[..., Path]) -> None:
    run = once(f"objective={objective}", *FOMAML, *SHORT, f"algorithm.inner.support_weights={weights}")
    found = metrics(run)
    assert found["config"]["objective"]["name"] == objective
    first, last = (load_checkpoint(run / "checkpoints" / f"step-{step:06d}")[0] for step in (0, 2))
    assert not torch.equal(first["phi/fc.weight"], last["phi/fc.weight"])
    assert set(found["metrics"]) >= {"pretrained", "control", "zeroshot", "fewshot"}
    if weights == "recency":
        plain = once(f"objective={objective}", *FOMAML, *SHORT, "algorithm.inner.support_weights=uniform")
        assert not same_bits(tensors(run, "last"), tensors(plain, "last"))


@pytest.mark.parametrize("words", [FOMAML, SECOND], ids=["first order", "second order, recomputed"])
@pytest.mark.parametrize("objective", ["sampled_softmax", "bpr_max"])
def test_the_same_command_gives_the_same_bits(
    objective: str, words: tuple[str, ...], work: Work, once: Callable[..., Path]
) -> None:
    """Pretraining and control included: the second run has a cache of its own."""
    words = (f"objective={objective}", *words, *SHORT, "algorithm.inner.support_weights=uniform")
    again = Work(work.root, work.root / "cold").train(*words)
    assert_same_run(once(*words), again)


@pytest.mark.parametrize("objective", ["sampled_softmax", "bpr_max", "bce"])
def test_recomputing_sees_the_same_draws(objective: str, work: Work) -> None:
    """To rounding: a step whose loss drew other items on the way back would have another gradient."""
    words = (f"objective={objective}", *SECOND, *SHORT, *DOUBLE)
    plain = work.train(*(word for word in words if "recompute" not in word))
    a, b = tensors(plain, "last"), tensors(work.train(*words), "last")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-8)


def test_other_draws_on_the_way_back_are_seen(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: every call draws anew, as from a generator that moves on; the rows that a task learned are then others."""
    draw, true = itertools.count(), BCE.__call__
    monkeypatch.setattr(
        BCE,
        "__call__",
        lambda self, scores, target, generator: true(self, scores, target, torch.Generator().manual_seed(next(draw))),
    )
    with pytest.raises((AssertionError, RuntimeError), match=r"not close|must match"):
        test_recomputing_sees_the_same_draws("bce", Work(work.root, work.root / "cold"))


@pytest.mark.parametrize("objective", DRAWN)
def test_chunks_of_tasks_are_judged_against_the_same_items(objective: str, work: Work) -> None:
    """In training and in evaluation, to rounding."""
    words = (f"objective={objective}", *FOMAML, *SHORT, *DOUBLE)
    whole = work.train(*words)
    parts = work.train(*words, "train.task_chunk=5", "evaluation.task_chunk=7")
    a, b = tensors(whole, "last"), tensors(parts, "last")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-8)
    assert metrics(whole)["metrics"] == metrics(parts)["metrics"]


def test_chunked_is_cross_entropy(once: Callable[..., Path], work: Work) -> None:
    whole = once("objective=cross_entropy", *FOMAML, *SHORT, *DOUBLE)
    chunked = once("objective=chunked_cross_entropy", *FOMAML, *SHORT, *DOUBLE)
    small = work.train("objective=chunked_cross_entropy", "objective.chunk=7", *FOMAML, *SHORT, *DOUBLE)
    assert metrics(whole)["metrics"] == metrics(chunked)["metrics"] == metrics(small)["metrics"]
    for run in (chunked, small):
        for name, value in tensors(whole, "last").items():
            torch.testing.assert_close(tensors(run, "last")[name], value, rtol=1e-6, atol=1e-8)


def test_killed_and_resumed_ends_with_the_same_bits(work: Work, once: Callable[..., Path]) -> None:
    words = (
        "objective=sampled_softmax", "residual=off", "algorithm=maml", "train.steps=30", "train.eval_every=5",
        "train.checkpoint_every=10", "train.patience=0", "algorithm.inner.steps=2",
    )  # fmt: skip

    def records() -> int:
        paths = [run / "history.jsonl" for run in work.directories("train")]
        return sum(len(path.read_bytes().splitlines()) for path in paths if path.exists())

    whole = once(*words)
    process = work.start_train(*words)
    wait_for(lambda: records() >= 14, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    assert cli.main(["train", f"resume={run}"]) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("objective", DRAWN)
def test_evaluating_again_gives_the_same_figures(objective: str, work: Work, once: Callable[..., Path]) -> None:
    run = once(f"objective={objective}", *FOMAML, *SHORT, "algorithm.inner.support_weights=uniform")
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_lowers_its_loss(objective: str, work: Work) -> None:
    """Adam on the support pairs of users, new items in every step; judged on a draw that is never trained on."""
    _, bench = bench_of(work, f"objective={objective}", *FOMAML)
    tasks = bench.tasks()
    batch = next(iter(bench.episodes("val").batches()))
    phi = build.trainable(bench.model.init(generator(1, "init"), torch.float64))
    optimizer = torch.optim.Adam(phi.values(), lr=0.05)

    def judged() -> float:
        with torch.no_grad():
            return float(tasks.loss(batch.support, items=generator(1, "judge"))(phi).mean())

    before = judged()
    for step in range(30):
        optimizer.zero_grad()
        tasks.loss(batch.support, items=generator(1, "fit", step))(phi).mean().backward()
        optimizer.step()
    assert judged() < 0.9 * before


# Draws


@pytest.mark.parametrize("objective", DRAWN)
def test_popularity_is_of_the_training_events_alone(objective: str, work: Work) -> None:
    bench = bench_of(work, f"objective={objective}", *FOMAML)[1]
    standing: Any = bench.objective
    assert isinstance(standing, Standing)
    prepared, counts = bench.prepared, np.zeros(bench.n_items + 1, dtype=np.int64)
    for user in range(prepared.n_users):  # slow and obvious
        for session in range(int(prepared.user_sessions[user]), int(prepared.user_sessions[user + 1])):
            begin, end = prepared.session_offsets[session : session + 2]
            events = [e for e in range(begin, end) if e < prepared.train_event_end[user]]
            if len(events) > 1:
                np.add.at(counts, prepared.item[events], 1)
    assert 0 < counts[1:].sum() < len(prepared.item)
    if objective == "bpr_max":
        assert standing.objective.counts.tolist() == counts[1:].tolist()
    if objective == "sampled_softmax":
        ranked = counts[standing.objective.by_rank.numpy()]
        assert sorted(standing.objective.by_rank.tolist()) == list(range(1, bench.n_items + 1))
        assert (np.diff(ranked) <= 0).all()


class BothLosses:
    """An algorithm that takes both losses at the start, support first."""

    inner = InnerLoop()

    def meta_losses(self, phi: Any, support: Any, query: Any, n_tasks: int, step: int) -> Tensor:
        found: Tensor = support(phi) + query(phi)
        return found


def outer_step(work: Work, step: int, *words: str) -> None:
    config, bench = bench_of(work, "objective=bce", *FOMAML, *words)
    phi, algorithm = bench.model.init(generator(1, "init"), torch.float64), cast(Any, BothLosses())
    list(meta_train._losses(config, bench, NoResidual(phi), algorithm, phi, UNIFORM, None, step))


def test_draws_follow_from_seed_step_and_part(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []

    def noting(self: Standing, scores: Any, target: Tensor, draw: torch.Generator | None = None) -> Tensor:
        assert draw is not None
        drawn.append(torch.randint(10**9, (3,), generator=draw).tolist())
        return torch.zeros_like(target, dtype=torch.float64)

    monkeypatch.setattr(Standing, "__call__", noting)
    outer_step(work, 4)
    support, query = drawn
    assert support != query
    drawn.clear()
    outer_step(work, 4, "train.task_chunk=8", "train.dropout=0.5")  # four chunks, which drop units of their own
    assert drawn == [support, query] * 4
    for words, step in (((), 5), (("seed=2",), 4)):
        drawn.clear()
        outer_step(work, step, *words)
        assert support not in drawn and query not in drawn


def test_standing_items_follow_from_the_seed_and_are_no_training_ones(work: Work) -> None:
    _, bench = bench_of(work, "objective=bce", *FOMAML)
    _, other = bench_of(work, "objective=bce", *FOMAML, "seed=2")
    phi = bench.model.init(generator(1, "init"), torch.float64)
    pairs = next(iter(bench.episodes("val").batches())).support
    first, again, else_ = (b.tasks().loss(pairs)(phi) for b in (bench, bench, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, else_)
    assert not torch.equal(first, bench.tasks().loss(pairs, items=generator(1, "support items"))(phi))


def test_ranks_are_over_all_items(work: Work) -> None:
    """Whatever is drawn: the ranks of a run equal those of the full scores."""
    _, bench = bench_of(work, "objective=bce", "objective.n_negatives=1", *FOMAML)
    phi = bench.model.init(generator(1, "init"), torch.float64)
    episodes = bench.episodes("val")
    found, _ = ranks(episodes, scored(bench.tasks(), m._fixed(phi)), "conservative")
    batch = next(iter(episodes.batches()))
    logits = bench.model.score(phi, batch.query.gather(bench.model.encode(phi, batch.query.inputs)))
    assert logits.shape[-1] == bench.n_items == 30
    wanted = rank_of_target(logits, batch.query.target, "conservative").numpy()
    assert (found[: len(wanted)] == wanted).all()
    assert found.max() > 10


# Refusals


def log_of(path: Path, n_items: int) -> Path:
    """60 users with sessions of three events, three hours apart."""
    rows = [
        f"u{user},i{(user + 3 * n) % n_items},{1_600_000_000 + 10_800 * (n // 3) + 60 * n + user}"
        for user in range(60)
        for n in range(60)
    ]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("objective=bce", "objective.n_negatives=20"), "objective.n_negatives: 20: the training vocabulary has 20 items"),
        (("objective=sampled_softmax", "objective.n_samples=99"), "objective.n_samples: 99: .* or use objective=cross_ent"),
    ],
    ids=["bce", "sampled_softmax"],
)  # fmt: skip
def test_more_draws_than_items_are_refused_once_the_items_are_counted(
    words: tuple[str, ...], text: str, work: Work
) -> None:
    log = log_of(work.root / "log.csv", 20)
    with pytest.raises(ConfigError, match=text):
        work.train("dataset=events", f"dataset.path={log}", "dataset.split.by=user_disjoint", *words)


def test_what_null_stands_for() -> None:
    for name, most in (("sampled_softmax", 1024), ("bpr_max", 2048), ("bce", 256), ("gbce", 256)):
        for n_items, wanted in ((10**6, most), (200, 50), (2, 1)):
            popularity = np.arange(n_items)
            items = Items(n_items, lambda counts=popularity: counts, 0, torch.device("cpu"))
            made: Any = parts.load("objective", name).build(parts.default("objective", name), items)
            assert getattr(made.objective, "n_samples", getattr(made.objective, "n_negatives", None)) == wanted
    assert drawn("n_samples", 500, 2048, 20, with_repeats=True) == 500
