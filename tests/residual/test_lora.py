"""LoRA: pretrained at B = 0; every algorithm, one task at a time, by weights composed by hand; merging; what a user costs.

The cells are those of the exactness matrix (`reference.matrix_cells`), with every matrix of a model as a target: embeddings
that are looked up, tied or not, input and recurrent matrices, attention, output layers. The reference composes base + s B A
and leaves gradients to autograd.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.matrix_cells import ALGORITHMS, ASKED, Cell, cell, check_gradients, check_losses, found
from reference.matrix_models import MODELS
from reference.meta_reference import slopes
from reference.slopes import jointly, one_by_one, slope_error
from reference.small_episodes import small_log
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import inner
from metarec.config.overrides import check_words
from metarec.core import ops
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Factored, FastWeight, Params, Weights
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import lora
from metarec.residual.lora import LowRankResidual, merged
from metarec.tasks import Tasks

SEQUENCES = [name for name in MODELS if name != "conv4"]
LOG = small_log(13, n_users=4, unknown=0.2, max_len=5)
BY_DEFAULT = {
    "gru4rec": ["gru.weight_ih_l0"],
    "sasrec": [f"layers.0.{part}.weight" for part in ("attention.in", "attention.out", "ffn1", "ffn2")],
    "narm": ["gru.weight_ih_l0", "attention.query.weight", "attention.key.weight"],
    "nested": [
        "fast.weight_ih",
        *(f"{level}.{part}.weight" for level in ("medium", "slow") for part in ("up", "down")),
    ],
    "conv4": [],
}
# of rank 2, by hand: 2 (out + in) of each of them
NUMBERS = {"gru4rec": 2 * (15 + 4), "sasrec": 2 * (12 + 4) + 3 * 2 * (4 + 4), "narm": 2 * (12 + 3) + 2 * 2 * (4 + 4),
           "nested": 2 * (12 + 4) + 2 * 2 * (3 + 4) + 2 * 2 * (5 + 4)}  # fmt: skip
CELLS = [(m, a, s) for m in MODELS for a in ALGORITHMS for s in ("clip", "prox", "cut") if (a, s) in ASKED]


def weights(name: str, seed: int = 1) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found = MODELS[name].model.init(generator, torch.float64)
    return {n: v + 0.4 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in found.items()}


def residual(name: str, **options: Any) -> LowRankResidual:
    made = build.residual(lora.Config(**{"rank": 2, "alpha": 1.4, **options}), MODELS[name].model, weights(name))
    assert isinstance(made, LowRankResidual)
    return made


def tasks_over(name: str, over: LowRankResidual | None = None, rate: float = 0.0) -> Tasks:
    model = replace(MODELS[name].model, dropout=rate)
    return Tasks(model, cross_entropy, (lambda phi: phi) if over is None else over.compose)


def moved_start(over: LowRankResidual, seed: int = 3) -> Params:
    """phi with B away from zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: v + 0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in over.init(generator).items()
    }


def adapted(name: str, over: LowRankResidual, phi: Params, steps: int = 2, lr: float = 0.2) -> dict[str, FastWeight]:
    support = tasks_over(name, over).loss(LOG.episodes(4, 4).support)
    return inner.adapt(support, phi, 4, inner.InnerLoop(lr, steps))


# -- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "algorithm", "setting"), CELLS)
def test_meta_losses_and_gradients_are_those_of_one_task_at_a_time(model: str, algorithm: str, setting: str) -> None:
    it = found(model, algorithm, "lora", setting, 1)
    check_losses(it)
    check_gradients(it)


@pytest.mark.parametrize("algorithm", ["maml", "maml_pp", "anil", "meta_sgd"])
@pytest.mark.parametrize("model", SEQUENCES)
def test_the_second_order_gradient_is_the_slope_of_the_meta_loss(model: str, algorithm: str) -> None:
    it, result = cell(model, algorithm, "lora", "clip"), found(model, algorithm, "lora", "clip", 1)
    for along in (*jointly(it, 2), *one_by_one(it)):
        assert slope_error(it, result.grads, along) < 1e-6, f"along {', '.join(along)}"


