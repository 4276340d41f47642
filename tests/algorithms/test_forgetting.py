"""The delta rule of an inner step against one task at a time with dense matrices, and its laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.forgetting_reference import Rule, gru4rec, meta, path
from reference.meta_reference import Loop
from reference.small_episodes import SmallLog, small_log
from reference.small_models import furthest, leaves, meta_gradient, tasks_over, weights
from reference.small_tensors import normal
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.anil import anil
from metarec.algorithms.forgetting import Forget, Pull
from metarec.algorithms.inner import RATE, InnerLoop, adapt
from metarec.algorithms.maml import MAML
from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.core.offsets import Dense, LowRank
from metarec.core.ops import linear, linear_rows
from metarec.core.weights import FastWeight, Params, Read, Weights
from metarec.errors import DivergedError
from metarec.residual.lora import LowRankResidual
from metarec.residual.on import FullResidual
from metarec.tasks import Tasks

HEAD, BODY = ("fc.weight", "fc.bias"), ("gru.weight_ih_l0", "gru.bias_ih_l0", "fc.weight", "fc.bias")
FORGETS = frozenset(["fc.weight", "gru.weight_ih_l0"])
FORMS = ("explicit", "proximal")
LOG = small_log(7, unknown=0.25)
A, LR = 0.15, 0.6


def forget(form: str = "explicit", a: float = A, **more: Any) -> Forget:
    return Forget(a, form, names=more.pop("names", FORGETS), **more)


def events_of(batch: PairBatch, task: int) -> list[int]:
    """The items that the sequences of a task read, each event once."""
    sequences = batch.sequences
    places: set[int] = set()
    for begin, length in zip(sequences.starts[task].tolist(), sequences.lengths[task].tolist(), strict=True):
        places.update(range(begin, begin + length))
    return [int(sequences.items[task, place]) for place in sorted(places)]


def reference(log: SmallLog, n_support: int, base: Params, compose: Any, factors: bool = False) -> list[Any]:
    batch = log.episodes(n_support, 2)
    return [
        tuple(
            gru4rec(pairs, events_of(part, task), base, compose, factors)
            for pairs, part in zip(own, (batch.support, batch.query), strict=True)
        )
        for task, own in enumerate(log.plain_episodes(n_support, 2))
    ]


def both(
    loop: InnerLoop, n_support: int, second: bool, rule: Rule, phi: Params, base: Params, residual: Any = None,
    compose: Any = lambda phi: phi, log: SmallLog = LOG,
) -> tuple[tuple[list[float], Params], tuple[list[float], Params]]:  # fmt: skip
    """(losses, meta-gradient) of all tasks at once, and of one after the other."""
    plain = Loop(loop.lr, loop.steps, loop.pull, loop.prox, loop.clip, loop.rates, loop.adapted)
    factors = isinstance(residual, LowRankResidual)
    tasks = tasks_over(residual)
    ours = meta_gradient(MAML(loop, "second" if second else "first"), tasks, phi, log.episodes(n_support, 2))
    return ours, meta(plain, rule, phi, reference(log, n_support, base, compose, factors), second)


def agree(ours: Any, theirs: Any, within: float = 1e-10) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=within)
    assert furthest(ours[1], theirs[1]) < within


@pytest.mark.parametrize("n_support", [2, 6], ids=["of low rank", "dense"])
@pytest.mark.parametrize("adapted", [HEAD, BODY], ids=["head", "input projection and head"])
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_and_outer_gradient_are_those_of_one_task_at_a_time(
    form: str, second: bool, adapted: tuple[str, ...], n_support: int
) -> None:
    """Where the input projection adapts, M of the output layer depends on what adapts, and so does its gradient."""
    loop = InnerLoop(LR, 3, adapted=frozenset(adapted), forget=forget(form))
    ours, theirs = both(loop, n_support, second, Rule(A, form), weights(2, 1.5), weights(2))
    agree(ours, theirs)
    without, _ = both(replace(loop, forget=None), n_support, second, Rule(A, form), weights(2, 1.5), weights(2))
    assert furthest(ours[1], without[1]) > 1e-4


OPTIONS: list[dict[str, Any]] = [
    {"clip": 0.1}, {"pull": 0.2}, {"prox": 0.4}, {"pull": 0.2, "prox": 0.4, "clip": 0.3}, {"rates": "tensor"},
    {"rates": "tensor_step"}, {"rates": "element"}, {"rates": "element_step", "prox": 0.3}, {"recompute": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_beside_all_else_that_a_step_does(form: str, options: dict[str, Any]) -> None:
    """Clip, pull, prox and learned step sizes act on d alone; what is forgotten is none of them."""
    for second in (True, False):
        loop = InnerLoop(LR, 2, adapted=frozenset(BODY), forget=forget(form), **options)
        phi = loop.learned(weights(2, 1.5))
        phi = {n: v + 0.3 * normal(*v.shape, seed=len(n)) if n.startswith(RATE) else v for n, v in phi.items()}
        agree(*both(loop, 3, second, Rule(A, form), phi, weights(2)))


@pytest.mark.parametrize("form", FORMS)
def test_of_a_delta_the_delta_forgets_and_the_frozen_weights_do_not(form: str) -> None:
    base, alpha = weights(1), 0.7
    residual = FullResidual(base, alpha, names=HEAD)
    phi = {name: value * 0.8 for name, value in weights(2).items() if name in HEAD}

    def compose(delta: Params) -> Params:
        return {name: value + alpha * delta[name] if name in delta else value for name, value in base.items()}

    for second in (True, False):
        loop = InnerLoop(LR, 3, adapted=frozenset(HEAD), forget=forget(form))
        agree(*both(loop, 3, second, Rule(A, form), phi, base, residual, compose))


@pytest.mark.parametrize("n_support", [2, 6])
@pytest.mark.parametrize("form", FORMS)
def test_of_a_product_each_factor_forgets_by_its_own_inputs(form: str, n_support: int) -> None:
    base, s, targets = weights(1), 1.3, {"gru.weight_ih_l0": (12, 3), "fc.weight": (11, 4)}
    residual = LowRankResidual(base, targets, 2, s)
    phi = {name: normal(*v.shape, seed=len(name)) for name, v in residual.init(torch.Generator()).items()}
    names = frozenset(phi)

    def compose(own: Params) -> Params:
        moved = {n: base[n] + s * own[f"{n}.lora_b"] @ own[f"{n}.lora_a"] for n in targets}
        return {name: moved.get(name, value) for name, value in base.items()}

    for second in (True, False):
        loop = InnerLoop(0.1, 2, adapted=names, forget=forget(form, names=names))
        agree(*both(loop, n_support, second, Rule(A, form), phi, base, residual, compose))


def test_anil_narrows_what_adapts_and_what_forgets_with_it() -> None:
    made = anil(InnerLoop(LR, 2, forget=forget()), HEAD)
    ours = meta_gradient(made, tasks_over(), weights(2, 1.5), LOG.episodes(3, 2))
    plain = Loop(LR, 2, adapted=HEAD)
    agree(ours, meta(plain, Rule(A), weights(2, 1.5), reference(LOG, 3, weights(2), lambda phi: phi), True))


@pytest.mark.parametrize("n_support", [2, 6])
def test_a_clip_is_differentiated_through_the_eigenvalue_and_spares_the_other_tasks(n_support: int) -> None:
    """a is cut for the tasks, weights and steps where it is too large, and where it is not it stays."""
    phi, tops = weights(2, 3.0), []
    for support, _ in reference(LOG, n_support, weights(2), lambda phi: phi):
        x = support(phi)[1]["fc.weight"]
        tops.append(float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]))
    a = 4 / sum(sorted(tops)[1:3])
    assert sum(top * a >= 2 for top in tops) == 2
    loop = InnerLoop(
        0.05, 2, adapted=frozenset(BODY), forget=forget(a=a, unstable="clip", names=frozenset(["fc.weight"]))
    )
    for second in (True, False):
        tasks = reference(LOG, n_support, weights(2), lambda phi: phi)
        only = [tuple(_only(told, "fc.weight") for told in task) for task in tasks]
        plain = Loop(0.05, 2, adapted=BODY)
        ours = meta_gradient(MAML(loop, "second" if second else "first"), tasks_over(), phi, LOG.episodes(n_support, 2))
        agree(ours, meta(plain, Rule(a, clip=True), phi, only, second), 1e-9)


def _only(told: Any, name: str) -> Any:
    def narrowed(phi: Params) -> tuple[Tensor, Params]:
        loss, reads = told(phi)
        return loss, {name: reads[name]}

    return narrowed


# -- laws -----------------------------------------------------------------------------------------------------------


class Reads:
    """A loss that reads `w` [out, in] at x [T, N, in], and has the gradient u x^T of each pair, by rows or as a whole."""

    def __init__(self, x: Tensor, u: Tensor | float = 0.0, rows: bool = False) -> None:
        self.x, self.u, self.rows = x, u, rows

    def __call__(self, weights: Weights) -> Tensor:
        weight = weights["w"]
        every = torch.arange(len(weight.shared))  # type: ignore[union-attr]
        y = linear_rows(self.x, weight, None, every) if self.rows else linear(self.x, weight)
        return (y * self.u).flatten(1).sum(1)


def after(loss: Reads, w: Tensor, **forgets: Any) -> Tensor:
    loop = InnerLoop(forgets.pop("lr", 1.0), 1, forget=Forget(names=frozenset(["w"]), **forgets))
    return adapt(loss, {"w": w}, len(loss.x), loop)["w"].dense()


@pytest.mark.parametrize("rows", [False, True])
def test_for_one_pair_and_a_equal_to_the_step_size_it_is_the_published_rule(rows: bool) -> None:
    """W - a' (W x) x^T + a' u x^T with a' = a / (1 + a |x|^2) and u = -dL/dy."""
    x, w, a = normal(3, 1, 5, seed=1), normal(4, 5, seed=2), 0.3
    slope = normal(3, 1, 4, seed=3)
    found = after(Reads(x, slope, rows), w, lr=a, decay=a, form="proximal")
    for task in range(3):
        own, u = x[task, 0], -slope[task, 0]
        part = a / (1 + a * own @ own)
        torch.testing.assert_close(found[task], w - part * torch.outer(w @ own, own) + part * torch.outer(u, own))


