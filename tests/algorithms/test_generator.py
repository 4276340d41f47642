"""The generator: nothing at the start, no order of pairs, its losses against dense ones, teachers that it can express."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from reference.matrix_models import MODELS
from reference.small_episodes import small_log
from reference.small_models import leaves
from reference.small_tensors import close, differ, normal
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import Shown, Taught, inner
from metarec.algorithms.generator import MADE, Generator, Losses
from metarec.core.batch import EpisodeBatch
from metarec.core.gram import Product, cosine, squared_norm
from metarec.core.weights import FastWeight, Params
from metarec.data.batches import Batcher
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual import Residual
from metarec.tasks import Tasks

T, K, Q, RANK = 4, 3, 4, 2
MODEL = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.0)
LOG = small_log(13, n_users=T, n_pairs=8, unknown=0.1)
ON: dict[str, Any] = {
    "lora": parts.options("residual", "lora")(rank=RANK, alpha=3.0, targets=["gru.*weight*", "fc.weight"]),  # type: ignore[misc]
    "context": parts.default("residual", "context"),
}
SMALL: dict[str, Any] = {"width": 8, "hidden": 9, "queries": 2, "drop_pairs": 0.0, "drop_evidence": 0.0}


@dataclass(frozen=True)
class Case:
    base: Params
    over: Residual
    plain: Tasks
    tasks: Tasks
    made: Generator
    phi: Params

    def shown(self, batch: EpisodeBatch) -> Shown:
        return Shown(self.tasks.loss(batch.support), *self.plain.evidence(self.base, batch.support))


def case(residual: str = "lora", moved: bool = True, **options: Any) -> Case:
    """`moved`: heads away from zero."""
    drawn = torch.Generator().manual_seed(1)
    base = {n: v + 0.4 * normal(*v.shape, seed=i) for i, (n, v) in enumerate(MODEL.init(drawn, torch.float64).items())}
    on = ON[residual]
    config = parts.options("algorithm", "generator")(**{**SMALL, **options})  # type: ignore[misc]
    control = Control(0.2, 2, 0.0, [])
    made = build.algorithm(config, on, MODEL, control, outer_steps=10, support_share=0.4, context_lr=0.2, seed=3)
    assert isinstance(made, Generator)
    over = build.residual(on, MODEL, base)
    phi = made.learned(over.init(torch.Generator().manual_seed(2)))
    if moved:
        phi = {
            n: v + 0.3 * normal(*v.shape, seed=i) if n.startswith(MADE) else v for i, (n, v) in enumerate(phi.items())
        }
    plain = Tasks(MODEL, cross_entropy, lambda theta: theta)
    return Case(base, over, plain, Tasks(MODEL, cross_entropy, over.compose), made, phi)


def numbers(weights: dict[str, FastWeight]) -> dict[str, Tensor]:
    """What each task has of its own, dense."""
    return {name: w.dense() for name, w in weights.items() if w.offset is not None}


def taught(it: Case, batch: EpisodeBatch, seed: int = 40, like: dict[str, Tensor] | None = None) -> Taught:
    """A teacher of random numbers, or of given ones."""
    shapes = {n: v.shape for n, v in it.phi.items() if not n.startswith(MADE) and it.made.inner.moves(n)}
    found = like or {n: normal(T, *shape, seed=seed + i) for i, (n, shape) in enumerate(shapes.items())}
    sizes = {name: float((v - it.phi[name]).flatten(1).square().sum(1).mean()) for name, v in found.items()}
    scales = dict.fromkeys(it.made.products, 0.7)
    for weight, (a, b, _) in it.made.products.items():
        sizes[weight] = float((0.7 * found[b] @ found[a]).flatten(1).square().sum(1).mean())
    outputs = lambda weights: it.tasks.logits(weights, batch.query).log_softmax(-1)  # noqa: E731
    return Taught(it.tasks.loss(batch.query), outputs, batch.query.target != 0, found, sizes, scales)


# -- what goes in ---------------------------------------------------------------------------------------------------


def test_evidence_is_the_state_and_the_labels_row_of_the_output_layer() -> None:
    it, batch = case(), LOG.episodes(K, Q)
    shown, there = it.plain.evidence(it.base, batch.support)
    states = batch.support.gather(MODEL.encode(it.base, batch.support.inputs))
    known = batch.support.target > 0
    row = it.base["fc.weight"][(batch.support.target - 1).clamp(min=0)]
    normal_ = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()  # noqa: E731
    close(shown[..., :4], normal_(states), 1e-10)
    close(shown[..., 4:8], normal_(row) * known[..., None], 1e-10)
    assert torch.equal(shown[..., 8] > 0, known)
    assert bool(there.all())
    assert not bool(known.all())  # some targets are unknown here
    assert not shown.requires_grad


@pytest.mark.parametrize("name", ["gru4rec", "sasrec", "narm"])
def test_evidence_by_the_output_layer_is_that_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that has a table of outputs; and where it has none, gradients stand in."""
    model, batch = MODELS[name].model, LOG.episodes(K, Q)
    base = model.init(torch.Generator().manual_seed(1), torch.float64)
    tasks = Tasks(model, cross_entropy, lambda theta: theta)
    usual, _ = tasks.evidence(base, batch.support)
    monkeypatch.setattr(type(model), "output", None)
    close(tasks.evidence(base, batch.support)[0], usual, 1e-10)


