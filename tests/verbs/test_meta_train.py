"""The outer loop on images: what each flag of MAML++ does to a run, statistics that only training moves, a time budget."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from reference.tiny_runs import Work, metrics, same_bits, state, tensors
from torch import Tensor

from metarec import build, cli
from metarec.algorithms.inner import start
from metarec.algorithms.maml import MAML
from metarec.benches import ImageBench
from metarec.config.compose import config_from_dict
from metarec.config.schema import TrainConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import FastWeight, Params
from metarec.data.omniglot import Omniglot
from metarec.errors import ConfigError
from metarec.evaluate import Control, ranks, scored
from metarec.models.conv4 import Conv4
from metarec.runs.checkpoint import load_checkpoint
from metarec.verbs import measure as m
from metarec.verbs.warm_start import cache_key

K, FILTERS = 2, 3
NORMS = [f"norm{i}.{part}" for i in range(1, 5) for part in ("weight", "bias")]
STATISTICS = [f"norm{i}.{part}" for i in range(1, 5) for part in ("mean", "var")]
WORDS = (
    "dataset=omniglot", "dataset.images.n_way=3", "dataset.images.n_query=2", "dataset.images.n_val=3",
    "dataset.images.n_test=5", f"model.filters={FILTERS}", "hardware=cpu", "hardware.threads=1",
    "hardware.precision=float64", "evaluation.bootstrap=20", "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1]",
    "evaluation.control.users=2", "train.meta_batch_size=3", "logger.console=quiet", "logger.plots=false", "logger.every=1",
)  # fmt: skip
SHORT = ("train.steps=4", "train.eval_every=2", "train.patience=0", "train.checkpoint_every=1", "optimizer.lr=0.01")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 classes of 5 drawings: coarse random patterns and a little noise."""
    draw, directory = np.random.default_rng(5), tmp_path_factory.mktemp("images")
    pattern = np.kron(draw.random((14, 7, 7)) < 0.3, np.ones((4, 4))).astype(bool)
    images = pattern[:, None] ^ (draw.random((14, 5, 28, 28)) < 0.05)
    np.savez_compressed(
        directory / "omniglot28.npz",
        images_packed=np.packbits(images.reshape(70, 784), axis=1),
        class_id=np.arange(14, dtype=np.int16).repeat(5),
        drawer=np.tile(np.arange(1, 6, dtype=np.int8), 14),
    )
    split = ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    pq.write_table(pa.table({"class_id": range(14), "vinyals_split": split}), directory / "classes.parquet")
    return directory


Train = Callable[..., Path]


@pytest.fixture
def train(work: Work, archive: Path) -> Train:
    """A run on the small archive; MAML++ with two inner steps unless told otherwise."""

    def run(*words: str) -> Path:
        algorithm = () if any(word.startswith("algorithm=") for word in words) else ("algorithm=maml_pp",)
        steps = () if any("train.minutes" in word for word in words) else SHORT
        return work._run(
            "train", *WORDS, f"dataset.path={archive}", *algorithm, f"algorithm.inner.steps={K}", *steps, *words
        )

    return run


def at_step(run: Path, step: int) -> Params:
    return load_checkpoint(run / "checkpoints" / f"step-{step:06d}")[0]


def phi_of(found: Params) -> Params:
    return {name.removeprefix("phi/"): value for name, value in found.items() if name.startswith("phi/")}


def config_of(run: Path) -> TrainConfig:
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    return config


def bench_of(config: TrainConfig) -> ImageBench:
    prepared = build.data(config, config.dataset, lambda line: None)
    assert isinstance(prepared, Omniglot)
    bench = build.bench(config, config.evaluation, prepared, build.hardware(config.hardware))
    assert isinstance(bench, ImageBench)
    return bench


def trained(run: Path, step: int = 4) -> tuple[ImageBench, m.Trained]:
    """What evaluation sees of a checkpoint."""
    config, found = config_of(run), at_step(run, step)
    bench = bench_of(config)
    return bench, m.trained_from(bench, config, found, Control(**state(run, "last")["control"]))


def algorithm_of(run: Path) -> MAML:
    """As meta-training builds it."""
    config = config_of(run)
    control = Control(**state(run, "last")["control"])
    found = m.algorithm_of(bench_of(config), config, config.algorithm, control)  # type: ignore[arg-type]
    assert isinstance(found, MAML)
    return found


