"""Whole runs whose inner steps forget: training, evaluation, resume and export by one rule, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, metrics, same_bits, tensors, tiny
from safetensors.torch import load_file
from torch import Tensor

from metarec import cli
from metarec.algorithms.maml import MAML
from metarec.config.schema import EvalConfig, ExportConfig
from metarec.errors import ConfigError
from metarec.runs import adapters
from metarec.runs.history import read_history
from metarec.verbs import measure as m
from metarec.verbs.eval import episodes_of, opened, trained_of

DELTA = ("algorithm.inner.rule=delta", "algorithm.inner.decay=0.1")
HEAD = ("residual=head", "algorithm=maml", "algorithm.inner.lr=0.4", "algorithm.inner.steps=2")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_history(run / "history.jsonl") if line["kind"] == "train"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run by the command line, in float64, not to be changed."""
    work = Work(tmp_path_factory.mktemp("delta"), cache)
    words = (*HEAD, *DELTA, "hardware.precision=float64")
    assert work.main("train", *tiny(*words), *words) == 0
    return work.directories("train")[0]


def test_evaluation_adapts_by_the_rule_that_the_run_was_trained_with(run: Path, work: Work) -> None:
    assert work.main("eval", f"ckpt={run}") == 0
    again, then = metrics(work.directories("eval")[0]), metrics(run)
    assert again["metrics"] == then["metrics"]
    assert again["config"]["algorithm"]["inner"]["rule"] == "delta"
    more = work.eval(run, "steps=3")
    assert more["metrics"]["zeroshot"] == then["metrics"]["zeroshot"]