# -- must hold ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["lora", "context"])
@pytest.mark.parametrize("head", ["factors", "basis"])
def test_nothing_is_generated_at_the_start(residual: str, head: str) -> None:
    if (residual, head) == ("context", "basis"):
        with pytest.raises(ConfigError, match=r"algorithm.head: basis: .*nothing.* residual=lora"):
            case(residual, head=head)
        return
    it, batch = case(residual, moved=False, head=head), LOG.episodes(K, Q)
    own = it.made.adapt(it.phi, it.shown(batch), T)
    for a, b, _ in it.made.products.values():
        assert not bool((own[b].dense() @ own[a].dense()).any())
    for name in own if residual == "context" else ():
        assert torch.equal(own[name].dense(), it.phi[name].expand_as(own[name].dense()))
    logits, wanted = it.tasks.logits(own, batch.query), it.plain.logits(it.base, batch.query)
    close(logits, wanted, 1e-14)
    if residual == "lora":  # a recurrent matrix is written out, a product in another order; without it, bit for bit
        left_out = {n: w if "weight_hh" not in n else FastWeight(w.shared * 0) for n, w in own.items()}
        composed = {n: w for n, w in it.over.compose(left_out).items() if "weight_hh" not in n}
        composed["gru.weight_hh_l0"] = it.base["gru.weight_hh_l0"]
        assert torch.equal(it.plain.logits(composed, batch.query), wanted)
    moved = case(residual, head=head)
    own = moved.made.adapt(moved.phi, moved.shown(batch), T)
    assert differ(it.tasks.logits(own, batch.query), it.plain.logits(it.base, batch.query))


@pytest.mark.parametrize("head", ["factors", "basis"])
def test_the_order_of_the_pairs_does_not_matter(head: str) -> None:
    it = case(head=head)
    support = it.shown(LOG.episodes(K, Q))
    order = torch.tensor([2, 0, 1])
    turned = replace(support, pairs=support.pairs[:, order], there=support.there[:, order])
    usual = numbers(it.made.generate(it.phi, support))
    for name, value in numbers(it.made.generate(it.phi, turned)).items():
        close(value, usual[name], 1e-12)


def test_the_order_inside_a_prefix_does() -> None:
    """One user: prefix 1, 2, 3 or 3, 2, 1 before item 4, twice."""
    it, found = case(), []
    for prefix in ([1, 2, 3], [3, 2, 1]):
        items = np.array([*prefix, 4, *prefix, 4], dtype=np.int32)
        log = Batcher(items, np.array([0, 4]), np.array([3, 7]), 10)
        batch = log.episodes(np.array([0]), np.array([0]), 1, 1)
        found.append(numbers(it.made.generate(it.phi, it.shown(batch))))
    assert all(differ(found[0][name], found[1][name], 1e-6) for name in found[0])


def test_every_task_has_its_own_support_and_no_other() -> None:
    it = case()
    together = numbers(it.made.generate(it.phi, it.shown(LOG.episodes(K, Q))))
    for task in range(T):
        alone = numbers(it.made.generate(it.phi, it.shown(LOG.episodes(K, Q, [task]))))
        for name, value in alone.items():
            close(value[0], together[name][task], 1e-10)