def history(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


# -- bnrs: statistics of each step ----------------------------------------------------------------------------------


def test_every_inner_step_has_statistics_of_its_own(train: Train) -> None:
    """One set before each of the K steps and one for the query; they begin as 0 and 1 and no two stay alike."""
    run = train()
    first, last = phi_of(at_step(run, 0)), phi_of(at_step(run, 4))
    for name in STATISTICS:
        assert first[name].shape == last[name].shape == (K + 1, FILTERS)
        assert torch.equal(first[name], torch.full_like(first[name], float(name.endswith("var"))))
        assert not torch.equal(first[name], last[name])
    assert not torch.equal(last["norm4.mean"][0], last["norm4.mean"][1])  # other weights
    assert not torch.equal(last["norm1.mean"][1], last["norm1.mean"][2])  # other images
    assert not [name for name in at_step(run, 4) if name.startswith("optimizer/") and name.split("/")[1] in STATISTICS]
    assert not [name for name in at_step(run, 4) if name.startswith("base/") and name.split("/")[1] in STATISTICS]


def at_hand(params: Params, images: Tensor) -> tuple[Tensor, Params]:
    """(logits, the mean and unbiased variance that each norm saw) of one task, written out."""
    x, found = images, {}
    for i in range(1, 5):
        x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], padding=1)
        found[f"norm{i}.mean"], found[f"norm{i}.var"] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        x = (x - x.mean((0, 2, 3))[:, None, None]) / (x.var((0, 2, 3), unbiased=False)[:, None, None] + 1e-5).sqrt()
        x = x * params[f"norm{i}.weight"][:, None, None] + params[f"norm{i}.bias"][:, None, None]
        x = F.max_pool2d(x.relu(), 2)
    return x.flatten(1) @ params["fc.weight"].T + params["fc.bias"], found


def statistics_of(batch: EpisodeBatch, phi: Params, lr: float, recency: float) -> dict[str, Tensor]:
    """[K + 1, C]: the mean over tasks of what each step's images give, one task and one step at a time."""
    rows: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    for task in range(batch.n_tasks):
        now = {name: value.clone() for name, value in phi.items()}
        of_task: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
        for step in range(K + 1):
            part = batch.support if step < K else batch.query
            moving = {name: value.requires_grad_() for name, value in now.items() if name not in NORMS}
            logits, found = at_hand(now | moving, part.images[task])
            for name, value in found.items():
                of_task[name].append(value.detach())
            each = F.cross_entropy(logits, part.target[task] - 1, reduction="none")
            counts = torch.linspace(0, recency, len(each)).exp()
            loss = (counts * each).sum() / counts.sum()
            grads = torch.autograd.grad(loss, list(moving.values()))
            now = now | {n: (moving[n] - lr * g).detach() for n, g in zip(moving, grads, strict=True)}
        for name, values in of_task.items():
            rows[name].append(torch.stack(values))
    return {name: torch.stack(values).mean(0) for name, values in rows.items()}


@pytest.mark.parametrize("recency", [0.0, 3.0])
def test_the_first_statistics_are_those_of_the_first_tasks(recency: float, train: Train) -> None:
    """Step by step, under the weights that the inner loop has then; after two outer steps the mean over both."""
    weighed = ("algorithm.inner.support_weights=recency", f"algorithm.inner.recency={recency}") if recency else ()
    run = train("train.steps=2", "train.eval_every=2", "optimizer.lr=1e-13", "algorithm.inner.rates_lr=1e-13",
                "algorithm.inner.lr=0.05", *weighed)  # fmt: skip
    config = config_of(run)
    bench = bench_of(config)
    base = {name.removeprefix("base/"): v for name, v in at_step(run, 0).items() if name.startswith("base/")}
    seen = []
    for step in range(2):
        (batch,) = bench.training_batches(config.train, config.seed, step)
        seen.append(statistics_of(batch, base, 0.05, recency))
        found = phi_of(at_step(run, step + 1))
        for name in STATISTICS:
            wanted = torch.stack([one[name] for one in seen]).mean(0)
            torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-9)


