"""The language model in the inner and the outer loop: meta-gradients are slopes, tasks do not see each other, norms stay."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference.small_episodes import SmallLog, small_log
from reference.small_lms import moved, ours, saved, theirs

from metarec import build, parts
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop, adapt, gradients
from metarec.algorithms.maml import MAML
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models import causal_lm
from metarec.models.causal_lm import CausalLM, Config
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import lora
from metarec.tasks import Tasks
from metarec.verbs import measure

QV = ["*q_proj*", "*v_proj*"]


@cache
def log() -> SmallLog:
    return small_log(13, n_users=3, unknown=0.2, max_len=6)


def tiny(**options: Any) -> CausalLM:
    given: dict[str, Any] = {"hidden_size": 8, "n_layers": 1, "n_heads": 2, "ffn_dim": 12, "dropout": 0.0, "max_len": 6}
    return causal_lm.build(Config(**{**given, **options}), 11)


def base(model: CausalLM) -> Params:
    return moved(model.init(torch.Generator().manual_seed(0), torch.float64), size=0.4)


def over_factors(model: CausalLM, targets: list[str] | None = None) -> tuple[Tasks, Params]:
    over = build.residual(lora.Config(rank=2, alpha=3.0, targets=targets or QV), model, base(model))
    return Tasks(model, cross_entropy, over.compose), moved(over.init(torch.Generator().manual_seed(1)))


def over_all(model: CausalLM) -> tuple[Tasks, Params]:
    return Tasks(model, cross_entropy, lambda phi: phi), base(model)


def meta(tasks: Tasks, phi: Params, order: str, **loop: Any) -> Any:
    """phi -> the mean meta-loss of three tasks."""
    batch = log().episodes(4, 4)
    inner_loop = InnerLoop(
        0.3, 2, adapted=build.fine_tunable(tasks.model) if "model.norm.weight" in phi else None, **loop
    )
    algorithm = MAML(inner_loop) if order == "second" else fomaml(inner_loop)
    support, query = tasks.loss(batch.support), tasks.loss(batch.query)
    return lambda now: algorithm.meta_losses(now, support, query, 3, 0).mean()


def slope_errors(tasks: Tasks, phi: Params, order: str, **loop: Any) -> list[float]:
    """|<gradient, along> - central difference| / |gradient| along random directions, of all weights and of each."""
    loss = meta(tasks, phi, order, **loop)
    own = {name: value.clone().requires_grad_() for name, value in phi.items()}
    found = torch.autograd.grad(loss(own), list(own.values()), allow_unused=True)
    grads = {n: torch.zeros_like(own[n]) if g is None else g for n, g in zip(own, found, strict=True)}
    whole = sum(float(g.square().sum()) for g in grads.values()) ** 0.5
    generator, errors = torch.Generator().manual_seed(7), []
    value = meta(tasks, phi, "first")  # the value of both orders is the same
    for names in [list(phi), *([name] for name in phi)]:
        along = {n: torch.randn(phi[n].shape, generator=generator, dtype=torch.float64) for n in names}
        size = sum(float(a.square().sum()) for a in along.values()) ** 0.5
        ahead, behind = ({**phi, **{n: phi[n] + s * 1e-5 / size * along[n] for n in names}} for s in (1, -1))
        with torch.no_grad():
            slope = float(value(ahead) - value(behind)) / 2e-5
        errors.append(abs(sum(float((grads[n] * along[n]).sum()) for n in names) / size - slope) / whole)
    return errors


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("what", [over_factors, over_all], ids=["factors", "all weights"])
def test_the_meta_gradient_of_maml_is_the_slope(what: Any, checkpointing: bool) -> None:
    errors = slope_errors(*what(tiny(gradient_checkpointing=checkpointing)), "second")
    assert max(errors) < 1e-7


def test_the_meta_gradient_with_recomputed_inner_steps_is_the_slope() -> None:
    assert max(slope_errors(*over_factors(tiny()), "second", recompute=True)) < 1e-7


def test_that_of_gpt2_with_its_biases_and_positions(tmp_path: Path) -> None:
    model = ours(saved(theirs("gpt2"), tmp_path), "items", 11, max_len=6)
    assert max(slope_errors(*over_factors(model, ["*c_attn.weight", "*wpe*"]), "second")) < 1e-7


@pytest.mark.parametrize("what", [over_factors, over_all], ids=["factors", "all weights"])
def test_that_of_fomaml_is_not(what: Any) -> None:
    assert max(slope_errors(*what(tiny()), "first")) > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_each_task_has_the_gradient_that_it_has_alone(checkpointing: bool) -> None:
    """By autograd on a plain copy of the weights, of its own pairs, without an operator of tasks."""
    model = tiny(gradient_checkpointing=checkpointing)
    tasks, phi = over_all(model)
    names = build.fine_tunable(model)
    assert names is not None
    _, found = gradients(tasks.loss(log().episodes(4, 4).support), phi, {}, sorted(names), False)
    for t in range(3):
        own = {name: value.clone().requires_grad_() for name, value in phi.items()}
        loss = tasks.loss(log().episodes(4, 4, [t]).support)(own)[0]
        for name, wanted in zip(sorted(names), torch.autograd.grad(loss, [own[n] for n in sorted(names)]), strict=True):
            torch.testing.assert_close(found[name].dense()[t], wanted, rtol=1e-10, atol=1e-12)


def test_a_task_adapts_alike_alone_and_in_company() -> None:
    tasks, phi = over_factors(tiny())
    whole = adapt(tasks.loss(log().episodes(4, 4).support), phi, 3, InnerLoop(0.3, 2))
    scores = tasks.logits(whole, log().episodes(4, 4).query)
    for t in range(3):
        batch = log().episodes(4, 4, [t])
        alone = adapt(tasks.loss(batch.support), phi, 1, InnerLoop(0.3, 2))
        torch.testing.assert_close(tasks.logits(alone, batch.query)[0], scores[t], rtol=0, atol=1e-12)


# -- what stays -----------------------------------------------------------------------------------------------------


def adapted(
    model: CausalLM, residual: str, algorithm: str = "fomaml", adapt: list[str] | None = None
) -> frozenset[str]:
    config = parts.default("algorithm", algorithm)
    return build.adapted(
        replace(config, inner=replace(config.inner, adapt=adapt)), parts.default("residual", residual), model
    )


def test_norms_are_learned_and_never_adapted() -> None:
    model = tiny()
    norms = {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    assert set(model.fixed) == norms
    for residual in ("off", "on"):
        learned = build.learnable(parts.default("residual", residual), model)
        assert set(learned) - adapted(model, residual) == norms
    assert adapted(model, "head") == {"items.weight"}
    line = (
        r"model\.norm\.weight is one for all tasks: the model learns it and cannot adapt it -- give patterns that leave"
    )
    for pattern in (["*"], ["*q_proj*", "model.norm.*"]):
        with pytest.raises(ConfigError, match=line if "norm" in pattern[-1] else "is one for all tasks"):
            adapted(model, "off", adapt=pattern)
    assert adapted(model, "off", adapt=["*q_proj*"]) == {"model.layers.0.self_attn.q_proj.weight"}


def test_an_adapter_that_matches_nothing_is_an_error() -> None:
    model = tiny()
    for targets in (["*query*"], ["*q_proj*", "model.norm.weight"]):
        with pytest.raises(
            ConfigError, match=r"residual\.targets: .*: matches no matrix -- the names are items\.weight, model"
        ):
            lora.targets(lora.Config(rank=2, targets=targets), model)
    with pytest.raises(ConfigError, match="matches no weight"):
        adapted(model, "off", adapt=["*query*"])


def test_biases_of_gpt2_adapt_and_llama_has_none(tmp_path: Path) -> None:
    model = ours(saved(theirs("gpt2"), tmp_path), "items", 11, max_len=6)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in adapted(model, "bias")} == {
        "c_attn",
        "c_proj",
        "c_fc",
    }
    with pytest.raises(ConfigError, match="nothing that it could adapt"):
        adapted(tiny(), "bias")


def test_the_control_fine_tunes_all_but_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    bench: Any = SimpleNamespace(model=model, tasks=lambda: over_all(model)[0])
    weights: Any = measure.fine_tuned(bench, base(model), 0.1, 1)(log().episodes(4, 4))
    assert {name for name, weight in weights.items() if weight.offset is None} == set(model.fixed)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(measure, "tune_control", lambda *given, **more: seen.update(more) or Control(0.1, 1, 0.0, []))
    grid = SimpleNamespace(lrs=[0.1], steps=[1])
    bench = SimpleNamespace(
        model=model, tasks=bench.tasks, tuning_rows=lambda: None, episodes=lambda *_, **__: None, seen=lambda: None,
        evaluation=SimpleNamespace(control=grid, monitor="ndcg@10", ties="conservative"),
    )  # fmt: skip
    measure.control_of(bench, {}, "quiet")
    assert seen["adapted"] == frozenset(model.shapes()) - frozenset(model.fixed)


def test_a_norm_of_each_task_is_refused_where_it_would_be_read() -> None:
    model = tiny()
    tasks, phi = over_all(model)
    with pytest.raises(
        TypeError, match=r"layernorm\.weight is read by a module of transformers, for all tasks at once"
    ):
        adapt(tasks.loss(log().episodes(4, 4).support), phi, 3, InnerLoop(0.3, 1))
