"""Ranks, the control's tuning and the records of a measurement against one user, one prefix, one step at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.meta_reference import Reference, no_base
from reference.small_episodes import SmallLog, small_log
from torch import Tensor

from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params
from metarec.data.episodes import EpisodeRanges
from metarec.errors import DivergedError
from metarec.evaluate import (
    Episodes,
    Method,
    divergences,
    known,
    monitored,
    pair_metrics,
    ranks,
    records,
    repeats,
    scored,
    seen,
    tune_control,
)
from metarec.metrics import METRICS, reciprocal_rank
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

N_ITEMS, N_SUPPORT, N_QUERY = 11, 3, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For tensors this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Small:
    log: SmallLog
    tasks: Tasks
    params: Params
    known: dict[tuple[object, ...], np.ndarray]  # slow ranks found before

    def episodes(self, *, n_support: int = N_SUPPORT, chunk: int = 3) -> Episodes:
        users = np.arange(self.log.n_users)
        ranges = EpisodeRanges(users, users * self.log.n_pairs, np.ones_like(users), 1, N_SUPPORT, N_QUERY)
        return Episodes(self.log.batcher, ranges, users, n_support, chunk, CPU)

    def adapted(self, lr: float, steps: int) -> Method:
        return lambda batch: fomaml(InnerLoop(lr, steps)).adapt(
            self.params, self.tasks.loss(batch.support), batch.n_tasks
        )

    def slow_ranks(self, lr: float, steps: int, ties: str = "conservative", n_support: int = N_SUPPORT) -> np.ndarray:
        """Full copies of the weights, torch.optim.SGD, a rank counted item by item."""
        key = (lr, steps, ties, n_support)
        if key not in self.known:
            self.known[key] = self._slow_ranks(lr, steps, ties, n_support)
        return self.known[key]

    def _slow_ranks(self, lr: float, steps: int, ties: str, n_support: int) -> np.ndarray:
        reference = Reference(no_base(self.params), lr, steps)
        out = []
        for support, query in self.log.plain_episodes(N_SUPPORT, N_QUERY):
            own = reference.adapt(self.params, support[N_SUPPORT - n_support :]) if n_support else self.params
            with torch.no_grad():
                scores = reference.logits(own, query)
            for row, (_, target) in zip(scores, query, strict=True):
                out.append(slow_rank(row, target, ties))
        return np.array(out).reshape(self.log.n_users, N_QUERY)


def slow_rank(scores: Tensor, target: int, ties: str) -> int:
    if target < 1:
        return N_ITEMS + 1
    own = float(scores[target - 1])
    better = sum(float(score) > own for score in scores)
    level = sum(float(score) == own for score in scores) - 1
    return 1 + better + (level if ties == "conservative" else sum(float(s) == own for s in scores[: target - 1]))


@pytest.fixture(scope="module", params=[1, 2])
def small(request: pytest.FixtureRequest) -> Small:
    model = GRU4Rec(N_ITEMS, 4, 6, dropout=0.5)  # off here: nothing asks for it
    params = model.init(torch.Generator().manual_seed(request.param), torch.float64)
    log = small_log(request.param, n_users=7, n_items=N_ITEMS)
    return Small(log, Tasks(model, cross_entropy, lambda phi: phi), params, {})


@pytest.mark.parametrize("n_support", range(N_SUPPORT + 1))
@pytest.mark.parametrize(("lr", "steps"), [(0.0, 0), (0.5, 1), (0.8, 4)])
def test_ranks_are_those_of_one_user_at_a_time(lr: float, steps: int, n_support: int, small: Small) -> None:
    found, top = ranks(
        small.episodes(n_support=n_support), scored(small.tasks, small.adapted(lr, steps)), "conservative"
    )
    assert np.array_equal(found, small.slow_ranks(lr, steps, n_support=n_support))
    assert found.shape == (7, N_QUERY)
    assert top.shape == (7, N_QUERY, 10)
    assert top.min() >= 1
    assert top.max() <= N_ITEMS
    target = [[t for _, t in query] for _, query in small.log.plain_episodes(N_SUPPORT, N_QUERY)]
    for place, rank in np.ndenumerate(found):
        if rank <= 10:
            assert top[place][rank - 1] == target[place[0]][place[1]]


def test_ties_count_against_the_model_unless_said_otherwise(small: Small) -> None:
    level = {name: torch.zeros_like(value) for name, value in small.params.items()}
    target = np.array([[t for _, t in query] for _, query in small.log.plain_episodes(N_SUPPORT, N_QUERY)])
    conservative, _ = ranks(small.episodes(), scored(small.tasks, lambda batch: level), "conservative")
    assert np.array_equal(conservative, np.where(target > 0, N_ITEMS, N_ITEMS + 1))
    first, _ = ranks(small.episodes(), scored(small.tasks, lambda batch: level), "first")
    assert np.array_equal(first, np.where(target > 0, target, N_ITEMS + 1))


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk: int, small: Small) -> None:
    one, _ = ranks(small.episodes(chunk=chunk), scored(small.tasks, small.adapted(0.8, 3)), "conservative")
    assert np.array_equal(one, small.slow_ranks(0.8, 3))


def test_a_score_that_is_not_finite_is_no_rank(small: Small) -> None:
    broken = small.params | {"fc.bias": torch.full((N_ITEMS,), torch.nan, dtype=torch.float64)}
    with pytest.raises(DivergedError):
        ranks(small.episodes(), scored(small.tasks, lambda batch: broken), "conservative")


@pytest.mark.parametrize("monitor", list(METRICS))
def test_the_control_is_the_best_of_all_choices(monitor: str, small: Small) -> None:
    """Every step size with every number of steps, each run on its own."""
    lrs, steps = [2.0, 0.05, 0.5], [4, 1, 2]
    found = tune_control(small.tasks, small.params, small.episodes(), lrs, steps, monitor, "conservative")
    scores = {
        (lr, count): monitored(small.slow_ranks(lr, count), N_ITEMS)[monitor]
        for lr, count in itertools.product(lrs, steps)
    }
    assert {(row["lr"], row["steps"]): row[monitor] for row in found.tried} == pytest.approx(scores)
    best = max(scores.values())
    ties = [choice for choice, score in scores.items() if score == best]
    assert (found.lr, found.steps) == min(ties)  # the smaller step size, then fewer steps
    assert found.value == pytest.approx(best)


def test_a_step_size_that_diverges_is_out(small: Small) -> None:
    words = (small.tasks, small.params, small.episodes())
    found = tune_control(*words, [1e308, 0.1], [1, 5], "mrr", "conservative")
    assert {row["lr"] for row in found.tried} == {0.1}
    with pytest.raises(DivergedError, match="fine-tuning diverges at every step size"):
        tune_control(*words, [1e308], [5], "mrr", "conservative")


def test_single_pairs_score_as_in_their_episodes(small: Small) -> None:
    pairs = np.concatenate([np.arange(u * small.log.n_pairs + N_SUPPORT, u * small.log.n_pairs + 7) for u in range(7)])
    found = pair_metrics(small.tasks, small.log.batcher, pairs, small.params, "conservative", CPU, chunk=5)
    assert found == pytest.approx(monitored(small.slow_ranks(0.0, 0), N_ITEMS))


def test_a_metric_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its target and its episode; a place without a target (rank 0) is passed over."""
    real = reciprocal_rank.reciprocal_rank
    monkeypatch.setattr(
        reciprocal_rank, "reciprocal_rank", lambda r, n: np.where(np.asarray(r) == 4, -np.inf, real(r, n))
    )
    assert monitored(np.array([[0, 3], [2, 1]]), N_ITEMS)["hr@1"] == 1 / 3
    with pytest.raises(DivergedError, match=r"mrr of target 2: -inf: ") as told:
        monitored(np.array([[0, 3], [2, 4]]), N_ITEMS)
    assert told.value.task == 1