@pytest.mark.parametrize("product", [0.5, 1.0, 1.99, 2.01, 3.0])
def test_the_explicit_form_contracts_where_a_times_the_square_is_below_2(product: float) -> None:
    x, w = normal(1, 1, 5, seed=1), normal(4, 5, seed=2)
    a = product / float(x.square().sum())
    pull = Pull(torch.full((1, 1, 1), a, dtype=torch.float64), x, None, False)
    moved = w + pull.of(FastWeight(w)).dense()[0]
    ratio = float((moved @ x[0, 0]).norm() / (w @ x[0, 0]).norm())
    assert ratio == pytest.approx(abs(1 - product))
    assert (ratio < 1) == (product < 2)
    if product < 2:
        torch.testing.assert_close(after(Reads(x), w, decay=a)[0], moved)
    else:
        with pytest.raises(
            DivergedError, match=r"delta rule, w, inner step 0, task 0 of the batch: .*no weight has moved"
        ):
            after(Reads(x), w, decay=a)
        clipped = after(Reads(x), w, decay=a, unstable="clip")[0]
        torch.testing.assert_close(clipped @ x[0, 0], torch.zeros(4, dtype=torch.float64))


def test_stop_names_the_task_and_the_weight_and_moves_nothing() -> None:
    """The eigenvalue counts, not the trace, which is larger."""
    x = normal(4, 3, 6, seed=1)
    x[2] *= 3
    tops = [float(torch.linalg.eigvalsh(one.T @ one / 3)[-1]) for one in x]
    assert max(range(4), key=tops.__getitem__) == 2
    w = normal(5, 6, seed=2)
    before = w.clone()
    with pytest.raises(DivergedError, match="delta rule, w, inner step 0, task 2 of the batch") as caught:
        after(Reads(x), w, decay=2.0001 / tops[2])
    assert caught.value.exit_code == 6
    assert torch.equal(w, before)
    a = 1.9999 / tops[2]
    assert a * float(x[2].square().sum()) / 3 > 2
    found = after(Reads(x), w, decay=a)
    for task in range(4):
        torch.testing.assert_close(found[task], w - a * w @ (x[task].T @ x[task] / 3))