def test_a_user_under_test_forgets_along_his_own_support(run: Path) -> None:
    """By dense matrices, one user after the other, from the checkpoint: the delta of the output layer and its bias."""
    config = EvalConfig(ckpt=str(run))
    held = opened(config, set())
    trained = trained_of(config, held)
    assert trained.phi is not None
    batch = next(iter(episodes_of(config, held).batches()))
    adapted: Any = m.adapted(held.bench, trained)(batch)
    base, phi, model = trained.base, trained.phi, held.bench.model
    states = batch.support.gather(model.encode(base, batch.support.inputs))  # the body is that of all users
    for task in range(5):
        known = batch.support.target[task] > 0
        h, target = states[task][known], batch.support.target[task][known] - 1
        delta, shift = phi["fc.weight"], phi["fc.bias"]
        moment = h.T @ h / len(h)
        for _ in range(2):
            logits = h @ (base["fc.weight"] + delta).T + base["fc.bias"] + shift
            slope = (logits.softmax(-1) - torch.nn.functional.one_hot(target, len(shift))) / len(h)
            delta, shift = delta - 0.1 * delta @ moment - 0.4 * slope.T @ h, shift - 0.4 * slope.sum(0)
        torch.testing.assert_close(adapted["fc.weight"].dense()[task], delta, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(adapted["fc.bias"].dense()[task], shift, rtol=1e-9, atol=1e-11)


def test_it_is_another_run_than_by_gradient_steps_and_with_decay_0_the_same(run: Path, work: Work) -> None:
    """A delta of zero has nothing to forget in its first step; later it has."""
    words = (*HEAD, "hardware.precision=float64")
    plain = work.train(*words)
    still = work.train(*words, "algorithm.inner.rule=delta", "algorithm.inner.decay=0")
    assert losses(still) == losses(plain) != losses(run)
    assert same_bits(tensors(still, "last"), tensors(plain, "last"))
    assert metrics(still)["metrics"] == metrics(plain)["metrics"]
    assert not torch.equal(tensors(run, "last")["phi/fc.weight"], tensors(plain, "last")["phi/fc.weight"])


WORDS: list[tuple[str, ...]] = [
    ("residual=off", "algorithm=anil"), ("residual=head", "algorithm=meta_sgd"),
    ("residual=lora", "residual.rank=2", "algorithm=maml", "algorithm.inner.rates=tensor_step"),
]  # fmt: skip
MORE: list[tuple[str, ...]] = [
    ("residual=on", "algorithm=anil", "algorithm.order=first"), ("residual=head", "algorithm=maml_pp"),
    ("residual=head", "algorithm=fomaml"), ("residual=[bias,lora]", "residual.lora.rank=2", "algorithm=fomaml"),
    ("residual=off", "algorithm=maml", "algorithm.inner.adapt=[fc.*,gru.weight_ih*,gru.bias*]"),
    ("residual=head", "algorithm=maml", "algorithm.inner.recompute=true", "objective=bpr_max"),
    ("residual=head", "algorithm=maml", "optimizer=delta_adam", "algorithm.inner.support_weights=recency"),
    ("residual=head", "algorithm=maml", "hardware.precision=bfloat16", "objective.kl_anchor.weight=0.1",
     "objective.kl_anchor.where=inner"),
]  # fmt: skip


@pytest.mark.parametrize("words", [*WORDS, *(pytest.param(own, marks=pytest.mark.slow) for own in MORE)], ids=" ".join)
def test_with_every_algorithm_that_differentiates_its_steps(words: tuple[str, ...], work: Work) -> None:
    found = work.train(*words, *DELTA[:1], "algorithm.inner.form=proximal", "algorithm.inner.decay=0.5")
    plain = work.train(*words)
    assert all(torch.tensor(losses(found)).isfinite())
    assert losses(found) != losses(plain)


def test_a_run_that_was_cut_ends_with_the_same_bits(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = work.train(*HEAD, *DELTA)
    other = Work(tmp_path / "cut", work.cache)
    with monkeypatch.context() as patch:
        plain, calls = MAML.meta_losses, list[int]()

        def cut(self: MAML, *args: Any, **options: Any) -> Tensor:
            calls.append(1)
            if len(calls) > 4 and args[-1] == 4:
                raise KeyboardInterrupt
            return plain(self, *args, **options)

        patch.setattr(MAML, "meta_losses", cut)
        with pytest.raises(KeyboardInterrupt):
            other.train(*HEAD, *DELTA)
    (run,) = other.directories("train")
    assert cli.main(["train", f"resume={run}"]) == 0
    assert_same_run(run, whole)


def test_growing_along_the_inputs_ends_the_run_with_6_and_a_clip_goes_on(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*HEAD, "algorithm.inner.rule=delta", "algorithm.inner.decay=1000")
    assert work.main("train", *tiny(*words), *words) == 6
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: before the first step, delta rule, fc.weight, inner step 0, task ")
    assert ", user u0" in line
    assert "no weight has moved in this step -- lower algorithm.inner.decay to below" in line
    assert losses(work.train(*words, "algorithm.inner.unstable=clip"))
    assert losses(work.train(*words, "algorithm.inner.form=proximal"))


def test_an_exported_user_is_one_who_forgot(work: Work) -> None:
    lora = ("residual=lora", "residual.rank=3", "algorithm.inner.lr=0.4", "algorithm.inner.steps=2")
    run = work.train(*lora, *DELTA, "hardware.precision=float64")
    user = _first(run)
    target = work.root / "adapter"
    work._run("export", f"ckpt={run}", f"to={target}", f"users=[{user}]")
    config = ExportConfig(ckpt=str(run), users=[user])
    held = opened(config, {"users"})
    trained = trained_of(config, held)
    batch = next(iter(episodes_of(config, held).batches()))
    adapted: Any = m.adapted(held.bench, trained)(batch)
    files = load_file(target / "users" / user / adapters.WEIGHTS)
    name = "base_model.model.gru.weight_ih_l0.lora_{}.weight"
    for factor in ("a", "b"):
        own = adapted[f"gru.weight_ih_l0.lora_{factor}"].dense()[0]
        torch.testing.assert_close(files[name.format(factor.upper())], own, rtol=1e-9, atol=1e-11)
    assert trained.algorithm is not None
    assert trained.algorithm.inner.forget is not None
    assert trained.algorithm.inner.forget.names == {"gru.weight_ih_l0.lora_a", "gru.weight_ih_l0.lora_b"}


def _first(run: Path) -> str:
    import pyarrow.parquet as pq

    return str(pq.read_table(run / "per_user.parquet")["user_id"].to_pylist()[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("residual=off", "algorithm=maml"), r"embedding\.weight, gru\.weight_hh_l0 would adapt, and what a task reads"),
        (("residual=on",), r"embedding\.weight, gru\.weight_hh_l0 would adapt"),
        (("residual=head", "model.tie=true", "model.embedding_dim=16"), r"embedding\.weight would adapt"),
        (("residual=lora", "residual.rank=2", "residual.targets=[gru.*]"), r"gru\.weight_hh_l0\.lora_a, .* would adapt"),
        (("residual=off", "algorithm=anil", "algorithm.head=[fc.bias]"), r"nothing of what adapts is the matrix"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_could_not_forget_is_refused_before_anything_is_pretrained(
    words: tuple[str, ...], says: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metarec.verbs import meta_train

    monkeypatch.setattr(meta_train, "warm_start", lambda *given: pytest.fail("pretrained"))
    with pytest.raises(ConfigError, match=rf"algorithm\.inner\.rule: delta: {says}"):
        work.train(*words, *DELTA)


@pytest.mark.parametrize("algorithm", ["reptile", "imaml", "generator"])
def test_an_algorithm_whose_gradient_is_not_of_these_steps_has_no_such_key(
    algorithm: str, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.main("train", f"algorithm={algorithm}", "residual=lora", DELTA[0]) == 2
    assert f"algorithm={algorithm} has no such key -- it belongs to algorithm=anil|" in capsys.readouterr().err