def test_the_first_order_gradient_is_not() -> None:
    it, result = cell("gru4rec", "fomaml", "lora", "clip"), found("gru4rec", "fomaml", "lora", "clip", 1)
    assert any(slope_error(it, result.grads, along) > 1e-3 for along in jointly(it, 3))


def check_inner_gradients(it: Cell) -> None:
    """Each task's own gradient by A and B, at the start and a step away, to 1e-10."""
    loss, phi = it.tasks.loss(it.batch.support, None, it.weights), it.phi
    for second_order in (False, True):
        _, grads = inner.gradients(loss, phi, {}, list(phi), second_order)
        offsets = {name: grad.scaled(-0.2) for name, grad in grads.items()}
        _, further = inner.gradients(loss, phi, offsets, list(phi), second_order)
        felt: set[str] = set()
        for t, (support, _) in enumerate(it.each):
            own = {name: value.detach().requires_grad_() for name, value in phi.items()}
            slow = dict(zip(own, slopes(support(own), list(own.values())), strict=True))
            away = {name: (value - 0.2 * slow[name]).detach().requires_grad_() for name, value in own.items()}
            again = dict(zip(own, slopes(support(away), list(away.values())), strict=True))
            for got, wanted in ((grads, slow), (further, again)):
                for name, value in wanted.items():
                    torch.testing.assert_close(got[name].dense()[t], value, rtol=1e-10, atol=1e-11)
            felt |= {name for name, value in slow.items() if value.any()}
        assert felt == set(phi)


@pytest.mark.parametrize("model", SEQUENCES)
def test_inner_gradients_are_those_of_weights_composed_for_each_task(model: str) -> None:
    check_inner_gradients(cell(model, "fomaml", "lora", "clip"))


def outer(it: Cell, n_steps: int, slow: bool = False) -> Params:
    """Adam on the meta-gradient, the engine's or the reference's."""
    phi = {name: value.detach().clone() for name, value in it.phi.items()}
    optimizer = torch.optim.Adam(phi.values(), lr=1e-2)
    for _ in range(n_steps):
        at = replace(it, phi=phi)
        grads = (at.reference() if slow else at.engine())[1]
        for name, value in phi.items():
            value.grad = grads[name].clone()
        optimizer.step()
    return phi


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
@pytest.mark.parametrize("model", SEQUENCES)
def test_adam_steps_are_those_of_the_reference(model: str, algorithm: str) -> None:
    it = cell(model, algorithm, "lora", "clip")
    fast, slow = outer(it, 5), outer(it, 5, slow=True)
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-8, atol=1e-9)
        assert float((value - it.phi[name]).abs().max()) > 1e-2


# -- planted faults -------------------------------------------------------------------------------------------------


def test_another_scale_is_seen() -> None:
    it = cell("gru4rec", "fomaml", "lora", "clip", scale=0.999 * 1.4 / 2)
    with pytest.raises(AssertionError):
        check_inner_gradients(it)


@pytest.mark.parametrize("fault", ["no way back to A", "no scale", "only the first task's factors"])
def test_a_fault_in_the_product_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(weight: FastWeight) -> FastWeight:
        return FastWeight(weight.dense()[0] if weight.offset is not None else weight.shared, None, weight.tap)

    def faulty(x: Tensor, weight: Factored) -> Tensor:
        if fault == "no way back to A":
            return weight.scale * ops.linear(ops.linear(x, weight.a).detach(), weight.b)
        if fault == "no scale":
            return ops.linear(ops.linear(x, weight.a), weight.b)
        return weight.scale * ops.linear(ops.linear(x, first(weight.a)), first(weight.b))

    monkeypatch.setattr(ops, "through_factors", faulty)
    with pytest.raises((AssertionError, KeyError)):
        check_inner_gradients(cell("gru4rec", "fomaml", "lora", "clip"))


