"""The outer loop on images: what each flag of MAML++ does to a run (those of norms: test_norms_of_steps.py), chunks, other
starts, a time budget."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.image_runs import FILTERS, NORMS, STATISTICS, K, Train, at_step, bench_of, config_of, phi_of
from reference.tiny_runs import Work, metrics, same_bits, state, tensors

from metarec import cli
from metarec.algorithms.maml import MAML
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models.conv4 import Conv4
from metarec.verbs import measure as m
from metarec.verbs.warm_start import cache_key


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