def test_evaluating_never_moves_them_and_gives_the_same_figures_again(train: Train, work: Work) -> None:
    """Twice, from the files and in memory; not a bit of a checkpoint changes."""
    run = train()
    files = {path: path.read_bytes() for path in sorted((run / "checkpoints").rglob("*")) if path.is_file()}
    once, again = work.eval(run), work.eval(run)
    assert once["metrics"] == again["metrics"] == metrics(run)["metrics"]
    assert {path: path.read_bytes() for path in files} == files

    bench, found = trained(run)
    assert found.phi is not None
    before = {name: (value.clone(), value._version) for name, value in found.phi.items()}
    tasks, method = bench.tasks(found.residual), m.adapted(bench, found)
    first = ranks(bench.episodes("test"), scored(tasks, method), "conservative")[0]
    ranks(bench.episodes("val"), scored(tasks, method), "conservative")
    assert np.array_equal(ranks(bench.episodes("test"), scored(tasks, method), "conservative")[0], first)
    for name, (value, version) in before.items():
        assert torch.equal(found.phi[name], value)
        assert found.phi[name]._version == version


def query_logits(run: Path, images: slice) -> Tensor:
    """Of the first test episodes after adaptation, some query images alone."""
    bench, found = trained(run)
    (batch, *_) = bench.episodes("test").batches()
    query = replace(batch.query, images=batch.query.images[:, images], target=batch.query.target[:, images])
    with torch.no_grad():
        return bench.tasks(found.residual).logits(m.adapted(bench, found)(batch), query)


def test_with_statistics_an_image_is_judged_alone_and_without_them_beside_the_others(train: Train) -> None:
    """`bnrs=false` is transductive at evaluation."""
    kept, at_hand = train(), train("algorithm.bnrs=false")
    torch.testing.assert_close(query_logits(kept, slice(2, 3)), query_logits(kept, slice(None))[:, 2:3])
    alone, together = query_logits(at_hand, slice(2, 3)), query_logits(at_hand, slice(None))[:, 2:3]
    assert float((alone - together).abs().max()) > 1e-3
    assert not set(phi_of(at_step(at_hand, 4))) & set(STATISTICS)


def test_each_step_of_evaluation_reads_its_own_statistics(train: Train) -> None:
    """Zero-shot the first set, the query after step k set k, and steps beyond K the last."""
    bench, found = trained(train())
    assert found.phi is not None
    assert found.algorithm is not None
    (batch, *_) = bench.episodes("test").batches()
    support = bench.tasks(found.residual).loss(batch.support)
    for steps in (0, 1, 2, 4):
        weights = found.algorithm.adapt(found.phi, support, batch.n_tasks, steps=steps)
        for name in (*STATISTICS, *NORMS):
            assert weights[name].offset is None
            assert torch.equal(weights[name].shared, found.phi[name][min(steps, K)])
    zero = start(found.phi, found.algorithm.inner)
    assert all(torch.equal(zero[name], found.phi[name][0]) for name in STATISTICS)


# -- bnwb: norm weights of each step --------------------------------------------------------------------------------


@pytest.mark.parametrize("bnrs", ["true", "false"])
def test_norms_of_each_step_are_learned_and_not_adapted(bnrs: str, train: Train) -> None:
    """All copies move in the outer loop, apart from each other, and none in the inner loop; without the flag as all."""
    on, off = train(f"algorithm.bnrs={bnrs}"), train(f"algorithm.bnrs={bnrs}", "algorithm.bnwb=false")
    first, last, without = phi_of(at_step(on, 0)), phi_of(at_step(on, 4)), phi_of(at_step(off, 4))
    for name in NORMS:
        assert last[name].shape == (K + 1, FILTERS)
        assert torch.equal(first[name], first[name][:1].expand(K + 1, FILTERS))
        for step in range(K + 1):
            assert not torch.equal(first[name][step], last[name][step])
        assert f"rates/{name}" not in last
        assert without[name].shape == (FILTERS,)
        assert without[f"rates/{name}"].shape == (K,)
    assert not torch.equal(last["norm3.weight"][0], last["norm3.weight"][K])

    def adapted(run: Path) -> dict[str, FastWeight]:
        bench, found = trained(run)
        (batch, *_) = bench.episodes("test").batches()
        weights = m.adapted(bench, found)(batch)
        return {name: w for name, w in weights.items() if isinstance(w, FastWeight)}

    moved = {name for name, weight in adapted(on).items() if weight.offset is not None}
    assert moved == set(Conv4(3, filters=FILTERS).shapes()) - set(NORMS)
    assert {name for name, weight in adapted(off).items() if weight.offset is not None} == moved | set(NORMS)


# -- lslr, msl, da, ca ----------------------------------------------------------------------------------------------


