"""Dropout of what LoRA's factors read: by hand, the base untouched, the same units whoever reads, slopes, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.matrix_models import MODELS
from reference.small_episodes import small_log
from torch import Tensor

from metarec import build, parts
from metarec.config.overrides import check_words
from metarec.core.ops import linear, linear_rows
from metarec.core.states import dropout
from metarec.core.weights import Factored, FastWeight, Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.residual import lora
from metarec.residual.lora import LowRankResidual
from metarec.tasks import Tasks

LOG, T, RATE = small_log(13, n_users=4, unknown=0.2, max_len=5), 4, 0.4
# every matrix that reads an activation
TARGETS = {
    "gru4rec": ["gru.weight_ih*", "fc.weight"], "sasrec": ["layers.*"], "narm": ["*_ih_*", "attention.*", "decoder.*"],
}  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residual(name: str, rate: float = RATE, targets: list[str] | None = None) -> LowRankResidual:
    generator = seeded(1)
    base = MODELS[name].model.init(generator, torch.float64)
    base = {n: v + 0.4 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in base.items()}
    on = lora.Config(rank=2, alpha=1.4, targets=targets or TARGETS[name], dropout=rate)
    made = build.residual(on, MODELS[name].model, base)
    assert isinstance(made, LowRankResidual)
    return made


def moved(over: LowRankResidual) -> Params:
    generator = seeded(3)
    return {
        n: v + 0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in over.init(generator).items()
    }


def fast(phi: Params) -> dict[str, FastWeight]:
    return {name: FastWeight(value) for name, value in phi.items()}


def loss_of(name: str, over: LowRankResidual, seed: int | None, objective: Any = None) -> Any:
    compose = over.compose if seed is None else over.dropping(seeded(seed))
    return Tasks(MODELS[name].model, objective or CrossEntropy(), compose).loss(LOG.episodes(4, 4).query)


def test_by_hand() -> None:
    """x W^T + s (m o x) A^T B^T / (1 - rate): what the base reads is whole."""
    x, base, a, b = (
        torch.randn(shape, generator=seeded(i), dtype=torch.float64)
        for i, shape in enumerate([(2, 3, 4), (5, 4), (2, 4), (5, 2)])
    )
    keep = torch.rand((2, 3, 4), generator=seeded(9), dtype=torch.float64) >= RATE
    drop = lambda given: dropout(given, RATE, seeded(9))  # noqa: E731
    weight = Factored(base, FastWeight(a), FastWeight(b), 0.7, drop)
    wanted = x @ base.T + 0.7 * ((keep * x / (1 - RATE)) @ a.T) @ b.T
    torch.testing.assert_close(linear(x, weight), wanted, rtol=1e-12, atol=1e-14)
    rows = torch.tensor([0, 2, 4])
    torch.testing.assert_close(linear_rows(x, weight, None, rows), wanted[..., rows], rtol=1e-12, atol=1e-14)
    assert 0 < keep.sum() < keep.numel()


@pytest.mark.parametrize("name", TARGETS)
def test_at_b_0_nothing_is_dropped_bit_for_bit(name: str) -> None:
    over = residual(name)
    phi = fast(over.init(seeded(1)))
    assert torch.equal(loss_of(name, over, 5)(phi), loss_of(name, over, None)(phi))


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_units_of_every_call_and_others_of_another_generator(name: str) -> None:
    over, generator = residual(name), seeded(5)
    phi, before = fast(moved(over)), generator.get_state()
    over.dropping(generator)
    assert torch.equal(generator.get_state(), before)
    loss = loss_of(name, over, 5)
    assert torch.equal(loss(phi), loss(phi))
    assert torch.equal(loss(phi), loss_of(name, over, 5)(phi))
    for other in (loss_of(name, over, 6), loss_of(name, over, None)):
        assert float((loss(phi) - other(phi)).abs().max()) > 1e-3
    seeds = {
        drop.drop.keywords["seed"] for drop in over.dropping(generator)(phi).values() if isinstance(drop, Factored)
    }  # type: ignore[union-attr]
    assert len(seeds) == len(over.targets)  # of every target its own


def test_pieces_of_the_catalogue_see_the_same_units() -> None:
    over = residual("gru4rec")
    phi = {name: value.requires_grad_() for name, value in moved(over).items()}
    found = []
    for objective in (CrossEntropy(), ChunkedCrossEntropy(3)):
        loss = loss_of("gru4rec", over, 5, objective)(fast(phi)).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, list(phi.values()))))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_meta_gradient_is_the_slope(name: str, algorithm: str) -> None:
    """FOMAML without a step, where its gradient is the loss's own; MAML through two steps whose loss drops nothing."""
    over = residual(name)
    config: Any = parts.default("algorithm", algorithm)
    config.inner = replace(config.inner, lr=0.2, steps=2 if algorithm == "maml" else 0)
    on = lora.Config(rank=2, targets=TARGETS[name])
    made = build.algorithm(config, on, MODELS[name].model, Control(0, 0, 0, []), outer_steps=9, support_share=0.5)
    support = Tasks(MODELS[name].model, CrossEntropy(), over.compose).loss(LOG.episodes(4, 4).support)
    query, start, generator = loss_of(name, over, 5), moved(over), seeded(8)

    def mean(phi: Params) -> Tensor:
        return made.meta_losses(phi, support, query, T).mean()

    phi = {key: value.clone().requires_grad_() for key, value in start.items()}
    grads = torch.autograd.grad(mean(phi), list(phi.values()))
    along = {key: torch.randn(value.shape, generator=generator, dtype=value.dtype) for key, value in start.items()}
    with torch.no_grad():
        ahead, behind = (mean({k: v + sign * 1e-5 * along[k] for k, v in start.items()}) for sign in (1, -1))
    slope = float(ahead - behind) / 2e-5
    got = sum(float((grad * along[key]).sum()) for key, grad in zip(start, grads, strict=True))
    assert got == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_what_is_refused() -> None:
    for targets, what in ((["gru.weight_hh*"], r"gru\.weight_hh_l0"), (["embedding.weight"], r"embedding\.weight")):
        with pytest.raises(ConfigError, match=rf"residual\.dropout: 0\.4: {what} reads no activation"):
            residual("gru4rec", targets=targets)
        residual("gru4rec", rate=0.0, targets=targets)
    with pytest.raises(ConfigError, match=r"residual\.dropout: 1: out of range"):
        check_words("train", ["residual=lora", "residual.dropout=1"])