@pytest.mark.parametrize("n_support", [0, 2, N_SUPPORT])
def test_a_repeat_was_seen_in_the_prefix_or_the_support(n_support: int, small: Small) -> None:
    found = {"zeroshot": small.slow_ranks(0.0, 0)}
    episodes = small.episodes(n_support=n_support)
    got = records(episodes, found, N_ITEMS, repeats(small.log.batcher, episodes))
    expected = []
    for user in range(small.log.n_users):
        pairs = user * small.log.n_pairs + np.arange(N_SUPPORT + N_QUERY)
        whole = [log_prefix(small.log, int(pair)) for pair in pairs]
        support = {item for prefix, target in whole[N_SUPPORT - n_support : N_SUPPORT] for item in [*prefix, target]}
        for prefix, target in whole[N_SUPPORT:]:
            expected.append(target > 0 and target in support | set(prefix))
    assert got.repeat.tolist() == expected
    assert got.user.tolist() == np.repeat(np.arange(7), N_QUERY).tolist()
    assert got.position.tolist() == [0, 1, 2, 3] * 7


@pytest.mark.parametrize("n_support", [0, 2, N_SUPPORT])
def test_what_is_known_of_a_user_item_by_item(n_support: int, small: Small) -> None:
    """Support: prefixes and targets. Query: the prefix. And the law: a repeat is a target among them."""
    episodes = small.episodes(n_support=n_support)
    support, query = episodes.pairs()
    of_support = known(small.log.batcher, support, targets=True)
    of_prefix = known(small.log.batcher, query.reshape(-1, 1), targets=False)
    wanted: list[tuple[int, int]] = []
    for user, own in enumerate(support):
        whole = [log_prefix(small.log, int(pair)) for pair in own]
        had = {item for prefix, target in whole for item in [*prefix, target] if item > 0}
        wanted += [(user, item) for item in sorted(had)]
    assert list(zip(*of_support, strict=True)) == wanted
    wanted = []
    for row, pair in enumerate(query.ravel()):
        wanted += [(row, item) for item in sorted({item for item in log_prefix(small.log, int(pair))[0] if item > 0})]
    assert list(zip(*of_prefix, strict=True)) == wanted
    assert of_support.item.dtype == of_prefix.row.dtype == np.int64

    there = set(zip(*of_support, strict=True)), set(zip(*of_prefix, strict=True))
    target = small.log.batcher.item[small.log.batcher.pair_event[query]]
    law = [
        [(user, t) in there[0] or (user * N_QUERY + place, t) in there[1] for place, t in enumerate(row)]
        for user, row in enumerate(target)
    ]
    assert repeats(small.log.batcher, episodes).tolist() == law


