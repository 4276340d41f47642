"""Rows: which items a support touches, one task at a time by dense gradients with other rows zeroed, the start, the base.

The slow reference takes dense full gradients of whole tables by autograd, sets those of untouched rows to zero, and is
differentiated through; models are torch's own layers, one prefix at a time (`reference.model_reference`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import model_reference
from reference.meta_reference import step_weights
from reference.small_episodes import small_log
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import Algorithm, inner
from metarec.config.overrides import check_words
from metarec.core import offsets, weights
from metarec.core.batch import EpisodeBatch, PairBatch, Sequences
from metarec.core.offsets import Rows
from metarec.core.weights import FastWeight, Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models.conv4 import Conv4
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import rows
from metarec.residual.rows import RowsResidual, touched
from metarec.tasks import Tasks

T, K, Q, STEPS, V, ALPHA = 3, 3, 4, 3, 11, 0.7
LOG = small_log(5, n_users=T, n_pairs=K + Q, n_items=V, max_len=5, unknown=0.2)
off = {"dropout": 0.0, "embedding_dropout": 0.0}
MODELS: dict[str, tuple[Any, Callable[[Params, Any], Tensor]]] = {
    "gru4rec": (GRU4Rec(V, 4, 5, dropout=0.0), model_reference.gru4rec),
    "gru4rec tied": (GRU4Rec(V, 4, 4, dropout=0.0, tie=True), model_reference.gru4rec),
    "sasrec": (SASRec(V, 4, 1, 2, 0.0, 5, tie=False), lambda p, prefix: model_reference.sasrec(p, prefix, 2)),
    "sasrec tied": (SASRec(V, 4, 1, 2, 0.0, 5), lambda p, prefix: model_reference.sasrec(p, prefix, 2)),
    "narm": (NARM(V, 3, 4, **off, tie=False), model_reference.narm),
    "narm tied": (NARM(V, 3, 4, **off), model_reference.narm),
    "nested": (Nested(V, 4, "gru", 3, 5, 0.0), model_reference.nested),
    "nested tied": (Nested(V, 4, "lstm", 3, 5, 0.0, tie=True), model_reference.nested),
}
# by hand: the row of an item is its number less this
TABLES = {
    "gru4rec": {"embedding.weight": 0, "fc.weight": 1, "fc.bias": 1}, "gru4rec tied": {"embedding.weight": 0, "fc.bias": 1},
    "sasrec": {"embedding.weight": 0, "fc.weight": 1, "fc.bias": 1}, "sasrec tied": {"embedding.weight": 0},
    "narm": {"embedding.weight": 0, "fc.weight": 1, "fc.bias": 1}, "narm tied": {"embedding.weight": 0},
    "nested": {"embedding.weight": 0, "fc.weight": 1, "fc.bias": 1}, "nested tied": {"embedding.weight": 0, "fc.bias": 1},
}  # fmt: skip


def had(pairs: list[tuple[list[int], int]]) -> set[int]:
    """Known items of prefixes and labels, in plain Python."""
    return {item for prefix, target in pairs for item in (*prefix, target) if item > 0}


PLAIN = LOG.plain_episodes(K, Q)


# -- which items ----------------------------------------------------------------------------------------------------


def check_items() -> None:
    items, real = touched(LOG.episodes(K, Q).support)
    for t, (support, _) in enumerate(PLAIN):
        assert items[t][real[t]].tolist() == sorted(had(support))
        assert set(items[t][~real[t]].tolist()) <= {max(had(support))}
    assert items.shape[1] == max(len(had(support)) for support, _ in PLAIN)
    assert not real.all()  # some have fewer


def test_items_are_those_of_prefixes_and_labels() -> None:
    check_items()


def test_tasks_without_items() -> None:
    """Nothing known at all, beside a task with two items; and no pair at all."""
    none = torch.zeros(2, 1, dtype=torch.int64)
    seq = Sequences(torch.tensor([[0, 0], [7, 2]]), none, torch.tensor([[0], [2]]))
    items, real = touched(PairBatch(seq, torch.tensor([[0], [2]]), torch.tensor([[-1], [7]])))
    assert items.tolist() == [[1, 1], [2, 7]]
    assert real.tolist() == [[False, False], [True, True]]
    empty = PairBatch(Sequences(none, none, none), none[:, :0], none[:, :0])
    assert [part.tolist() for part in touched(empty)] == [[[1], [1]], [[False], [False]]]


# -- one task at a time ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An engine and what the slow reference needs of it."""

    name: str
    over: RowsResidual
    algorithm: Algorithm
    phi: Params
    order: str
    step: int = 0
    counts: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    clip: float = 0.0

    @property
    def tasks(self) -> Tasks:
        return Tasks(MODELS[self.name][0], cross_entropy, self.over.compose, compose_on=self.over.compose_on)

    @property
    def trained(self) -> list[str]:
        return [name for name in self.phi if name not in self.over.fixed]

    def losses(self, phi: Params, batch: EpisodeBatch | None = None) -> Tensor:
        batch = batch or LOG.episodes(K, Q)
        support, query = self.tasks.loss(batch.support), self.tasks.loss(batch.query)
        return self.algorithm.meta_losses(phi, support, query, batch.n_tasks, self.step)

    def engine(self) -> tuple[Tensor, Params]:
        phi = {name: value.clone().requires_grad_(name in self.trained) for name, value in self.phi.items()}
        losses = self.losses(phi)
        found = torch.autograd.grad(
            losses.mean(), [phi[n] for n in self.trained], allow_unused=True, materialize_grads=True
        )
        return losses.detach(), dict(zip(self.trained, found, strict=True))

    def adapted(self) -> dict[str, FastWeight]:
        return self.algorithm.adapt(self.phi, self.tasks.loss(LOG.episodes(K, Q).support), T)

    # the slow one
    def loss(self, own: Params, part: Any) -> Tensor:
        theta = self.over.base | {n: self.over.base[n] + self.over.alpha * own[n] for n in self.over.tables}
        known = [(prefix, target) for prefix, target in part if target > 0]
        each = [F.cross_entropy(MODELS[self.name][1](theta, p), torch.tensor(t - 1)) for p, t in known]
        return torch.stack(each).mean() if each else torch.zeros(())

    def rate(self, phi: Params, name: str, step: int) -> Any:
        loop = self.algorithm.inner
        if loop.rates == "fixed":
            return loop.lr
        return phi[f"rates/{name}"].exp()[step] if loop.rates.endswith("_step") else phi[f"rates/{name}"].exp()

    def slow_path(self, phi: Params, support: Any, second: bool) -> list[Params]:
        names, found = list(self.over.tables), [{name: phi[name] for name in self.over.tables}]
        masks = {}
        for name, less in TABLES[self.name].items():
            masks[name] = torch.zeros(phi[name].shape if name in phi else 1, dtype=torch.float64)
            for item in had(support):
                if name in phi:
                    masks[name][item - less] = 1.0
        for step in range(STEPS):
            own = found[-1]
            here = own
            if not second or not all(value.requires_grad for value in own.values()):
                here = {name: value.detach().requires_grad_() for name, value in own.items()}
            grads = torch.autograd.grad(self.loss(here, support), list(here.values()), create_graph=second)
            kept = {name: grad * masks[name] for name, grad in zip(names, grads, strict=True)}
            norm = torch.cat([grad.flatten() for grad in kept.values()]).norm()
            factor = min(1.0, self.clip / norm) if self.clip else 1.0  # type: ignore[call-overload]
            found.append({name: own[name] - self.rate(phi, name, step) * factor * kept[name] for name in names})
        return found

    def slow(self) -> tuple[Tensor, Params]:
        losses, total = [], {name: torch.zeros_like(self.phi[name]) for name in self.trained}
        for support, query in PLAIN:
            phi = {name: value.clone().requires_grad_(name in self.trained) for name, value in self.phi.items()}
            path = self.slow_path(phi, support, self.order == "second")
            loss = torch.stack([w * self.loss(own, query) for w, own in zip(self.counts, path, strict=True) if w]).sum()
            leaves = [phi[name] for name in self.trained]
            found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            for name, grad in zip(self.trained, found, strict=True):
                total[name] += grad / T
            losses.append(loss.detach())
        return torch.stack(losses), total