@pytest.mark.parametrize("n", [1, 3, 7, 20])
def test_the_proximal_form_is_the_linear_solve_whatever_its_shape_and_a(n: int) -> None:
    """N below, at and above the width; V (I + a M) = W - d solved once more as a Kronecker system over all entries."""
    x, w, slope = normal(2, n, 6, seed=1), normal(3, 6, seed=2), normal(2, n, 3, seed=4)
    for a in (0.01, 5.0, 1e3):
        found = after(Reads(x, slope), w, lr=0.2, decay=a, form="proximal")
        for task in range(2):
            d = 0.2 * slope[task].T @ x[task]
            system = torch.eye(6, dtype=torch.float64) + a * x[task].T @ x[task] / n
            whole = torch.kron(torch.eye(3, dtype=torch.float64), system)
            wanted = torch.linalg.solve(whole, (w - d).flatten()).view(3, 6)
            torch.testing.assert_close(found[task], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_both_ways_of_computing_give_the_same(form: str) -> None:
    x, rate = normal(3, 4, 6, seed=1), torch.full((3, 1, 1), 0.1, dtype=torch.float64)
    offset = LowRank.of(normal(3, 2, 5, seed=2), normal(3, 2, 6, seed=3))
    weight = FastWeight(normal(5, 6, seed=4), offset)
    small = Pull(rate, x, None, form == "proximal").of(weight)
    large = Pull(rate, None, x.mT @ x, form == "proximal").of(weight)
    assert isinstance(small, LowRank)
    assert isinstance(large, Dense)
    torch.testing.assert_close(small.dense(), large.value)


def padded(batch: EpisodeBatch, more: int) -> PairBatch:
    """The support with places behind the last pair that hold none."""
    part = batch.support
    assert isinstance(part, PairBatch)
    rest = part.at.new_zeros(len(part.at), more)
    return PairBatch(part.sequences, torch.cat([part.at, rest], 1), torch.cat([part.target, rest], 1))


@pytest.mark.parametrize("form", FORMS)
def test_places_without_a_pair_do_not_count(form: str) -> None:
    """Not as inputs and not in the mean, of low rank and dense; nor do targets outside of the vocabulary, by the reference.
    A context makes the state of a place without a pair other than zero."""
    more = {"context.state": normal(4, seed=9), "context.shift": normal(4, seed=8)}
    phi, batch = weights(2, 1.5) | more, LOG.episodes(3, 1)
    loop = InnerLoop(LR, 3, adapted=frozenset(HEAD), forget=forget(form))
    own = adapt(tasks_over().loss(batch.support), phi, 4, loop)
    for width in (1, 9):
        found = adapt(tasks_over().loss(padded(batch, width)), phi, 4, loop)
        for name in HEAD:
            torch.testing.assert_close(found[name].dense(), own[name].dense())


@pytest.mark.parametrize("form", FORMS)
def test_a_task_does_not_depend_on_who_else_is_in_the_batch(form: str) -> None:
    loop = InnerLoop(LR, 3, adapted=frozenset(BODY), forget=forget(form))
    whole = adapt(tasks_over().loss(LOG.episodes(4, 1).support), weights(2, 1.5), 4, loop)
    for users in ([0], [1, 3], [2, 0, 1]):
        part = adapt(tasks_over().loss(LOG.episodes(4, 1, users).support), weights(2, 1.5), len(users), loop)
        for name in BODY:
            torch.testing.assert_close(part[name].dense(), whole[name].dense()[users])


def test_what_a_loss_draws_or_anchors_counts_no_pair_twice() -> None:
    """The output layer read by rows, several times a loss, has the mean of once."""

    def twice(scores: Any, target: Tensor, generator: Any = None) -> Tensor:
        items = torch.arange(1, 12)
        found: Tensor = scores.of(items).logsumexp(-1) - scores.at(target.clamp(min=1))
        return torch.where(target > 0, found, 0.0)

    loop = InnerLoop(LR, 2, adapted=frozenset(HEAD), forget=forget("proximal"))
    batch = LOG.episodes(3, 1)
    once = adapt(tasks_over().loss(batch.support), weights(2, 1.5), 4, loop)
    rows = adapt(Tasks(tasks_over().model, twice, lambda phi: phi).loss(batch.support), weights(2, 1.5), 4, loop)
    for name in HEAD:
        torch.testing.assert_close(rows[name].dense(), once[name].dense())

    def anchor(scores: Any, target: Tensor) -> Tensor:
        return scores.all().sum(-1) * 0

    anchored = Tasks(tasks_over().model, twice, lambda phi: phi).loss(batch.support, anchor=anchor)  # type: ignore[arg-type]
    beside = adapt(anchored, weights(2, 1.5), 4, loop)
    for name in HEAD:
        torch.testing.assert_close(beside[name].dense(), once[name].dense())


def test_a_path_at_test_time_forgets_as_in_training_and_no_option_moves_the_plain_loop() -> None:
    loss, phi = tasks_over().loss(LOG.episodes(3, 1).support), weights(2, 1.5)
    algorithm = MAML(InnerLoop(LR, 2, adapted=frozenset(HEAD), forget=forget()), "first")
    for steps, lr in ((2, None), (3, 0.1)):
        found = algorithm.adapt(phi, loss, 4, steps=steps, lr=lr)
        wanted = path(
            Loop(lr or LR, steps, adapted=HEAD), Rule(A), leaves(phi), reference(LOG, 3, phi, dict)[1][0], False
        )
        for name in HEAD:
            torch.testing.assert_close(found[name].dense()[1], wanted[-1][name].detach())


def test_a_task_with_no_pair_that_counts_forgets_nothing() -> None:
    log = small_log(9, n_users=3)
    log.batcher.item[log.batcher.pair_event[:8]] = -1
    for form in FORMS:
        loop = InnerLoop(LR, 2, adapted=frozenset(HEAD), forget=forget(form, names=frozenset(["fc.weight"])))
        found = adapt(tasks_over().loss(log.episodes(4, 1).support), weights(), 3, loop)["fc.weight"].dense()
        torch.testing.assert_close(found[0], weights()["fc.weight"])
        assert float((found[1] - weights()["fc.weight"]).abs().max()) > 1e-3


def test_inputs_that_are_not_finite_stop_with_their_name() -> None:
    x = normal(2, 1, 3, seed=1)
    x[1, 0, 0] = 1e200  # whose square is not
    for form in FORMS:
        with pytest.raises(
            DivergedError, match="delta rule, w, inner step 0, task 1 of the batch: inf: the second moment"
        ):
            after(Reads(x), normal(2, 3, seed=2), decay=0.1, form=form)


def test_a_weight_that_is_no_linear_layer_and_is_said_to_be_one_is_refused() -> None:
    loop = InnerLoop(LR, 1, forget=forget(names=frozenset(["gru.weight_hh_l0"])))
    with pytest.raises(ValueError, match=r"gru\.weight_hh_l0 is said to be a linear layer"):
        adapt(tasks_over().loss(LOG.episodes(3, 1).support), weights(), 4, loop)


def test_nobody_asks_where_nothing_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tap keeps inputs, and no pass is told of, without the rule."""
    monkeypatch.setattr(inner.inputs, "_now", lambda pass_: pytest.fail("told"))
    adapt(tasks_over().loss(LOG.episodes(3, 1).support), weights(), 4, InnerLoop(LR, 2))


def test_chunks_count_for_the_task_that_they_are_of() -> None:
    """By plain loops; task 1 has twice the positions of task 0."""
    x, real = normal(6, 3, 4, seed=1), torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    owner = torch.tensor([1, 0, 1, 1, 1, 0])
    pull = Forget(0.01, names=frozenset({"w"})).of({"w": [Read(x, real, owner)]}, 2, ("w",), 0)["w"]
    for task in range(2):
        rows = [x[c, n] for c in range(6) for n in range(3) if owner[c] == task and real[c, n]]
        wanted = sum((torch.outer(row, row) for row in rows), torch.zeros(4, 4, dtype=torch.float64)) / len(rows)
        assert pull.moment is not None
        torch.testing.assert_close(pull.moment[task], wanted)
