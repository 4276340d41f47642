"""A memory: hand values, a slow second version over events, causality and counting."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from reference.memory_cases import BASE, LOGS, MODEL, K, Q, T, log_of, moved, over, pairs_of, tasks_over
from reference.memory_reference import SlowMemory, log_p
from torch import Tensor

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.core.batch import EpisodeBatch, PairBatch, Recall, Sequences
from metarec.models.narm import NARM
from metarec.models.sasrec import SASRec
from metarec.objectives.bce import BCE
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.memory import mixed
from metarec.tasks import Tasks

every_log = pytest.mark.parametrize("name", LOGS)


# -- values ---------------------------------------------------------------------------------------------------------


def by_hand(numbers: dict[str, float], *, own: tuple[bool, ...] = (False,) * 3, start: float = 0.2) -> list[float]:
    """p of three items under a model of (1/2, 1/4, 1/4) and a history of items 1, 1, 2 with states by hand."""
    states = torch.tensor([[0.0, 0], [0, 2], [3, 0], [5, 0]], dtype=torch.float64)  # before any event, then three
    sequences = Sequences(
        torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[3]])
    )
    recall = Recall(torch.tensor([[[1, 1, 2]]]), torch.tensor([[[2, 1, 0]]]), torch.tensor([[own]]),
                    torch.tensor([[[0, 1, 2]]]))  # fmt: skip
    pairs = PairBatch(sequences, torch.tensor([[3]]), torch.tensor([[1]]), recall)
    scores = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.float64).log() + 7
    made = over(base={"w": torch.zeros(1, dtype=torch.float64)}, start=start)
    phi = made.init(torch.Generator()) | {
        f"memory.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()
    }
    found: list[float] = made.mix(phi, scores, pairs, states, lambda other: states).exp()[0, 0].tolist()
    return found


F = Fraction


@pytest.mark.parametrize(
    ("numbers", "own", "of_memory"),
    [
        ({}, (False, False, False), (F(2, 3), F(1, 3), 0)),  # counted
        ({"recency": 1.0}, (False, False, False), (F(5, 11), F(6, 11), 0)),  # 1/3 + 1/2, 1
        ({"own": log(2)}, (False, True, True), (F(3, 5), F(2, 5), 0)),  # 1 + 2, 2
        # h = (5, 0): the first key is zero, the second at right angles, the third along
        ({"similarity": log(3)}, (False, False, False), (F(2, 5), F(3, 5), 0)),
    ],
)
def test_hand_values(numbers: dict[str, float], own: tuple[bool, ...], of_memory: tuple[Fraction, ...]) -> None:
    model = (F(1, 2), F(1, 4), F(1, 4))
    wanted = [float(F(4, 5) * p + F(1, 5) * m) for p, m in zip(model, of_memory, strict=True)]
    assert by_hand(numbers, own=own) == pytest.approx(wanted, abs=1e-14)


def test_the_first_hand_value_as_a_fraction() -> None:
    assert by_hand({}) == pytest.approx([8 / 15, 4 / 15, 1 / 5], abs=1e-14)


def test_a_sharpened_model_by_hand() -> None:
    """Twice the scores are squared probabilities: 4 : 1 : 1."""
    wanted = [
        F(4, 5) * p + F(1, 5) * m for p, m in zip((F(4, 6), F(1, 6), F(1, 6)), (F(2, 3), F(1, 3), 0), strict=True)
    ]
    assert by_hand({"sharpness": log(2)}) == pytest.approx([float(p) for p in wanted], abs=1e-14)


@pytest.mark.parametrize("logit", [-60.0, -3.0, 0.0, 5.0, 25.0, 60.0])
def test_logarithms_of_mixtures_that_a_sum_of_powers_would_lose(logit: float) -> None:
    """Against the mixture in numbers of 50 digits; a model that gives a remembered item e^-900 is no trouble."""
    log_model = [-0.25, -2.0, -900.0, -30.0]
    found = torch.tensor([[log_model]], dtype=torch.float64, requires_grad=True)
    of_memory = torch.tensor([[[0.5, 0.0, 0.5, 0.0]]], dtype=torch.float64, requires_grad=True)
    at = torch.tensor([[logit]], dtype=torch.float64, requires_grad=True)
    got = mixed(found, of_memory, at, torch.tensor([[True]]))
    with localcontext() as digits:
        digits.prec = 50
        gate = 1 / (1 + Decimal(-logit).exp())
        each = [(1 - gate) * Decimal(p).exp() + gate * Decimal(m)
                for p, m in zip(log_model, of_memory[0, 0].tolist(), strict=True)]  # fmt: skip
        wanted = [float(value.ln()) for value in each]
    assert got[0, 0].tolist() == pytest.approx(wanted, rel=1e-13)
    slopes = torch.autograd.grad(got[0, 0].sum(), [found, of_memory, at], create_graph=True)
    again = torch.autograd.grad(torch.stack([slope.sum() for slope in slopes]).sum(), [found, of_memory, at])
    assert all(torch.isfinite(slope).all() for slope in (*slopes, *again))


@every_log
@pytest.mark.parametrize("n_read", [None, 6])
@pytest.mark.parametrize("options", [{"gate": "state"}, {"keys": False}])
def test_it_is_the_slow_memory(name: str, n_read: int | None, options: dict[str, Any]) -> None:
    log, made = log_of(name, n_read), over(**options)
    phi, batch = moved(made), log.episodes(K, Q)
    params = BASE | phi
    tasks, empty = tasks_over(made), 0
    for part, found in ((0, tasks.logits(phi, batch.support)), (1, tasks.logits(phi, batch.query))):
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(T, K, dtype=torch.float64), rtol=1e-12, atol=0)
        for user in range(T):
            slow = SlowMemory(log, pairs_of(log, user)[0])
            for n, pair in enumerate(pairs_of(log, user)[part]):
                empty += not slow.entries(pair)
                torch.testing.assert_close(found[user, n], log_p(slow, pair, params), rtol=1e-11, atol=1e-12)
    assert empty or name != "mostly unknown"  # a pair without any entry was among them


def test_the_loss_is_minus_log_p_of_the_target() -> None:
    log, made = log_of("cut"), over()
    phi, query = moved(made), log.episodes(K, Q).query
    found, logits = tasks_over(made).loss(query)(phi), tasks_over(made).logits(phi, query)
    known = query.target > 0
    each = -logits.gather(2, (query.target - 1).clamp(min=0)[..., None])[..., 0] * known
    torch.testing.assert_close(found, each.sum(1) / known.sum(1).clamp(min=1), rtol=1e-12, atol=1e-12)
    chunked = tasks_over(made, objective=ChunkedCrossEntropy(3)).loss(query)(phi)
    torch.testing.assert_close(found, chunked, rtol=1e-12, atol=1e-12)
    sampled = tasks_over(made, objective=BCE(3)).loss(query, items=torch.Generator().manual_seed(1))(phi)
    assert torch.isfinite(sampled).all()


@pytest.mark.parametrize("model", [SASRec(11, 4, n_layers=1, n_heads=2, max_len=3, dropout=0.0), NARM(11, 3, 4)])
def test_other_models_have_keys_too(model: Any) -> None:
    """Whatever the states of a model are: those of the last event before each entry, read as the pairs themselves are."""
    log = log_of("cut")
    base = model.init(torch.Generator().manual_seed(1), torch.float64)
    made = over(model=model, base=base, gate="state")
    phi, batch = moved(made), log.episodes(K, Q)
    assert phi["memory.direction"].shape == model.encode(base, batch.query.inputs).shape[1:]
    for pairs in (batch.support, batch.query):
        torch.testing.assert_close(
            tasks_over(made, model).logits(phi, pairs).exp().sum(-1), torch.ones(T, K, dtype=torch.float64)
        )
    # a target of the support is remembered with the state that it was scored from
    recall, support = batch.query.recall, batch.support
    assert recall is not None
    width = int(batch.query.sequences.lengths.sum(1).max())
    at = support.at - support.sequences.places[:, :1]
    for user in range(T):
        support_pairs, query_pairs = pairs_of(log, user)
        slow = SlowMemory(log, support_pairs)
        entries = slow.entries(query_pairs[-1])
        for number, (event, _, own) in enumerate(entries):
            for n, pair in enumerate(support_pairs):
                if slow.ends(pair)[1] == event and not own:
                    wanted = width + int(at[user, n]) if support.at[user, n] > 0 else 0
                    assert int(recall.key[user, -1, number]) == wanted


# -- laws -----------------------------------------------------------------------------------------------------------


@every_log
def test_it_is_causal(name: str) -> None:
    """What comes after a pair of the support, its own target included, says nothing to it; nor does any query."""
    log, made = log_of(name), over(gate="state")
    phi, tasks = moved(made), tasks_over(made)
    found = tasks.logits(phi, log.episodes(K, Q).support)
    for user in range(T):
        for n, pair in enumerate(pairs_of(log, user)[0]):
            event = int(log.batcher.pair_event[pair])
            item = log.batcher.item.copy()
            item[event:] = np.where(item[event:] > 0, item[event:] % 11 + 1, item[event:])
            other = replace(log, batcher=replace(log.batcher, item=item)).episodes(K, Q)
            assert torch.equal(tasks.logits(phi, other.support)[user, n], found[user, n])


def test_a_support_pair_remembers_the_one_before() -> None:
    log, made = log_of("whole"), over()
    item = log.batcher.item.copy()
    item[int(log.batcher.pair_event[0])] = 11
    other = replace(log, batcher=replace(log.batcher, item=item)).episodes(K, Q)
    phi, tasks = moved(made), tasks_over(made)
    assert not torch.equal(tasks.logits(phi, other.support)[0, 1], tasks.logits(phi, log.episodes(K, Q).support)[0, 1])


def test_without_a_gate_it_is_the_model() -> None:
    log, made = log_of("cut"), over(start=1e-13)
    phi, query = made.init(torch.Generator()), log.episodes(K, Q).query
    plain = Tasks(MODEL, cross_entropy, lambda phi: phi).logits(BASE, query).log_softmax(-1)
    torch.testing.assert_close(tasks_over(made).logits(phi, query), plain, rtol=1e-10, atol=1e-10)


def test_a_pair_that_knows_nothing_has_the_model_alone() -> None:
    log, made = log_of("mostly unknown"), over(start=0.9)
    phi, query = made.init(torch.Generator()), log.episodes(0, Q).query
    assert query.recall is not None
    nothing = ~(query.recall.item > 0).any(-1)
    assert nothing.any()
    plain = Tasks(MODEL, cross_entropy, lambda phi: phi).logits(BASE, query).log_softmax(-1)
    assert torch.equal(tasks_over(made).logits(phi, query)[nothing], plain[nothing])


@every_log
def test_a_gate_of_one_ranks_as_the_baseline_that_counts(name: str) -> None:
    log, made = log_of(name), over(start=1 - 1e-9)
    batch = log.episodes(K, Q)
    assert batch.support_pairs is not None
    assert batch.query_pairs is not None
    ours = tasks_over(made).logits(made.init(torch.Generator()), batch.query)
    b = log.batcher
    asked = Asked.of_pairs(b.item, b.pair_begin, b.pair_event, np.arange(T), batch.support_pairs, batch.query_pairs)
    training = Simple(np.zeros(11))
    theirs = torch.from_numpy(BASELINES["frequent_support"].fit(training, decay=1.0)(asked))
    for got, wanted in zip(ours.flatten(0, 1), theirs.flatten(0, 1), strict=True):
        order = wanted.sort(descending=True).indices[: int((wanted >= 1).sum())]
        assert (got[order].diff() < 1e-6).all()  # of equal counts either may stand first
        rest = wanted < 1
        assert not len(order) or not rest.any() or got[order].min() > got[rest].max()


class Simple:
    """All that the row reads of a log."""

    def __init__(self, below_one: Any) -> None:
        self.below_one = below_one


@every_log
def test_other_tasks_and_their_order_change_nothing(name: str) -> None:
    log, made = log_of(name), over(gate="state")
    phi, tasks = moved(made), tasks_over(made)
    together = [tasks.logits(phi, part) for part in parts_of(log.episodes(K, Q))]
    turned = [tasks.logits(phi, part) for part in parts_of(log.episodes(K, Q, [2, 0, 3, 1]))]
    for whole, other in zip(together, turned, strict=True):
        torch.testing.assert_close(whole[[2, 0, 3, 1]], other, rtol=1e-12, atol=1e-12)
    for user in range(T):
        for whole, part in zip(together, parts_of(log.episodes(K, Q, [user])), strict=True):
            torch.testing.assert_close(whole[user], tasks.logits(phi, part)[0], rtol=1e-12, atol=1e-12)


def parts_of(batch: EpisodeBatch) -> tuple[PairBatch, PairBatch]:
    assert isinstance(batch.support, PairBatch)
    assert isinstance(batch.query, PairBatch)
    return batch.support, batch.query


def test_padding_changes_nothing() -> None:
    log, made = log_of("cut"), over(gate="state")
    phi, query = moved(made), parts_of(log.episodes(K, Q))[1]
    assert query.recall is not None
    r = query.recall
    pad = partial(torch.nn.functional.pad, pad=(0, 3))
    wide = Recall(pad(r.item), pad(r.age), pad(r.own), pad(r.key, value=-1), r.support)
    s = query.sequences
    wider = Sequences(pad(s.items), pad(s.starts), pad(s.lengths))
    padded = PairBatch(wider, query.at, query.target, wide)
    found = tasks_over(made).logits(phi, padded)
    torch.testing.assert_close(found, tasks_over(made).logits(phi, query), rtol=1e-12, atol=1e-12)


def test_without_support_the_own_prefix_is_left() -> None:
    log, made = log_of("cut"), over(gate="state")
    phi, query = moved(made), log.episodes(K, Q).query
    found = tasks_over(made).logits(phi, query.without_support())
    for user in range(T):
        slow = SlowMemory(log, [])
        for n, pair in enumerate(pairs_of(log, user)[1]):
            torch.testing.assert_close(found[user, n], log_p(slow, pair, BASE | phi), rtol=1e-11, atol=1e-12)


def test_keys_that_are_not_compared_cost_no_states_of_the_support() -> None:
    log, made = log_of("cut"), over(keys=False)
    phi, query = moved(made), parts_of(log.episodes(K, Q))[1]

    def encode(other: PairBatch) -> Tensor:
        raise AssertionError("the support was encoded")

    states = MODEL.encode(BASE, query.inputs)
    made.mix(phi, MODEL.score(BASE, query.gather(states)), query, states, encode)


def test_without_any_support_keys_are_of_the_batch_itself() -> None:
    log, made = log_of("cut"), over(gate="state")
    phi, query = moved(made), log.episodes(0, Q).query
    found = tasks_over(made).logits(phi, query)
    for user in range(T):
        slow = SlowMemory(log, [])
        for n, pair in enumerate(pairs_of(log, user)[0]):
            torch.testing.assert_close(found[user, n], log_p(slow, pair, BASE | phi), rtol=1e-11, atol=1e-12)