def base_of(name: str, seed: int = 1) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found: Params = MODELS[name][0].init(generator, torch.float64)
    return {n: v + 0.4 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in found.items()}


ALGORITHMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fomaml": ({}, {"order": "first"}),
    "maml": ({}, {"order": "second"}),
    "meta_sgd": ({}, {"order": "second"}),
    "maml_pp": ({"switch": 0.5, "msl_until": 0.75}, {
        "order": "second", "step": 12, "counts": tuple(step_weights("annealed", STEPS, 12, 15))
    }),
}  # fmt: skip
CLIP = 0.4


def case(
    name: str, algorithm: str, learn_start: bool = True, targets: list[str] | None = None, **of_inner: Any
) -> Case:
    options, slow = ALGORITHMS[algorithm]
    config: Any = replace(parts.default("algorithm", algorithm), **options)
    config.inner = replace(config.inner, lr=0.3, steps=STEPS, **of_inner)
    on, model = rows.Config(alpha=ALPHA, learn_start=learn_start, targets=targets), MODELS[name][0]
    made = build.algorithm(config, on, model, Control(0.0, 0, 0.0, []), outer_steps=20, support_share=0.5)
    over = build.residual(on, model, base_of(name))
    assert isinstance(over, RowsResidual)
    generator, phi = torch.Generator().manual_seed(3), made.learned(over.init(torch.Generator()))
    for key, value in phi.items():
        if key not in over.fixed:
            phi[key] = value + 0.15 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return Case(name, over, made, phi, clip=of_inner.get("clip", 0.0), **slow)