def test_learned_step_sizes_of_each_tensor_and_step(train: Train) -> None:
    """They begin at inner.lr, move, and end up unlike each other; without the flag there are none."""
    run = train("algorithm.inner.lr=0.05")
    first, last = phi_of(at_step(run, 0)), phi_of(at_step(run, 4))
    rates = {name for name in last if name.startswith("rates/")}
    assert rates == {f"rates/{name}" for name in set(Conv4(3, filters=FILTERS).shapes()) - set(NORMS)}
    for name in rates:
        assert torch.allclose(first[name].exp(), torch.full((K,), 0.05, dtype=torch.float64))
    moved = torch.cat([(last[name] - first[name]).abs() for name in sorted(rates)])
    assert float(moved.max()) > 1e-2
    assert len(moved.unique()) > K
    assert not [name for name in phi_of(at_step(train("algorithm.lslr=false"), 4)) if name.startswith("rates/")]


def test_the_flags_reach_the_algorithm(train: Train) -> None:
    """Shares of the run become steps of it."""
    on = algorithm_of(train("algorithm.switch=0.75", "algorithm.msl_until=0.5"))
    assert (on.order, on.switch_step) == ("annealed", 3)
    assert (on.multi_step, on.multi_step_until) == ("annealed", 2)
    assert [on.second_order(step) for step in range(4)] == [False, False, False, True]
    assert on.step_weights(0) == pytest.approx([0, 1 / 2, 1 / 2])
    assert on.step_weights(2) == [0, 0, 1]
    assert on.inner.rates == "tensor_step"
    assert on.inner.per_step == {*NORMS, *STATISTICS}
    off = algorithm_of(train(*(f"algorithm.{flag}=false" for flag in ("da", "msl", "lslr", "bnrs", "bnwb", "ca"))))
    assert (off.order, off.multi_step, off.inner.rates, off.inner.per_step) == ("second", "last", "fixed", frozenset())


def test_with_every_flag_off_it_is_maml(train: Train) -> None:
    """The whole run, bit for bit."""
    off = train(*(f"algorithm.{flag}=false" for flag in ("da", "msl", "lslr", "bnrs", "bnwb", "ca")))
    maml = train("algorithm=maml")
    assert same_bits(at_step(off, 4), at_step(maml, 4))
    assert metrics(off)["metrics"] == metrics(maml)["metrics"]


PLAIN = ("algorithm.lslr=false", "algorithm.bnrs=false", "algorithm.bnwb=false", "algorithm.ca=false")


def test_derivative_order_annealing_switches_once(train: Train) -> None:
    """Up to the switch the run is FOMAML's, with the switch at 0 it is MAML's, bit for bit."""
    words = (*PLAIN, "algorithm.msl=false")
    half, never, always = (train(*words, f"algorithm.switch={share}") for share in (0.5, 1.0, 0.0))
    fomaml, maml = train("algorithm=fomaml"), train("algorithm=maml")
    assert same_bits(at_step(always, 4), at_step(maml, 4))
    assert same_bits(at_step(never, 4), at_step(fomaml, 4))
    assert same_bits(at_step(half, 2), at_step(fomaml, 2))
    assert not same_bits(at_step(half, 3), at_step(fomaml, 3))
    assert not same_bits(at_step(maml, 1), at_step(fomaml, 1))


def test_the_multi_step_loss_fades(train: Train) -> None:
    """Ended at once it is MAML's run; annealed over half of it, it differs from the first step on."""
    words = (*PLAIN, "algorithm.da=false")
    at_once, annealed, maml = (
        train(*words, "algorithm.msl_until=0"), train(*words, "algorithm.msl_until=0.5"), train("algorithm=maml")
    )  # fmt: skip
    assert same_bits(at_step(at_once, 4), at_step(maml, 4))
    assert not same_bits(at_step(annealed, 1), at_step(maml, 1))
    same_as_maml = train("algorithm=maml", "algorithm.multi_step=annealed", "algorithm.multi_step_until=0.5")
    assert same_bits(at_step(annealed, 4), at_step(same_as_maml, 4))


def test_cosine_annealing_of_the_outer_step_size(train: Train) -> None:
    """From the whole of it to a hundredth at the last step, of weights and of step sizes; without the flag as it is."""
    shown = [line["lr"] for line in history(train("train.steps=9", "train.eval_every=9"), "train")]
    wanted = [0.01 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * n / 8))) for n in range(9)]
    assert shown == pytest.approx(wanted, rel=1e-12)
    assert [line["lr"] for line in history(train("algorithm.ca=false"), "train")] == [0.01] * 4


