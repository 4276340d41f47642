"""What support pairs count: the three ways, and `reliability` from the log to the figures of a run and its evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.reliability_reference import scores
from reference.small_episodes import small_log
from reference.small_models import tasks_over, weights
from reference.tiny_runs import Work, metrics, same_bits, tensors
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import fomaml, reptile
from metarec.benches import SequenceBench
from metarec.config.compose import config_from_dict
from metarec.config.schema import TrainConfig
from metarec.core.batch import EpisodeBatch
from metarec.options import Inner, LearnedInner
from metarec.verbs.weighting import UNIFORM, Weighting, weighting_of

RELIABILITY = "algorithm.inner.support_weights=reliability"
ALGORITHMS = parts.names("algorithm")
SHORT = ("train.steps=2", "train.eval_every=1", "algorithm.inner.steps=2")


def batch_with(reliability: Tensor | None) -> EpisodeBatch:
    return replace(small_log(5, unknown=0.0).episodes(3, 2), reliability=reliability)


def test_the_three_ways() -> None:
    own = torch.rand(4, 3)
    batch = batch_with(own)
    assert UNIFORM.weights(batch) is None
    assert Weighting("recency", 0.0).weights(batch) is None
    torch.testing.assert_close(Weighting("recency", 2.0).weights(batch), torch.tensor([0.0, 1.0, 2.0]).exp())
    assert Weighting("reliability").weights(batch) is own
    with pytest.raises(AssertionError):
        Weighting("reliability").weights(batch_with(None))


def test_read_from_the_options() -> None:
    assert weighting_of(fomaml.Config()) == UNIFORM
    assert weighting_of(reptile.Config(inner=Inner(support_weights="recency", recency=3))) == Weighting("recency", 3)
    options = fomaml.Config(inner=LearnedInner(support_weights="reliability"))
    assert weighting_of(options) == Weighting("reliability")


def test_equal_scores_are_the_plain_mean() -> None:
    batch, tasks = batch_with(torch.full((4, 3), 0.4)), tasks_over()
    plain = tasks.loss(batch.support)(weights())
    weighed = tasks.loss(batch.support, None, Weighting("reliability").weights(batch))(weights())
    torch.testing.assert_close(weighed, plain, rtol=1e-6, atol=0)
    unequal = tasks.loss(batch.support, None, torch.tensor([[1.0, 0.5, 0.5]]).expand(4, 3))(weights())
    assert not torch.allclose(unequal, plain, rtol=1e-3)


def clock_log(path: Path) -> Path:
    """60 users of 8 sessions, of 2 to 5 events and of minutes to half an hour; items come back."""
    draw, rows = np.random.default_rng(3), []
    for user in range(60):
        for session in range(8):
            time, item = 1_600_000_000 + 90_000 * session + user, int(draw.integers(20))
            for _ in range(int(draw.integers(2, 6))):
                rows.append(f"u{user},i{item % 20},{time}")
                time, item = time + int(draw.integers(1, 900)), item + int(draw.choice([1, 1, 3, -1]))
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    path = clock_log(tmp_path_factory.mktemp("log") / "log.csv")
    shape = "dataset.episodes.n_support=4", "dataset.episodes.n_query=3"
    return ("dataset=events", f"dataset.path={path}", "dataset.split.by=user_disjoint", *shape)


def bench_of(run: Path) -> SequenceBench:
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    prepared = build.data(config, config.dataset, lambda line: None)
    bench = build.bench(config, config.evaluation, prepared, build.hardware(config.hardware))
    assert isinstance(bench, SequenceBench)
    return bench


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_reads_them_and_eval_gives_the_figures_again(
    algorithm: str, work: Work, log: tuple[str, ...]
) -> None:
    on = "context" if algorithm in ("cavia", "generator") else "off"
    own = ("algorithm.refine_steps=1", "schedule.warmup_steps=1") if algorithm == "generator" else ()
    words = (f"algorithm={algorithm}", f"residual={on}", *SHORT, *own, *log)
    plain, run = work.train(*words), work.train(*words, RELIABILITY)
    assert not same_bits(tensors(plain, "last"), tensors(run, "last"))
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]
    for method in ("pretrained", "control"):  # all pairs count alike there
        assert metrics(run)["metrics"][method] == metrics(plain)["metrics"][method]


def test_every_batch_of_a_run_has_the_scores_of_its_log(work: Work, log: tuple[str, ...]) -> None:
    """Training, validation and test; with fewer support pairs, the same scores of the pairs left."""
    run = work.train(*SHORT, *log, RELIABILITY)
    bench = bench_of(run)
    wanted = np.array(scores(bench.prepared), np.float32)
    assert wanted.std() > 0.05
    for split in ("val", "test"):
        for n_support in (None, 2, 1):
            episodes = bench.episodes(split, n_support=n_support)
            found = np.concatenate([batch.reliability.numpy() for batch in episodes.batches()])  # type: ignore[union-attr]
            np.testing.assert_allclose(found, wanted[episodes.pairs()[0]], rtol=1e-6)
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    (batch,) = bench.training_batches(config.train, config.seed, 0)
    assert batch.reliability is not None
    assert batch.reliability.shape == batch.support.target.shape
    assert set(batch.reliability.flatten().tolist()) <= set(wanted.astype(np.float32).tolist())


def test_fewer_support_pairs_at_evaluation(work: Work) -> None:
    """In the embedded world, whose sessions have an order and no clock."""
    run = work.train("algorithm=maml", *SHORT, RELIABILITY)
    whole = metrics(run)["metrics"]
    none, some, same = (work.eval(run, f"n_support={n}")["metrics"] for n in (0, 2, 5))
    assert none["fewshot"] == none["zeroshot"] == whole["zeroshot"]
    assert some["fewshot"] not in (none["fewshot"], whole["fewshot"])
    assert same == whole


def test_weights_forgotten_are_seen(work: Work, log: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in training, a run is the uniform one, bit for bit; planted in eval, the figures are others."""
    words = ("algorithm=maml", "residual=off", *SHORT, *log)
    plain, run = work.train(*words), work.train(*words, RELIABILITY)
    monkeypatch.setattr(Weighting, "weights", lambda self, batch: None)
    assert same_bits(tensors(plain, "last"), tensors(work.train(*words, RELIABILITY), "last"))
    assert work.eval(run)["metrics"]["fewshot"] != metrics(run)["metrics"]["fewshot"]