def test_a_basis_gives_a_user_as_many_numbers_as_the_rank() -> None:
    it = case(head="basis")
    own = it.made.generate(it.phi, it.shown(LOG.episodes(K, Q)))
    for a, b, _ in it.made.products.values():
        assert own[b].offset is None  # the large side is one for all users
        ratio = own[a].dense() / it.phi[f"{MADE}basis/{a.removesuffix('.lora_a')}.a"]
        assert float((ratio - ratio[..., :1]).abs().max()) < 1e-9  # a number for each of the directions


def test_auto_takes_a_basis_where_the_heads_would_be_large() -> None:
    it = case(largest_head=31)  # of rank 2: 2 (12 + 4) numbers of the recurrent matrix, 30 of the others
    assert {name for name in it.phi if "basis/" in name} == {f"{MADE}basis/gru.weight_hh_l0.{side}" for side in "ab"}
    assert f"{MADE}head/gru.weight_ih_l0.lora_a.weight" in it.phi


# -- losses ---------------------------------------------------------------------------------------------------------


def dense_distance(it: Case, own: dict[str, FastWeight], teacher: Taught) -> Tensor:
    """[T], with every matrix written."""
    each = []
    for weight, (a, b, scale) in it.made.products.items():
        mine = scale * own[b].dense() @ own[a].dense()
        theirs = 0.7 * teacher.numbers[b] @ teacher.numbers[a]
        each.append((mine - theirs).flatten(1).square().sum(1) / theirs.flatten(1).square().sum(1).mean())
        assert it.made.products[weight][2] == 1.5  # alpha / r, and the teacher's is another
    return torch.stack(each).mean(0)


def rotated(found: dict[str, Tensor], it: Case) -> dict[str, Tensor]:
    """(R A, B R^-1): the same updates, written in another way."""
    out = dict(found)
    r = normal(RANK, RANK, seed=8) + 2 * torch.eye(RANK, dtype=torch.float64)
    for a, b, _ in it.made.products.values():
        out[a], out[b] = r @ found[a], found[b] @ torch.linalg.inv(r)
    return out


def loss_of(it: Case, batch: EpisodeBatch, teacher: Taught, **weights: float) -> Tensor:
    made = replace(it.made, loss=Losses(**{"task": 0.0, **weights}))
    return made.meta_losses(it.phi, it.shown(batch), teacher, T)


def test_delta_w_is_the_dense_distance_whatever_the_factors() -> None:
    it, batch = case(), LOG.episodes(K, Q)
    teacher = taught(it, batch)
    own = it.made.generate(it.phi, it.shown(batch))
    close(loss_of(it, batch, teacher, delta_w=1.0), dense_distance(it, own, teacher), 1e-10)
    other = replace(teacher, numbers=rotated(dict(teacher.numbers), it))
    close(loss_of(it, batch, other, delta_w=1.0), loss_of(it, batch, teacher, delta_w=1.0), 1e-10)
    assert differ(loss_of(it, batch, other, ab=1.0), loss_of(it, batch, teacher, ab=1.0), 0.01)


def test_each_loss_is_zero_for_the_teacher_itself() -> None:
    it, batch = case(), LOG.episodes(K, Q)
    own = numbers(it.made.generate(it.phi, it.shown(batch)))
    teacher = replace(taught(it, batch, like=own), scales=dict.fromkeys(it.made.products, 1.5))
    for name in ("delta_w", "ab", "functional"):
        assert float(loss_of(it, batch, teacher, **{name: 1.0}).abs().max()) < 1e-12
        assert float(loss_of(it, batch, taught(it, batch), **{name: 1.0}).min()) > 1e-3


@pytest.mark.parametrize("residual", ["lora", "context"])
def test_generating_nothing_costs_one(residual: str) -> None:
    """As a mean over teachers: what a loss below 1 is good for can be read off."""
    it, batch = case(residual, moved=False), LOG.episodes(K, Q)
    teacher = taught(it, batch)
    close(loss_of(it, batch, teacher, delta_w=1.0).mean(), torch.tensor(1.0, dtype=torch.float64), 1e-12)
    close(loss_of(it, batch, teacher, ab=1.0).mean(), torch.tensor(1.0, dtype=torch.float64), 1e-12)