def log_prefix(log: SmallLog, pair: int) -> tuple[list[int], int]:
    """The whole prefix of a pair, not only its latest events, and its target."""
    begin, event = int(log.batcher.pair_begin[pair]), int(log.batcher.pair_event[pair])
    return [int(item) for item in log.batcher.item[begin:event]], int(log.batcher.item[event])


def constant(batch: EpisodeBatch) -> Tensor:
    return torch.zeros(*batch.query.target.shape, N_ITEMS)


def oracle(batch: EpisodeBatch) -> Tensor:
    scores = constant(batch)
    known = batch.query.target > 0
    return scores.scatter(-1, (batch.query.target - 1).clamp(min=0).unsqueeze(-1), known.double().unsqueeze(-1).float())


def test_four_scorers_whose_figures_are_known(small: Small) -> None:
    """Constant: the last rank for all. Oracle: 1. Random: chance, 1/V for each rank. NaN: an error."""
    episodes = small.episodes()
    target = np.concatenate([batch.query.target.numpy() for batch in episodes.batches()])
    known = target > 0
    assert set(ranks(episodes, constant, "conservative")[0][known]) == {N_ITEMS}
    perfect = monitored(ranks(episodes, oracle, "conservative")[0][known], N_ITEMS)
    assert set(perfect.values()) == {1.0}

    stream = torch.Generator().manual_seed(5)
    found = [
        ranks(episodes, lambda batch: torch.rand(constant(batch).shape, generator=stream), "conservative")[0][known]
        for _ in range(400)
    ]
    counts = np.bincount(np.concatenate(found), minlength=N_ITEMS + 1)[1:]
    expected = counts.sum() / N_ITEMS
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 10 degrees of freedom, p = .001

    def broken(batch: EpisodeBatch) -> Tensor:
        scores = constant(batch)
        scores[0, 0, 3] = float("nan")
        return scores

    for hide in (None, seen(small.log.batcher, N_ITEMS)):
        with pytest.raises(DivergedError, match="item 4"):
            ranks(episodes, broken, "conservative", hide)