def check(it: Case) -> None:
    (losses, grads), (slow_losses, slow) = it.engine(), it.slow()
    torch.testing.assert_close(losses, slow_losses, rtol=1e-10, atol=1e-12)
    assert list(grads) == list(slow)
    for name, wanted in slow.items():
        torch.testing.assert_close(grads[name], wanted, rtol=1e-9, atol=1e-12)
    assert max(float(value.abs().max()) for value in slow.values()) > 1e-3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_dense_gradients_with_the_other_rows_zeroed(name: str, algorithm: str) -> None:
    check(case(name, algorithm))


@pytest.mark.parametrize(
    "given",
    [
        {"learn_start": False, "algorithm": "meta_sgd"}, {"learn_start": False, "algorithm": "fomaml", "rates": "tensor"},
        {"learn_start": False, "algorithm": "maml", "rates": "tensor_step"}, {"algorithm": "maml", "clip": CLIP},
        {"algorithm": "meta_sgd", "recompute": True, "clip": CLIP}, {"algorithm": "maml", "recompute": True},
        {"algorithm": "maml", "targets": ["fc.*"]}, {"algorithm": "meta_sgd", "targets": ["embedding.weight"]},
    ],
    ids=str,
)  # fmt: skip
def test_options(given: dict[str, Any]) -> None:
    check(case("gru4rec", **given))


@pytest.mark.parametrize("algorithm", ["maml", "meta_sgd", "maml_pp"])
@pytest.mark.parametrize("name", MODELS)
def test_the_second_order_gradient_is_the_slope_of_the_meta_loss(name: str, algorithm: str) -> None:
    it = case(name, algorithm)
    _, grads = it.engine()
    generator, eps = torch.Generator().manual_seed(4), 1e-5
    for _ in range(2):
        along = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in grads.items()}
        with torch.no_grad():
            ahead, behind = (
                it.losses(it.phi | {n: it.phi[n] + sign * eps * a for n, a in along.items()}).mean() for sign in (1, -1)
            )
        slope = float(ahead - behind) / (2 * eps)
        assert sum(float((grads[n] * a).sum()) for n, a in along.items()) == pytest.approx(slope, rel=2e-6, abs=1e-8)


# -- rows, start and base -------------------------------------------------------------------------------------------


def check_rows(it: Case) -> None:
    """Bit for bit the base's where the support has no item, for every task; elsewhere moved, kept as rows."""
    own = it.adapted()
    composed = it.over.compose(own)
    for name, less in TABLES[it.name].items():
        weight, base = composed[name], it.over.base[name]
        if it.over.learn_start:
            base = torch.add(base, it.phi[name], alpha=ALPHA)
        assert isinstance(weight, FastWeight)
        assert isinstance(weight.offset, Rows)
        assert weight.offset.values.shape[1] == max(len(had(support)) for support, _ in PLAIN)
        assert weight.shared.shape == base.shape
        for t, (support, _) in enumerate(PLAIN):
            there = [item - less for item in sorted(had(support))]
            others = [row for row in range(len(base)) if row not in there]
            assert torch.equal(weight.dense()[t][others], base[others])
            assert others
            if name != "embedding.weight":  # all of them have a gradient there
                assert all(bool((weight.dense()[t][row] != base[row]).any()) for row in there)


