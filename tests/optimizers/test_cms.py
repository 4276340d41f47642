"""CMS against its base and against steps by hand: what moves when, what is pending, which level a parameter has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import build, parts
from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.sasrec import SASRec
from metarec.optimizers import Given, adam, adamw, cms, sgd
from metarec.runs import checkpoint
from metarec.runs.kept import Kept
from metarec.train import Plan, Store, fit, restore

NAMES = ("fast", "medium", "slow")
ONE_EACH = [[name] for name in NAMES]


def start() -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return {name: torch.randn(4, 3, generator=drawn).requires_grad_() for name in NAMES}


def loss_at(params: dict[str, Tensor], step: int) -> Tensor:
    """Another target in every step, so that a gradient used twice or left out is seen."""
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(100 + step))
    each = [(value - (i + 1) * target).square().sum() for i, value in enumerate(params.values())]
    return torch.stack(each).sum()


def made(params: dict[str, Tensor], **options: Any) -> cms.CMS:
    options = {"lr": 0.1, "levels": ONE_EACH, **options}
    found = build.optimizer(parts.options("optimizer", "cms")(**options), params, build.OUTER_LR["weights"])  # type: ignore[misc]
    assert isinstance(found, cms.CMS)
    return found


def run(params: dict[str, Tensor], optimizer: torch.optim.Optimizer, steps: int) -> list[dict[str, Tensor]]:
    """The parameters before the first step and behind each."""
    seen = [{name: value.detach().clone() for name, value in params.items()}]
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss_at(params, step).backward()
        optimizer.step()
        seen.append({name: value.detach().clone() for name, value in params.items()})
    return seen


@pytest.mark.parametrize(
    ("base", "plain"),
    [
        ({"base": "adam", "weight_decay": 0.01}, adam.Config(lr=0.1, weight_decay=0.01)),
        ({"base": "adamw", "weight_decay": 0.02}, adamw.Config(lr=0.1, weight_decay=0.02)),
        ({"base": "sgd", "lr": 0.01, "momentum": 0.9}, sgd.Config(lr=0.01, momentum=0.9)),
    ],
)
@pytest.mark.parametrize("scale", ["none", "inverse", "sqrt"])
def test_with_chunks_of_one_it_is_the_base_bit_for_bit(base: dict[str, Any], plain: Any, scale: str) -> None:
    ours, theirs = start(), start()
    found = run(ours, made(ours, chunks=[1, 1, 1], lr_scale=scale, **base), 20)
    expected = run(theirs, build.optimizer(plain, theirs, build.OUTER_LR["weights"]), 20)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in NAMES)


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_a_level_moves_at_the_end_of_its_chunks_alone(base: str) -> None:
    params = start()
    optimizer = made(params, chunks=[1, 3, 8], base=base, lr=0.01)
    seen = run(params, optimizer, 20)
    for name, chunk in zip(NAMES, (1, 3, 8), strict=True):
        moved = [t for t in range(1, 21) if not torch.equal(seen[t][name], seen[t - 1][name])]
        assert moved == [t for t in range(1, 21) if t % chunk == 0]
        if base == "adam":
            assert int(optimizer.state[params[name]]["step"]) == 20 // chunk


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("scale", "factor"), [("none", lambda c: 1), ("inverse", lambda c: 1 / c), ("sqrt", lambda c: c**-0.5)]
)
def test_steps_by_hand(reduction: str, scale: str, factor: Any) -> None:
    """SGD in float64: w <- w - lr_l * (sum or mean of the gradients of the chunk, each at the weights of its own step)."""
    params = {name: value.detach().double().requires_grad_() for name, value in start().items()}
    w = {name: value.detach().clone() for name, value in params.items()}
    run(params, made(params, chunks=[1, 3, 8], base="sgd", lr=0.01, grad_reduction=reduction, lr_scale=scale), 17)
    pending = {name: torch.zeros(4, 3, dtype=torch.float64) for name in NAMES}
    for step in range(17):
        target = torch.randn(4, 3, generator=torch.Generator().manual_seed(100 + step))
        for i, (name, chunk) in enumerate(zip(NAMES, (1, 3, 8), strict=True)):
            pending[name] += 2 * (w[name] - (i + 1) * target)
            if (step + 1) % chunk == 0:
                part = pending[name] / (chunk if reduction == "mean" else 1)
                w[name] = w[name] - 0.01 * factor(chunk) * part
                pending[name] = torch.zeros_like(part)
    for name in NAMES:
        torch.testing.assert_close(params[name].detach(), w[name], rtol=0, atol=1e-12)


def plan(steps: int) -> Plan:
    return Plan(steps, 5, 0, 5, 0.0, "score")


def fitted(
    directory: Path, steps: int, resume: bool = False, flush: bool = True, upto: int | None = None
) -> dict[str, Tensor]:
    """`steps` of `train.fit`, in which it dies behind the checkpoint of `upto`; resumed, it goes on from that."""
    params = start()
    optimizer, at = made(params, chunks=[1, 3, 8], flush=flush), None
    if resume:
        found, _ = checkpoint.latest_good(directory)
        assert found is not None
        at, *_ = restore(found, params, optimizer)

    def loss(step: int) -> Tensor:
        if step == upto:
            raise KeyboardInterrupt
        return loss_at(params, step)

    fit(
        params,
        loss,
        optimizer,
        lambda step: 0.5**step,
        plan(steps),
        lambda: {"score": 0.0},
        at=at,
        store=Store(directory, {}, {}),
    )
    return {name: value.detach() for name, value in params.items()}


def test_a_run_resumed_in_mid_chunk_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", 17)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", 17, upto=12)  # the last checkpoint is of step 10, between 8 and 16, and 9 and 12
    held, _ = checkpoint.load_checkpoint(checkpoint.latest_good(tmp_path / "cut")[0])  # type: ignore[arg-type]
    assert {"optimizer/medium/pending", "optimizer/slow/pending"} <= set(held)
    assert "optimizer/fast/pending" not in held
    again = fitted(tmp_path / "cut", 17, resume=True)
    assert all(torch.equal(again[name], whole[name]) for name in NAMES)


def test_what_is_pending_is_flushed_behind_the_last_step_or_left_out(tmp_path: Path) -> None:
    flushed, left = fitted(tmp_path / "a", 17), fitted(tmp_path / "b", 17, flush=False)
    assert torch.equal(flushed["fast"], left["fast"])
    assert not torch.equal(flushed["medium"], left["medium"])  # steps 16, 17
    assert not torch.equal(flushed["slow"], left["slow"])  # step 17
    full, other = fitted(tmp_path / "c", 24), fitted(tmp_path / "d", 24, flush=False)
    assert all(torch.equal(full[name], other[name]) for name in NAMES)  # nothing is pending


def test_a_flush_is_one_step_of_what_is_there() -> None:
    """By hand, of two steps out of three and their mean."""
    params = {name: value.detach().double().requires_grad_() for name, value in start().items()}
    before = params["medium"].detach().clone()
    optimizer = made(params, chunks=[1, 3, 8], base="sgd", lr=0.01, grad_reduction="mean")
    run(params, optimizer, 2)
    targets = [torch.randn(4, 3, generator=torch.Generator().manual_seed(100 + step)) for step in range(2)]
    optimizer.finish()
    mean = sum(2 * (before - 2 * target) for target in targets) / 2
    torch.testing.assert_close(params["medium"].detach(), before - 0.01 * mean, rtol=0, atol=1e-12)
    after = params["medium"].detach().clone()
    optimizer.finish()
    assert torch.equal(params["medium"].detach(), after)


def test_a_rollback_puts_back_what_is_pending() -> None:
    ours, theirs = start(), start()
    first, second = made(ours, chunks=[1, 3, 8]), made(theirs, chunks=[1, 3, 8])
    run(ours, first, 4)
    run(theirs, second, 4)
    kept = Kept.of(4, ours, first, {}, {})
    run(ours, first, 3)
    kept.put_back(ours, first)
    assert first.seen == 4
    run(ours, first, 5)
    run(theirs, second, 5)
    assert all(torch.equal(ours[name], theirs[name]) for name in NAMES)


def test_a_parameter_that_a_loss_does_not_use_stays() -> None:
    params = start()
    optimizer = made(params, chunks=[1, 2, 2])
    for step in range(4):
        optimizer.zero_grad(set_to_none=True)
        loss_at({"fast": params["fast"], "medium": params["medium"]}, step).backward()
        optimizer.step()
    assert torch.equal(params["slow"], start()["slow"])
    assert not torch.equal(params["medium"], start()["medium"])


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ([["fast"], ["medium"], ["medium"]], r"optimizer\.levels: medium: stands in levels 2 and 3, and must have one"),
        ([["fast"], ["fast"], ["medium"]], r"optimizer\.levels: fast: stands in levels 1 and 2"),
        ([["f*"], ["med*"], ["f?st"]], r"optimizer\.levels: fast: stands in levels 1 and 3"),
        ([["fast"], ["medium"], ["slaw"]], r"optimizer\.levels: slaw: matches no trained parameter -- the names are fast"),
    ],
)  # fmt: skip
def test_levels_are_a_partition(levels: list[list[str]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made(start(), levels=levels)


def test_levels_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.levels: 3: wrong type -- give a list, each a list, each text"):
        check_words("train", ["optimizer=cms", "optimizer.levels=3"])


def test_an_orphan_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.levels: slow: stands in no level -- change the patterns"):
        made(start(), levels=[["fast"], ["medium"]], chunks=[1, 2])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (GRU4Rec(9, 4, 4), {"embedding.weight": 0, "gru.weight_hh_l0": 0, "fc.weight": 1, "fc.bias": 1}),
        (SASRec(9, 4, 3), {"position.weight": 0, "layers.1.ffn1.weight": 1, "layers.2.ffn2.bias": 2, "norm.bias": 0}),
        (NARM(9, 4, 4), {"gru.bias_ih_l0": 0, "attention.mass": 1, "decoder.weight": 2, "embedding.weight": 0}),
    ],
    ids=["gru4rec", "sasrec", "narm"],
)  # fmt: skip
def test_levels_unless_told_otherwise(model: Any, expected: dict[str, int]) -> None:
    names = [*model.shapes(), *model.context_shapes(), "fc.weight.lora_a", "rates/embedding.weight"]
    found = cms.levels(cms.Config(), Given([], 1.0, dict.fromkeys(names, torch.zeros(1)), model.slower))
    assert set(found) == set(names)
    assert {name: found[name] for name in expected} == expected
    assert all(found[name] == 0 for name in model.context_shapes())
    assert found["rates/embedding.weight"] == 1
    two = cms.levels(cms.Config(chunks=[1, 4]), Given([], 1.0, dict.fromkeys(names, torch.zeros(1)), model.slower))
    assert max(two.values()) == 1


def test_a_model_may_say_its_levels_by_names_and_nothing_slow_is_refused() -> None:
    params = start() | {"slow.weight": torch.zeros(2).requires_grad_()}
    found = cms.levels(cms.Config(), Given([], 1.0, params))
    assert found == {"fast": 0, "medium": 0, "slow": 0, "slow.weight": 2}
    with pytest.raises(
        ConfigError, match=r"nothing that is trained is slow .* use optimizer=adam, or give optimizer\.levels"
    ):
        made(start(), levels=None)


def test_rates_and_what_is_apart_keep_their_step_sizes_and_do_not_decay() -> None:
    params = start() | {"rates/fast": torch.zeros(()).requires_grad_(), "cache.mix": torch.zeros(2).requires_grad_()}
    config = cms.Config(
        lr=0.1, levels=[["fast"], ["rates/*", "medium"], ["slow", "cache.*"]], lr_scale="inverse", weight_decay=0.3
    )
    optimizer = build.optimizer(config, params, build.OUTER_LR["weights"], 0.03, {"cache.": 0.5})  # type: ignore[arg-type]
    found = {id(v): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for v in g["params"]}
    assert {name: found[id(value)] for name, value in params.items()} == {
        "fast": (0.1, 0.3), "medium": (0.1 / 16, 0.3), "slow": (0.1 / 256, 0.3), "rates/fast": (0.03 / 16, 0.0),
        "cache.mix": (0.5 / 256, 0.0),
    }  # fmt: skip