def test_what_was_seen_is_no_candidate(small: Small) -> None:
    """As if the items of the prefix had been taken out of the catalogue."""
    episodes, stream = small.episodes(), torch.Generator().manual_seed(2)
    scores = {i: torch.rand(3, N_QUERY, N_ITEMS, generator=stream) for i in range(3)}
    turn = iter(range(3))
    found, top = ranks(
        episodes, lambda batch: scores[next(turn)][: batch.n_tasks], "conservative", seen(small.log.batcher, N_ITEMS)
    )
    _, query = episodes.pairs()
    for user, own in enumerate(query):
        for place, pair in enumerate(own):
            begin, event = small.log.batcher.pair_begin[pair], small.log.batcher.pair_event[pair]
            had = {int(item) for item in small.log.batcher.item[begin:event]}
            target = int(small.log.batcher.item[event])
            row = scores[user // 3][user % 3, place]
            left = [i for i in range(1, N_ITEMS + 1) if i not in had]
            assert [i for i in top[user, place].tolist() if i not in had] == sorted(left, key=lambda i: -row[i - 1])[
                :10
            ]
            if target < 1 or target in had:
                assert found[user, place] >= N_ITEMS
            else:
                assert found[user, place] == 1 + sum(float(row[i - 1]) > float(row[target - 1]) for i in left)


# -- cross-entropy and divergence -----------------------------------------------------------------------------------


def fixed(row: list[float]) -> Callable[[EpisodeBatch], Tensor]:
    """The same probabilities of all items for every query."""
    scores = torch.tensor(row, dtype=torch.float64).log()
    return lambda batch: scores.expand(*batch.query.target.shape, N_ITEMS)


def test_divergence_by_hand(small: Small) -> None:
    """p: item 1 with 1/2, the other ten 1/20 each; q: all alike, 1/11."""
    p, q = fixed([10.0] + [1.0] * 10), fixed([1.0] * N_ITEMS)
    found = divergences(small.episodes(), p, {"pretrained": p, "other": q})
    targets = [t for _, query in small.log.plain_episodes(N_SUPPORT, N_QUERY) for _, t in query if t > 0]
    assert 0 < len(targets) < 7 * N_QUERY  # some are unknown, and left out
    own = sum(math.log(2) if t == 1 else math.log(20) for t in targets) / len(targets)
    assert found["pretrained"] == {"cross_entropy": pytest.approx(own, abs=1e-12), "kl": 0.0}
    kl = 1 / 2 * math.log(11 / 2) + 10 / 20 * math.log(11 / 20)
    wanted = {"cross_entropy": math.log(11), "kl": kl}
    assert found["other"] == pytest.approx(wanted, abs=1e-12)


def test_divergence_of_adapted_weights_is_that_of_one_query_at_a_time(small: Small) -> None:
    start, end = scored(small.tasks, lambda batch: small.params), scored(small.tasks, small.adapted(0.5, 2))
    found = divergences(small.episodes(), start, {"pretrained": start, "fewshot": end})
    reference, ce, kl = Reference(no_base(small.params), 0.5, 2), list[float](), list[float]()
    for support, query in small.log.plain_episodes(N_SUPPORT, N_QUERY):
        own = reference.adapt(small.params, support)
        with torch.no_grad():
            rows = zip(reference.logits(small.params, query), reference.logits(own, query), query, strict=True)
        for before, after, (_, target) in rows:
            if target > 0:
                p, q = before.softmax(0), after.softmax(0)
                ce.append(-math.log(q[target - 1]))
                kl.append(float(F.kl_div(q.log(), p, reduction="sum")))
    assert found["fewshot"] == pytest.approx({"cross_entropy": np.mean(ce), "kl": np.mean(kl)}, abs=1e-10)
    assert found["pretrained"]["kl"] == 0.0
    assert found["fewshot"]["kl"] > 1e-3  # type: ignore[operator]
    none = divergences(replace(small.episodes(), rows=np.arange(0)), start, {"fewshot": end})
    assert none == {"fewshot": {"cross_entropy": None, "kl": None}}