def test_functional_is_the_divergence_from_the_teachers_scores() -> None:
    it, batch = case("context"), LOG.episodes(K, Q)
    teacher = taught(it, batch)
    own = it.made.generate(it.phi, it.shown(batch))
    theirs = {n: FastWeight(v[0] * 0, own[n].offset) for n, v in teacher.numbers.items()}  # by hand, task by task
    wanted = []
    for task in range(T):
        alone = LOG.episodes(K, Q, [task])
        set_to = {n: teacher.numbers[n][task] if n in theirs else it.phi[n] for n in own}
        told = it.tasks.logits(set_to, alone.query).log_softmax(-1)[0]
        said = it.tasks.logits(own, batch.query).log_softmax(-1)[task]
        wanted.append((told.exp() * (told - said)).sum(-1).mean())
    close(loss_of(it, batch, teacher, functional=1.0), torch.stack(wanted), 1e-10)


def test_a_mix_is_a_weighted_sum_and_ends_in_the_task_loss() -> None:
    it, batch = case(), LOG.episodes(K, Q)
    teacher, weights = taught(it, batch), {"task": 0.5, "delta_w": 2.0, "ab": 0.3, "functional": 1.5}
    parts_of = {name: loss_of(it, batch, teacher, **{name: 1.0}) for name in weights}
    close(loss_of(it, batch, teacher, **weights), sum(w * parts_of[n] for n, w in weights.items()), 1e-12)  # type: ignore[arg-type]
    tuned = case(fine_tune=0.4, loss=Losses(task=0.0, delta_w=1.0))  # of 10 steps: the last 4
    at = [tuned.made.meta_losses(tuned.phi, tuned.shown(batch), taught(tuned, batch), T, step) for step in (5, 6)]
    close(at[0], parts_of["delta_w"], 1e-12)
    close(at[1], parts_of["task"], 1e-12)


@pytest.mark.parametrize("residual", ["lora", "context"])
@pytest.mark.parametrize("name", ["task", "delta_w", "functional"])
def test_the_gradient_is_that_of_central_differences(residual: str, name: str) -> None:
    it, batch = case(residual), LOG.episodes(K, Q)
    teacher, along = taught(it, batch), {n: normal(*v.shape, seed=i + 7) for i, (n, v) in enumerate(it.phi.items())}
    along = {n: v for n, v in along.items() if n.startswith(MADE)}  # what has a start of its own is not trained
    made = replace(it.made, loss=Losses(**{"task": 0.0, name: 1.0}))

    def at(phi: Params) -> Tensor:
        return made.meta_losses(phi, it.shown(batch), teacher, T).mean()

    begin = leaves(it.phi)
    at(begin).backward()
    slope = sum(float((begin[n].grad * v).sum()) for n, v in along.items())  # type: ignore[operator]
    h = 1e-5
    ends = [float(at({n: v + s * h * along[n] if n in along else v for n, v in it.phi.items()})) for s in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-9)
    moving = [n for n in it.phi if not n.startswith(MADE) and it.made.inner.moves(n)]
    assert all(begin[n].grad is None for n in moving)


# -- refinement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["lora", "context"])
def test_refinement_goes_on_from_each_tasks_own_start(residual: str) -> None:
    """Once more one task at a time, as an inner loop from the numbers that were generated for it."""
    it, batch = case(residual), LOG.episodes(K, Q)
    own = it.made.generate(it.phi, it.shown(batch))
    refined = it.made.adapt(it.phi, it.shown(batch), T, steps=2)
    for task in range(T):
        begin = {n: w.dense()[task] if w.offset is not None else w.shared for n, w in own.items()}
        support = it.tasks.loss(LOG.episodes(K, Q, [task]).support)
        plain = inner.adapt(support, begin, 1, replace(it.made.inner, steps=2))
        for name, w in plain.items():
            if it.made.inner.moves(name):
                close(refined[name].dense()[task], w.dense()[0] if w.offset is not None else w.shared, 1e-10)


def test_a_refined_generator_is_judged_after_its_steps() -> None:
    it, batch = case(refine_steps=2), LOG.episodes(K, Q)
    losses = it.made.meta_losses(it.phi, it.shown(batch), it.tasks.loss(batch.query), T)
    close(losses, it.tasks.loss(batch.query)(it.made.adapt(it.phi, it.shown(batch), T, steps=2)), 1e-12)
    assert differ(losses, case().made.meta_losses(it.phi, it.shown(batch), it.tasks.loss(batch.query), T))


def test_the_inner_loop_beside_it_starts_where_all_start() -> None:
    it, batch = case(), LOG.episodes(K, Q)
    start = {n: v for n, v in it.phi.items() if not n.startswith(MADE)}
    wanted = inner.adapt(it.tasks.loss(batch.support), start, T, it.made.inner)
    found = it.made.by_inner_loop(it.phi, it.shown(batch), T)
    assert all(torch.equal(found[n].dense(), w.dense()) for n, w in wanted.items())