def test_a_fault_in_the_recurrent_matrix_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Factored.whole
    monkeypatch.setattr(Factored, "whole", lambda self, n: true(replace(self, a=replace(self.a, tap=None)), n))
    with pytest.raises((AssertionError, KeyError)):
        check_inner_gradients(cell("gru4rec", "fomaml", "lora", "clip"))


# -- the start, the base, merging -----------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, ["*"]], ids=["default", "all"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_at_the_start_it_is_the_pretrained_model_bit_for_bit(name: str, targets: list[str] | None) -> None:
    over, query = residual(name, targets=targets), LOG.episodes(4, 4).query
    phi = over.init(torch.Generator().manual_seed(1))
    assert all(bool(value.any()) == key.endswith(lora.A) for key, value in phi.items())
    plain = tasks_over(name).logits(weights(name), query)
    assert torch.equal(tasks_over(name, over).logits(phi, query), plain)
    assert torch.equal(tasks_over(name, over).logits(adapted(name, over, phi, steps=0), query), plain)
    for states in (phi, adapted(name, over, phi, steps=0)):
        drop = torch.Generator().manual_seed(2)
        got = tasks_over(name, over, 0.5).logits(states, query, drop)
        assert torch.equal(got, tasks_over(name, None, 0.5).logits(weights(name), query, drop.manual_seed(2)))


def check_merging(name: str, over: LowRankResidual) -> None:
    """The plain model on merged weights scores as the residual does: before any step, and for every task behind two."""
    phi, query = moved_start(over), LOG.episodes(4, 4).query
    tasks, plain, start = tasks_over(name, over), tasks_over(name), merged(over.compose(phi))
    torch.testing.assert_close(plain.logits(start, query), tasks.logits(phi, query), rtol=0, atol=1e-10)
    own = adapted(name, over, phi)
    scores = tasks.logits(own, query)
    for t in range(4):
        one = merged(over.compose(own), t)
        assert list(one) == list(over.base)
        assert all(one[n].shape == value.shape for n, value in over.base.items())
        torch.testing.assert_close(plain.logits(one, query)[t], scores[t], rtol=0, atol=1e-10)
        assert float((scores[t] - plain.logits(start, query)[t]).abs().max()) > 1e-3


