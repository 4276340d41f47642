"""IA3: pretrained at zero; scores and each task's own inner gradient are those of explicitly scaled weights.

The reference writes no activation: it scales rows, biases and columns of the model's matrices, for one task at a time, and
leaves gradients to autograd (`reference.model_reference` over `scaled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import model_reference
from reference.small_episodes import Pair, small_log
from reference.small_models import furthest, leaves
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import inner, maml
from metarec.core import attention
from metarec.core.weights import Params, Weights, fast
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models.conv4 import Conv4
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import ia3
from metarec.residual.context import ContextResidual
from metarec.tasks import Tasks

LOG = small_log(13, n_users=4, unknown=0.2, max_len=6)
T, K, Q = 4, 4, 4
MODELS: dict[str, Any] = {
    "gru4rec": GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.5, n_layers=2),
    "sasrec": SASRec(n_items=11, dim=4, n_layers=2, n_heads=2, dropout=0.5, max_len=6, ffn_dim=5, tie=False),
    "tied": SASRec(n_items=11, dim=4, n_layers=1, n_heads=2, dropout=0.5, max_len=6),
    "narm": NARM(n_items=11, embedding_dim=3, hidden_dim=4),
    "nested": Nested(n_items=11, dim=4, medium_dim=3, slow_dim=5),
}
LOGITS: dict[str, Callable[[Params, list[int]], Tensor]] = {
    "gru4rec": model_reference.gru4rec,
    "sasrec": lambda params, prefix: model_reference.sasrec(params, prefix, 2),
    "tied": lambda params, prefix: model_reference.sasrec(params, prefix, 2),
    "narm": model_reference.narm,
    "nested": model_reference.nested,
}
NUMBERS = {
    "gru4rec": 2 * 12 + 4,
    "sasrec": 2 * (4 + 4 + 5) + 4,
    "tied": 3 * 4 + 4,
    "narm": 12 + 8,
    "nested": 12 + 3 + 5 + 4,
}  # by hand
ALGORITHMS = [name for name in parts.names("algorithm") if name != "generator"]  # which is told more than a loss


def weights(name: str, seed: int = 1) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found = MODELS[name].init(generator, torch.float64)
    return {n: v + 0.4 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in found.items()}


def residual(name: str, **options: Any) -> ContextResidual:
    made = build.residual(ia3.Config(**options), MODELS[name], weights(name))
    assert isinstance(made, ContextResidual)
    return made


def tasks_over(name: str, over: ContextResidual | None = None) -> Tasks:
    return Tasks(MODELS[name], cross_entropy, (lambda phi: phi) if over is None else over.compose)


def moved_start(over: ContextResidual, seed: int = 3) -> Params:
    """phi with scales away from zero; 1 + scale stays positive, so that it may stand on either side of a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    phi = over.init(generator)
    return phi | {
        n: 0.3 * torch.rand(v.shape, generator=generator, dtype=v.dtype) for n, v in phi.items() if n[:6] == "scale."
    }


# -- the reference --------------------------------------------------------------------------------------------------


def scaled(own: Params) -> Params:
    """One task's weights and scales -> its weights, rows, biases and columns scaled."""
    theta = {name: value for name, value in own.items() if not name.startswith("scale.")}

    def rows(weight: str, bias: str, factor: Tensor) -> None:
        theta[weight], theta[bias] = torch.diag(factor) @ theta[weight], factor * theta[bias]

    for name, value in own.items():
        if not name.startswith("scale."):
            continue
        factor, part = 1 + value, name.removeprefix("scale.")
        if part == "state" and "decoder.weight" in theta:
            theta["decoder.weight"] = theta["decoder.weight"] @ torch.diag(factor)
        elif part == "state":
            table = theta["fc.weight"] if "fc.weight" in theta else theta["embedding.weight"][1:]  # where it scores
            theta["fc.weight"] = table @ torch.diag(factor)
        elif part == "input":
            rows("fast.weight_ih", "fast.bias_ih", factor)
        elif part in ("medium", "slow"):
            theta[f"{part}.down.weight"] = theta[f"{part}.down.weight"] @ torch.diag(factor)
        elif part.startswith("input_"):
            layer = part.removeprefix("input_")
            rows(f"gru.weight_ih_{layer}", f"gru.bias_ih_{layer}", factor)
        else:
            layer, kind = part.split(".")
            prefix, one = f"layers.{layer[1:]}", torch.ones(4, dtype=torch.float64)
            if kind == "ffn":
                theta[f"{prefix}.ffn2.weight"] = theta[f"{prefix}.ffn2.weight"] @ torch.diag(factor)
            else:
                whole = torch.cat([one, factor, one] if kind == "keys" else [one, one, factor])
                rows(f"{prefix}.attention.in.weight", f"{prefix}.attention.in.bias", whole)
    return theta