def test_the_six_parts_learn(train: Train) -> None:
    """On patterns this plain, 40 steps are enough to be better than guessing."""
    run = train("train.steps=40", "train.eval_every=20", "algorithm.inner.lr=0.1", "algorithm.inner.rates_lr=0.05")
    losses = [line["loss"] for line in history(run, "train")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert all(math.isfinite(loss) for loss in losses)


# -- the meta-batch, going on, and time ----------------------------------------------------------------------------


def test_chunks_of_tasks_give_the_same_run(train: Train) -> None:
    """To rounding, where nothing but gradients is summed over tasks."""
    whole, parts = train("algorithm.bnrs=false"), train("algorithm.bnrs=false", "train.task_chunk=2")
    a, b = at_step(whole, 4), at_step(parts, 4)
    for name in phi_of(a):
        torch.testing.assert_close(a[f"phi/{name}"], b[f"phi/{name}"], rtol=1e-6, atol=1e-7)


def test_a_run_that_goes_on_ends_with_the_same_bits(train: Train) -> None:
    """Statistics are part of what is stored."""
    run = train()
    wanted, figures = at_step(run, 4), metrics(run)["metrics"]
    for later in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{later:06d}")
    (run / "manifest.json").unlink()
    assert cli.main(["train", f"resume={run}"]) == 0
    assert same_bits(at_step(run, 4), wanted)
    assert metrics(run)["metrics"] == figures


def test_minutes_become_steps_and_the_run_ends_in_about_that_time(train: Train) -> None:
    """And it is the run of that many steps, bit for bit, whatever was timed before: all that anneals follows the number
    found. 2 seconds here, with wide bounds for a busy machine."""
    words = ("train.eval_every=1000", "train.patience=0", "train.checkpoint_every=1", "optimizer.lr=0.01")
    began = time.monotonic()
    run = train("train.minutes=0.033", *words)
    took, found = time.monotonic() - began, metrics(run)
    steps = found["training"]["steps"]
    assert state(run, "last")["outer_steps"] == steps
    assert steps >= 3
    assert found["cost"]["steps"] == steps - 1  # the first one warms up
    assert 0.4 < found["cost"]["seconds"] < 8
    assert took < 25
    lrs = [line["lr"] for line in history(run, "train")]
    assert len(lrs) == steps
    assert lrs[-1] == pytest.approx(1e-4)
    assert history(run, "val")[-1]["step"] == steps
    same = train(f"train.steps={steps}", f"train.eval_every={steps}")
    assert same_bits(at_step(run, 0), at_step(same, 0))
    assert same_bits(at_step(run, steps), at_step(same, steps))


# -- chunks, other starts, the cache --------------------------------------------------------------------------------


def test_chunks_of_tasks_give_the_same_statistics(train: Train) -> None:
    whole, parts = (phi_of(at_step(train(f"train.task_chunk={chunk}"), 1)) for chunk in (0, 1))
    for name in STATISTICS:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-6, atol=1e-7)


def test_a_run_on_images_starts_from_another_one(train: Train) -> None:
    """Its weights are the start, as those of a run on sequences are."""
    first = train("algorithm=maml")
    again = train("algorithm=maml", f"warm_start={first}")
    best = {name: value for name, value in tensors(first, "best").items() if name.startswith("phi/")}
    assert all(torch.equal(at_step(again, 0)[name], value) for name, value in best.items())


def test_a_run_starts_from_one_of_maml_pp(train: Train) -> None:
    """From its weights as they are before the first inner step."""
    first = train()
    again = train("algorithm=maml", f"warm_start={first}")
    best = phi_of(tensors(first, "best"))
    for name, value in phi_of(at_step(again, 0)).items():
        assert torch.equal(value, best[name][0] if name in NORMS else best[name])


@pytest.mark.parametrize("word", ["n_way=2", "n_shot=2", "n_query=1", "n_val=4", "seed=5"])
def test_a_control_tuned_on_other_episodes_is_not_taken_from_the_cache(word: str, train: Train) -> None:
    config = config_of(train("algorithm=fomaml", "train.steps=1", "train.eval_every=1"))
    key, value = word.split("=")
    other = replace(config, dataset=replace(config.dataset, images=replace(config.dataset.images, **{key: int(value)})))
    assert cache_key(config, bench_of(config)) != cache_key(other, bench_of(other))


def test_more_steps_at_test_where_none_were_learned(train: Train, work: Work) -> None:
    """Refused or done, but in one line."""
    run = train("algorithm.inner.steps=0")
    with contextlib.suppress(ConfigError):
        work.eval(run, "steps=2")