@pytest.mark.parametrize("targets", [None, ["*"]], ids=["default", "all"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_merged_weights_score_as_the_residual_does(name: str, targets: list[str] | None) -> None:
    check_merging(name, residual(name, targets=targets))


def test_a_fault_in_merging_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Factored, "of_task", lambda self, task: self.base + self.b.shared @ self.a.shared)
    with pytest.raises(AssertionError):
        check_merging("narm", residual("narm"))


def test_the_base_is_not_written_to_and_not_trained() -> None:
    over = residual("sasrec")
    before = {name: value.clone() for name, value in over.base.items()}
    phi = {name: value.requires_grad_() for name, value in moved_start(over).items()}
    batch, optimizer = LOG.episodes(4, 4), torch.optim.Adam(phi.values(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        tasks_over("sasrec", over).loss(batch.query)(adapted("sasrec", over, phi)).mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in over.base.items())
    assert not set(phi) & set(over.base)


# -- what a user costs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_user_is_two_factors_of_each_target_and_no_matrix_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("a matrix was written for every task")

    over = residual(name)
    for written in ("own", "whole", "dense"):
        monkeypatch.setattr(Factored, written, refuse)
    own = adapted(name, over, moved_start(over))
    tasks_over(name, over).logits(own, LOG.episodes(4, 4).query)
    kept = [weight.offset.dense() for weight in own.values() if weight.offset is not None]
    assert sum(value.numel() for value in kept) == 4 * NUMBERS[name]
    recurrent = residual("gru4rec", targets=["*_hh_*"])
    with pytest.raises(AssertionError, match="a matrix was written"):  # as `metarec/residual/lora.py` says it is there
        adapted("gru4rec", recurrent, moved_start(recurrent))


@pytest.mark.parametrize("name", SEQUENCES)
def test_products_in_bfloat16(name: str) -> None:
    """With every target: what is written as a weight stays in float32, and scores are near."""
    over = residual(name, targets=["*"])
    over = replace(over, base={n: value.float() for n, value in over.base.items()})
    phi = {n: value.float() for n, value in moved_start(over).items()}
    batch: EpisodeBatch = LOG.episodes(4, 4)
    exact, mixed = tasks_over(name, over), replace(tasks_over(name, over), mixed=True)
    own = inner.adapt(mixed.loss(batch.support), phi, 4, inner.InnerLoop(0.05, 2), second_order=True)
    assert all(w.offset is None or w.offset.dense().dtype == torch.float32 for w in own.values())
    got, wanted = mixed.logits(own, batch.query), exact.logits(own, batch.query)
    assert float((got - wanted).detach().abs().max()) < 0.05 * float(wanted.detach().abs().max())


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_targets_by_default(name: str) -> None:
    assert list(lora.targets(lora.Config(rank=2), MODELS[name].model)) == BY_DEFAULT[name]


def test_scale_and_start() -> None:
    of_r, of_root = (residual("narm", alpha=3.0, scaling=scaling) for scaling in ("alpha/r", "alpha/sqrt(r)"))
    assert of_r.scale == pytest.approx(3 / 2)
    assert of_root.scale == pytest.approx(3 / 2**0.5)
    wide = LowRankResidual({"w": torch.zeros(300, 400)}, {"w": (300, 400)}, 100, 1.0)
    drawn = wide.init(torch.Generator().manual_seed(1))
    assert drawn["w.lora_a"].std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert drawn["w.lora_b"].shape == (300, 100)


def learner(model: str, algorithm: str, on: lora.Config) -> Any:
    config: Any = parts.default("algorithm", algorithm)
    control = Control(0.1, 2, 0.0, [])
    return build.algorithm(config, on, MODELS[model].model, control, outer_steps=10, support_share=0.5)


def test_what_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"residual\.targets: gates: matches no matrix -- the names are embedding\.weight"
    ):
        residual("gru4rec", targets=["gates"])
    with pytest.raises(ConfigError, match=r"residual\.targets: fc\.bias: matches no matrix"):
        residual("gru4rec", targets=["fc.bias"])
    with pytest.raises(
        ConfigError, match=r"residual\.rank: 5: is above the smaller side of gru\.weight_ih_l0 \[15, 4\]"
    ):
        residual("gru4rec", rank=5)
    with pytest.raises(ConfigError, match=r"residual: lora: the model has nothing that it could adapt"):
        learner("conv4", "maml", lora.Config(rank=2))
    with pytest.raises(ConfigError, match=r"algorithm\.head: .*nothing of it adapts.* -- choose the head"):
        learner("gru4rec", "anil", lora.Config(rank=2))
    of_head = learner("gru4rec", "anil", lora.Config(rank=2, targets=["gru.*", "fc.*"]))
    assert of_head.inner.adapted == {"fc.weight.lora_a", "fc.weight.lora_b"}
    with pytest.raises(ConfigError, match="algorithm=cavia adapts contexts, and residual=lora has none"):
        check_words("train", ["algorithm=cavia", "residual=lora"])
    with pytest.raises(ConfigError, match="a residual would sit on frozen random weights"):
        check_words("train", ["algorithm=maml", "residual=lora", "warm_start=none"])
    for words in (["residual.alpha=0"], ["residual.rank=0"], ["residual.scaling=alpha"]):
        with pytest.raises(ConfigError, match=words[0].split("=")[0]):
            check_words("train", ["algorithm=maml", "residual=lora", *words])
    (job,) = check_words("train", ["residual=lora", "residual.scaling='alpha/sqrt(r)'"]).jobs
    assert job.config.residual.scaling == "alpha/sqrt(r)"  # type: ignore[union-attr]


def test_statistics_pass_through() -> None:
    over = residual("gru4rec")
    composed: Weights = over.compose(over.init(torch.Generator()) | {"norm1.mean": torch.ones(3)})
    assert torch.equal(composed["norm1.mean"], torch.ones(3))  # type: ignore[arg-type]