@pytest.mark.parametrize("learn_start", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_other_rows_are_the_bases_bit_for_bit(name: str, learn_start: bool) -> None:
    check_rows(case(name, "meta_sgd", learn_start))


@pytest.mark.parametrize("name", MODELS)
def test_at_the_start_it_is_the_pretrained_model_bit_for_bit(name: str) -> None:
    it, query = case(name, "meta_sgd", False), LOG.episodes(K, Q).query
    plain, phi = Tasks(MODELS[name][0], cross_entropy, lambda w: w), it.over.init(torch.Generator())
    wanted = plain.logits(it.over.base, query)
    assert torch.equal(it.tasks.logits(phi, query), wanted)
    assert torch.equal(it.tasks.loss(query)(phi), plain.loss(query)(it.over.base))
    none = inner.adapt(it.tasks.loss(query), phi, T, inner.InnerLoop(0.1, 0))
    assert torch.equal(it.tasks.logits(none, query), wanted)


@pytest.mark.parametrize("name", ["gru4rec", "sasrec tied"])
def test_a_task_is_what_it_is_alone(name: str) -> None:
    """Filling of a batch has no part in it, and a support without a known item adapts nothing."""
    it, loop = case(name, "maml"), inner.InnerLoop(0.3, STEPS)
    together = it.tasks.logits(it.adapted(), LOG.episodes(K, Q).query)
    for t in range(T):
        alone = LOG.episodes(K, Q, [t])
        own = inner.adapt(it.tasks.loss(alone.support), it.phi, 1, loop)
        torch.testing.assert_close(it.tasks.logits(own, alone.query)[0], together[t], rtol=0, atol=1e-12)
    batch = LOG.episodes(K, Q)
    support = replace(batch.support, target=torch.full_like(batch.support.target, -1))
    assert isinstance(support, PairBatch)
    unknown = inner.adapt(it.tasks.loss(support), it.phi, T, loop)
    got, wanted = (it.tasks.logits(phi, batch.query) for phi in (unknown, it.phi))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_products_in_bfloat16() -> None:
    it = case("sasrec tied", "maml")
    over = replace(it.over, base={n: v.float() for n, v in it.over.base.items()})
    exact = replace(it, over=over).tasks
    mixed, batch, phi = replace(exact, mixed=True), LOG.episodes(K, Q), {n: v.float() for n, v in it.phi.items()}
    own = inner.adapt(mixed.loss(batch.support), phi, T, inner.InnerLoop(0.1, 2), second_order=True)
    assert all(w.offset is not None and w.offset.dense().dtype == torch.float32 for w in own.values())
    got, wanted = mixed.logits(own, batch.query), exact.logits(own, batch.query)
    assert float((got - wanted).detach().abs().max()) < 0.05 * float(wanted.detach().abs().max())


# -- planted faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["labels left out", "other rows too", "row of the item before", "filling moves"])
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true, within = rows.touched, offsets.within

    def without_labels(pairs: PairBatch) -> tuple[Tensor, Tensor]:
        return true(replace(pairs, target=torch.zeros_like(pairs.target)))

    def faulty(offset: Any, ids: Tensor, real: Tensor, shape: torch.Size) -> Rows:
        if fault == "other rows too":
            everything = torch.arange(shape[0]).expand(len(ids), -1).contiguous()
            return within(offset, everything, torch.ones_like(everything, dtype=torch.bool), shape)
        if fault == "row of the item before":
            return within(offset, (ids - 1).clamp(min=0), real, shape)
        return within(offset, ids, torch.ones_like(real), shape)

    if fault == "labels left out":
        monkeypatch.setattr(rows, "touched", without_labels)
    else:
        monkeypatch.setattr(weights, "within", faulty)
    it = case("gru4rec", "maml")
    with pytest.raises(AssertionError):
        check(it)


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_tables(name: str) -> None:
    model = MODELS[name][0]
    assert rows.tables(rows.Config(), model) == TABLES[name]
    for table, less in TABLES[name].items():
        assert model.shapes()[table][0] == V + 1 - less


def test_what_is_learned_and_what_is_refused() -> None:
    model = MODELS["gru4rec"][0]
    frozen, learned = (
        build.residual(rows.Config(learn_start=on, targets=["fc.*"]), model, base_of("gru4rec")) for on in (False, True)
    )
    assert frozen.fixed == ("fc.weight", "fc.bias")  # type: ignore[attr-defined]
    assert learned.fixed == ()  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=r"residual\.targets: gru\.\*: matches no item table -- the names are embedding"
    ):
        rows.tables(rows.Config(targets=["gru.*"]), model)
    with pytest.raises(ConfigError, match="residual: rows: the model has nothing that it could adapt"):
        build.adapted(parts.default("algorithm", "meta_sgd"), rows.Config(), Conv4(3))
    for words, said in (
        (["algorithm=cavia"], "algorithm=cavia adapts contexts, and residual=rows has none"),
        (["warm_start=none"], "a residual would sit on frozen random weights"),
        (["residual.alpha=0"], "with alpha 0 no weight can move"),
        (["algorithm=reptile", "residual.learn_start=true"], "residual=rows is of the support's items"),
        (["algorithm=supervised"], "algorithm=supervised adapts nothing"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_words("train", ["residual=rows", *words])
