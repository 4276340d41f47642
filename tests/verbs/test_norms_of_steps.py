"""The outer loop on images: statistics and norm weights of each inner step, and that only training moves statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.image_runs import FILTERS, NORMS, STATISTICS, K, Train, at_step, bench_of, config_of, phi_of
from reference.tiny_runs import Work, metrics, state
from torch import Tensor

from metarec.algorithms.inner import start
from metarec.benches import ImageBench
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import FastWeight, Params
from metarec.evaluate import Control, ranks, scored
from metarec.models.conv4 import Conv4
from metarec.verbs import measure as m


def trained(run: Path, step: int = 4) -> tuple[ImageBench, m.Trained]:
    """What evaluation sees of a checkpoint."""
    config, found = config_of(run), at_step(run, step)
    bench = bench_of(config)
    return bench, m.trained_from(bench, config, found, Control(**state(run, "last")["control"]))


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