def test_pairs_are_left_out_by_chance_and_the_same_in_every_run() -> None:
    it = case(drop_pairs=0.5)
    support = it.shown(small_log(3, n_users=40, n_pairs=8).episodes(K, Q))
    kept = [it.made.thinned(support, step).there for step in range(20)]
    assert 0.45 < float(torch.stack(kept).double().mean()) < 0.55
    assert torch.equal(it.made.thinned(support, 3).there, kept[3])
    assert not torch.equal(kept[3], kept[4])
    assert torch.equal(case().made.thinned(support, 3).there, support.there)
    numbers_left = case(drop_evidence=0.25)
    seen = [numbers_left.made.thinned(support, step).pairs for step in range(20)]
    ratio = torch.stack(seen) / support.pairs
    assert 0.7 < float((ratio[ratio.isfinite()] != 0).double().mean()) < 0.8
    kept_numbers = ratio[ratio.isfinite() & (ratio != 0)]
    close(kept_numbers, torch.full_like(kept_numbers, 4 / 3), 1e-9)
    whole = it.made.adapt(it.phi, support, 40)  # at test nothing is left out
    again = case().made.adapt(it.phi, support, 40)
    assert all(torch.equal(whole[n].dense(), w.dense()) for n, w in again.items())


# -- expressiveness -------------------------------------------------------------------------------------------------


def test_eight_teachers_can_be_learned_by_heart() -> None:
    """Full heads express unrelated teachers of full rank r: relative error below .05, cosine above .97."""
    model = GRU4Rec(n_items=40, embedding_dim=16, hidden_dim=24, dropout=0.0)
    log = small_log(5, n_users=8, n_pairs=10, n_items=40, unknown=0.0)
    base = model.init(torch.Generator().manual_seed(1))
    on = parts.options("residual", "lora")(rank=4, alpha=8.0, targets=["gru.weight_ih_l0", "fc.weight"])  # type: ignore[misc]
    config = parts.options("algorithm", "generator")(  # type: ignore[misc]
        loss=Losses(task=0.0, delta_w=1.0), drop_pairs=0.0, drop_evidence=0.0
    )
    made = build.algorithm(config, on, model, Control(0.2, 2, 0.0, []), outer_steps=400, support_share=0.4, seed=3)
    assert isinstance(made, Generator)
    over = build.residual(on, model, base)
    phi = {n: v.requires_grad_() for n, v in made.learned(over.init(torch.Generator().manual_seed(2))).items()}
    plain, tasks = Tasks(model, cross_entropy, lambda theta: theta), Tasks(model, cross_entropy, over.compose)
    batch = log.episodes(5, 3)
    shown = Shown(tasks.loss(batch.support), *plain.evidence(base, batch.support))
    drawn = torch.Generator().manual_seed(9)
    found, sizes, scales = dict[str, Tensor](), dict[str, float](), dict[str, float]()
    for weight, (a, b, scale) in made.products.items():
        found[a] = phi[a].detach() + 0.1 * torch.randn(8, *phi[a].shape, generator=drawn)
        found[b] = 0.05 * torch.randn(8, *phi[b].shape, generator=drawn)
        scales[weight] = scale
        sizes[weight] = float(squared_norm(Product(found[a], found[b], scale)).mean())
    teacher = Taught(tasks.loss(batch.query), lambda weights: tasks.logits(weights, batch.query).log_softmax(-1),
                     batch.query.target != 0, found, sizes, scales)  # fmt: skip
    optimizer = torch.optim.AdamW([v for n, v in phi.items() if n.startswith(MADE)], lr=2e-3)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / 300))
        optimizer.zero_grad()
        made.meta_losses(phi, shown, teacher, 8, step).mean().backward()
        torch.nn.utils.clip_grad_norm_([v for v in phi.values() if v.grad is not None], 1.0)
        optimizer.step()
    with torch.no_grad():
        own = made.generate(phi, shown)
        assert float(made.weight_distance(own, teacher).max()) < 0.05
        for a, b, scale in made.products.values():
            mine = Product(own[a].dense(), own[b].dense(), scale)
            assert float(cosine(mine, Product(found[a], found[b], scale)).min()) > 0.97