def slow_scores(name: str, own: Params, pairs: list[Pair]) -> Tensor:
    theta = scaled(own)
    return torch.stack([LOGITS[name](theta, prefix) for prefix, _ in pairs])


def slow_loss(name: str, own: Params, pairs: list[Pair]) -> Tensor:
    known = [(row, target) for row, (_, target) in zip(slow_scores(name, own, pairs), pairs, strict=True) if target > 0]
    return torch.stack([F.cross_entropy(row, torch.tensor(target - 1)) for row, target in known]).mean()


def slow_gradient(name: str, own: Params, pairs: list[Pair]) -> Params:
    start = leaves(own)
    found = torch.autograd.grad(
        slow_loss(name, start, pairs), list(start.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(start, found, strict=True))


# -- scores and gradients -------------------------------------------------------------------------------------------


def check_against_scaled_weights(name: str, over: ContextResidual, tasks: Tasks) -> None:
    """Scores, and each task's own gradient of shared scales and of scales a step away, to 1e-12."""
    phi, batch, plain = moved_start(over), LOG.episodes(K, Q), LOG.plain_episodes(K, Q)
    scales, one = list(over.context), over.base | phi
    loss = tasks.loss(batch.support)
    for second_order in (False, True):
        _, grads = inner.gradients(loss, phi, {}, scales, second_order)
        offsets = {n: grad.scaled(-0.2) for n, grad in grads.items()}
        _, further = inner.gradients(loss, phi, offsets, scales, second_order)
        stepped = inner.adapt(loss, phi, T, inner.InnerLoop(0.2, 1, adapted=frozenset(scales)))
        found = tasks.logits(stepped, batch.query)
        for t, (support, query) in enumerate(plain):
            slow = slow_gradient(name, one, support)
            own = one | {n: one[n] - 0.2 * slow[n] for n in scales}
            again = slow_gradient(name, own, support)
            for got, wanted in ((grads, slow), (further, again)):
                assert furthest({n: got[n].dense()[t] for n in scales}, {n: wanted[n] for n in scales}) < 1e-12
            torch.testing.assert_close(found[t], slow_scores(name, own, query), rtol=0, atol=1e-12)
            assert max(float(value.abs().max()) for value in slow.values()) > 1e-2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train_weights", [True, False])
def test_scores_and_inner_gradients_are_those_of_explicitly_scaled_weights(name: str, train_weights: bool) -> None:
    over = residual(name, train_weights=train_weights)
    check_against_scaled_weights(name, over, tasks_over(name, over))


@pytest.mark.parametrize("name", MODELS)
def test_a_fault_in_any_scale_is_seen(name: str) -> None:
    """One scale after the other is left out, then taken as 0.999 of itself."""

    @dataclass(frozen=True)
    class Faulty(ContextResidual):
        wrong: str = ""
        keep: float = 0.0

        def compose(self, phi: Weights) -> Weights:
            theta = dict(super().compose(phi))
            weight = fast(theta.pop(self.wrong))
            return theta if not self.keep else theta | {self.wrong: weight.onto(0 * weight.shared, self.keep)}

    right = residual(name)
    for wrong in right.context:
        for keep, seen in ((0.0, KeyError), (0.999, AssertionError)):  # without a scale there is no gradient to ask for
            over = Faulty(right.base, right.context, True, wrong, keep)
            with pytest.raises(seen):
                check_against_scaled_weights(name, over, tasks_over(name, over))


@pytest.mark.parametrize("wrong", ["keys for values", "no one"])
def test_a_fault_in_the_engine_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(x: Tensor, scale: Tensor) -> Tensor:
        return x * (1 + scale.roll(4, 1))[:, None, :]

    def bare(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale[:, None, :]

    monkeypatch.setattr(attention, "rescaled", swapped if wrong == "keys for values" else bare)
    over = residual("sasrec")
    with pytest.raises(AssertionError):
        check_against_scaled_weights("sasrec", over, tasks_over("sasrec", over))


# -- what starts at zero, what is frozen, what a user costs -----------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_zero_scales_are_the_pretrained_model_bit_for_bit(name: str) -> None:
    over, batch = residual(name), LOG.episodes(K, Q)
    phi = over.init(torch.Generator())
    assert not any(phi[scale].any() for scale in over.context)
    plain = tasks_over(name).logits(weights(name), batch.query)
    assert torch.equal(tasks_over(name, over).logits(phi, batch.query), plain)
    loop = inner.InnerLoop(0.3, 0, adapted=frozenset(over.context))
    zero_shot = inner.adapt(tasks_over(name, over).loss(batch.support), phi, T, loop)
    assert torch.equal(tasks_over(name, over).logits(zero_shot, batch.query), plain)
    dropped = [
        t.logits(phi, batch.query, torch.Generator().manual_seed(1)) for t in (tasks_over(name), tasks_over(name, over))
    ]
    assert torch.equal(*dropped)


@pytest.mark.parametrize("name", MODELS)
def test_a_user_is_as_many_numbers_as_there_are_scaled_activations(name: str) -> None:
    """No task keeps more than those: the offsets after a step are vectors."""
    over = residual(name)
    loop = inner.InnerLoop(0.2, 2, adapted=frozenset(over.context))
    own = inner.adapt(tasks_over(name, over).loss(LOG.episodes(K, Q).support), over.init(torch.Generator()), T, loop)
    kept = [weight.offset.dense() for weight in own.values() if weight.offset is not None]
    assert sum(value.numel() for value in kept) == T * NUMBERS[name]


def test_frozen_weights_are_not_trained() -> None:
    over = residual("sasrec", train_weights=False)
    assert list(over.init(torch.Generator())) == list(over.context)
    assert set(residual("sasrec").init(torch.Generator())) == set(over.context) | set(over.base)


# -- from a configuration -------------------------------------------------------------------------------------------


def made(name: str, algorithm: str, on: ia3.Config) -> Any:
    config: Any = parts.default("algorithm", algorithm)
    config = replace(config, inner=replace(config.inner, lr=0.1, steps=2))
    return build.algorithm(config, on, MODELS[name], Control(0.0, 0, 0.0, []), outer_steps=10, support_share=0.5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_algorithm_moves_the_scales_alone_and_learns_all(name: str, algorithm: str) -> None:
    over, learner = residual(name), made(name, algorithm, ia3.Config())
    tasks, batch = tasks_over(name, over), LOG.episodes(K, Q)
    phi = leaves(learner.learned(moved_start(over)))
    own = learner.adapt(phi, tasks.loss(batch.support), T)
    moving = {n for n, weight in own.items() if weight.offset is not None}
    assert moving == ({"scale.state"} if algorithm == "anil" else set(over.context))
    losses = learner.meta_losses(phi, tasks.loss(batch.support), tasks.loss(batch.query), T)
    losses.mean().backward()
    learned = moving if algorithm == "reptile" else {"scale.state", MODELS[name].head[0]}
    if algorithm == "cavia":  # whose start is zero, and not learned
        learned = {MODELS[name].head[0]}
    assert all(bool(phi[n].grad.any()) for n in learned)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_the_second_order_gradient_equals_central_differences(name: str) -> None:
    over, learner = residual(name), made(name, "maml", ia3.Config())
    tasks, batch = tasks_over(name, over), LOG.episodes(K, Q)
    phi, generator = moved_start(over), torch.Generator().manual_seed(5)
    along = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in phi.items()}

    def loss(at: Params) -> Tensor:
        found: Tensor = learner.meta_losses(at, tasks.loss(batch.support), tasks.loss(batch.query), T).mean()
        return found

    start = leaves(phi)
    found = torch.autograd.grad(loss(start), list(start.values()), allow_unused=True, materialize_grads=True)
    slope = sum(float((grad * along[n]).sum()) for n, grad in zip(start, found, strict=True))
    up, down = (float(loss(leaves({n: v + e * along[n] for n, v in phi.items()})).detach()) for e in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_targets_choose_scales_and_a_pattern_without_any_is_refused() -> None:
    assert list(residual("sasrec", targets=["*.values", "*.state"]).context) == [
        "scale.l0.values", "scale.l1.values", "scale.state",
    ]  # fmt: skip
    over = residual("sasrec", targets=["scale.l0.keys", "*.state"])
    check_against_scaled_weights("sasrec", over, tasks_over("sasrec", over))
    with pytest.raises(
        ConfigError, match=r"residual\.targets: gates: matches no scale -- the names are scale\.l0\.keys"
    ):
        residual("sasrec", targets=["gates"])
    with pytest.raises(ConfigError, match="nothing of it adapts"):
        made("sasrec", "anil", ia3.Config(targets=["*.values"]))


def test_a_model_without_scales_is_refused() -> None:
    class Bare:
        def shapes(self) -> dict[str, tuple[int, ...]]:
            return {"fc.weight": (2, 2)}

    with pytest.raises(ConfigError, match="residual: ia3: the model has nothing that it could adapt"):
        build.adapted(maml.Config(), ia3.Config(train_weights=False), Bare())  # type: ignore[arg-type]


def test_the_scales_of_images_change_nothing_at_zero_and_adapt() -> None:
    model = Conv4(3, filters=3, image_size=16)
    base = model.init(torch.Generator().manual_seed(1), torch.float64)
    over = build.residual(ia3.Config(), model, base)
    images = torch.randn(2, 5, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    phi = leaves(over.init(torch.Generator()))
    assert torch.equal(model.score(phi, model.encode(phi, images)), model.score(base, model.encode(base, images)))
    loss, scales = model.score(phi, model.encode(phi, images)).square().sum(), list(model.scale_shapes())
    assert all(bool(grad.any()) for grad in torch.autograd.grad(loss, [phi[name] for name in scales]))
