"""Every algorithm with every residual through the whole of a run; what a run stores of learned step sizes; refusals."""

from __future__ import annotations

import pytest
import torch
from reference.tiny_runs import Work, metrics, same_bits, tensors, tiny

from metarec import parts
from metarec.errors import ConfigError

BESIDE = [name for name in parts.names("residual") if getattr(parts.options("residual", name), "beside", False)]
PAIRS = [
    (algorithm, residual)
    for algorithm in parts.names("algorithm")
    for residual in parts.names("residual")
    if getattr(parts.options("residual", residual), "adapts", True)  # a memory: test_memory.py
    if not (residual == "rows" and getattr(parts.options("algorithm", algorithm), "taps_query", False))
    if not (residual in ("off", "on", "head", "rows") and algorithm == "generator")  # it makes no whole weights
    if residual in BESIDE or getattr(parts.options("algorithm", algorithm), "adapts", "") != "beside"
]
OF_HEAD = ("residual.targets=[fc.*,gru.weight_ih*]",)  # unless told otherwise, no factors belong to the head
OF_ROWS = ("residual.learn_start=true",)  # of rows, else, only step sizes are learned
SHORT = ("train.steps=2", "train.eval_every=1", "algorithm.inner.steps=2")


@pytest.mark.parametrize(("algorithm", "residual"), PAIRS)
def test_every_algorithm_with_every_residual(algorithm: str, residual: str, work: Work) -> None:
    own = ("schedule.warmup_steps=1",) if algorithm == "generator" else ()
    own += OF_HEAD if (algorithm, residual) == ("anil", "lora") else OF_ROWS if residual == "rows" else ()
    run = work.train(f"algorithm={algorithm}", f"residual={residual}", *SHORT, *own)
    found = metrics(run)
    assert (found["algorithm"], found["residual"]) == (algorithm, residual)
    first, last = (tensors_at(run, step) for step in (0, 2))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved & {
        "phi/fc.weight",
        "phi/fc.bias",
        "phi/context.shift",
        "phi/scale.state",
        "phi/gru.weight_ih_l0.lora_b",
        "phi/generator/encoder/in1.weight",
    }
    assert not [name for name in moved if name.startswith("base/")]
    learned = {name for name in first if name.startswith("phi/rates/")}
    assert bool(learned) == (algorithm in ("meta_sgd", "maml_pp"))
    assert learned <= moved
    if residual in BESIDE:
        assert all(name.startswith(("phi/rates/context.", "phi/rates/scale.")) for name in learned)


def tensors_at(run, step: int) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    from metarec.runs.checkpoint import load_checkpoint

    found, _ = load_checkpoint(run / "checkpoints" / f"step-{step:06d}")
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=meta_sgd", "residual=context"),
        ("algorithm=maml_pp", "residual=off"),
        ("algorithm=maml_pp", "residual=lora"),
        ("algorithm=meta_sgd", "residual=bias"),
    ],
)
def test_eval_gives_the_same_figures_again(words: tuple[str, ...], work: Work) -> None:
    run = work.train(*words, *SHORT)
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]
    more = work.eval(run, "steps=4")["metrics"]  # beyond the learned steps: the last one's sizes
    assert more["fewshot"] != metrics(run)["metrics"]["fewshot"]
    with pytest.raises(ConfigError, match="the run learned a step size for every weight"):
        work.eval(run, "lr=0.1")


def test_contexts_begin_as_the_pretrained_model(work: Work) -> None:
    run = work.train("algorithm=maml", "residual=context", "train.steps=1", "train.eval_every=1", "train.patience=1",
                     "optimizer.lr=1e-9")  # fmt: skip
    found = metrics(run)["metrics"]
    assert found["zeroshot"] == found["pretrained"]


def test_chunks_of_tasks_give_the_same_gradient(work: Work) -> None:
    whole = work.train("algorithm=maml", "residual=context", "hardware.precision=float64", "train.dropout=0", *SHORT)
    in_parts = work.train(
        "algorithm=maml",
        "residual=context",
        "hardware.precision=float64",
        "train.task_chunk=5",
        "train.dropout=0",
        *SHORT,
    )
    a, b = tensors(whole, "last"), tensors(in_parts, "last")
    assert not same_bits(a, b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-8)


def test_the_outer_step_size_of_rates_is_their_own(work: Work) -> None:
    run = work.train("algorithm=maml", "residual=context", "algorithm.inner.rates=tensor", "train.steps=1",
                     "train.eval_every=1", "algorithm.inner.rates_lr=0.5")  # fmt: skip
    first, last = (tensors_at(run, step) for step in (0, 1))
    moved = (last["phi/rates/context.shift"] - first["phi/rates/context.shift"]).abs()
    assert moved.item() == pytest.approx(0.5, rel=1e-3)  # the first step of Adam is its step size
    assert (last["phi/fc.bias"] - first["phi/fc.bias"]).abs().max().item() == pytest.approx(0.02, rel=1e-2)


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm.inner.support_weights=recency",),
        ("algorithm.inner.support_weights=recency", "algorithm.inner.recency=3"),
        ("algorithm.inner.support_weights=reliability",),
        ("train.dropout=0.4",),
        ("algorithm.inner.clip=0.01",),
        ("algorithm.inner.prox=5",),
        ("algorithm.inner.rates=tensor",),
        ("algorithm.inner.adapt=[fc.*]",),
        ("algorithm.multi_step=uniform",),
        ("algorithm.order=first",),
        ("algorithm.order=annealed", "algorithm.switch=0.4"),
    ],
    ids=lambda words: words[-1],
)
def test_every_option_has_its_effect(words: tuple[str, ...], work: Work) -> None:
    plain = work.train("algorithm=maml", "residual=off", *SHORT)
    other = work.train("algorithm=maml", "residual=off", *SHORT, *words)
    assert not same_bits(tensors(plain, "last"), tensors(other, "last"))


def test_recomputing_is_the_same_to_rounding(work: Work) -> None:
    plain = work.train("algorithm=maml", "residual=off", "hardware.precision=float64", *SHORT)
    other = work.train("algorithm=maml", "residual=off", "hardware.precision=float64", *SHORT,
                       "algorithm.inner.recompute=true")  # fmt: skip
    a, b = tensors(plain, "last"), tensors(other, "last")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-8)


def test_a_time_budget_sets_the_steps(work: Work) -> None:
    words = [w for w in tiny("algorithm=maml", "residual=context") if not w.startswith("train.steps")]
    run = work._run("train", *words, "algorithm=maml", "residual=context", "train.minutes=0.01")
    found = metrics(run)
    assert 1 <= found["training"]["steps"] < 2000
    assert found["cost"]["seconds"] < 5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("algorithm.inner.adapt=[fc.*,nothing.*]",), r"algorithm.inner.adapt: nothing.\*: matches no weight"),
        (("algorithm=anil", "algorithm.head=[gru.x]"), "algorithm.head: gru.x: matches no weight"),
        (("algorithm=anil", "algorithm.inner.adapt=[gru.*]"), "nothing of it adapts"),
    ],
)
def test_a_pattern_without_a_match_is_refused(words: tuple[str, ...], text: str, work: Work) -> None:
    with pytest.raises(ConfigError, match=text):
        work.train(*words)
