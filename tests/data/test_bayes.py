"""The exact optimum: against enumeration, a closed form, calibration and laws; planted faults are noticed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from metarec.data import bayes
from metarec.data.bayes import bayes_scores, type_posterior
from metarec.data.spec import WorldSpec
from metarec.data.synthetic import World, generate
from metarec.errors import ConfigError, DataError
from tests.reference.bayes_reference import next_item_probabilities

KINDS = pytest.mark.parametrize("kind", ["preference", "transition"])
TINY = WorldSpec(n_users=40, n_items=9, n_types=3, n_topics=4, concentration=0.5)


@dataclass
class Ranges:
    """The fields of prepared episode ranges that the optimum reads."""

    user: np.ndarray
    first_pair: np.ndarray
    n_support: int
    n_query: int


class Log:
    """A log in the prepared layout, every user a test user, built with loops from the table alone."""

    name = "synthetic"
    order = "real"

    def __init__(self, table: pa.Table, n_support: int = 5, n_query: int = 10, unknown: frozenset[str] = frozenset()):
        rows = table.to_pylist()
        self.vocabulary = sorted({row["item_id"] for row in rows} - unknown)
        self.item_ids = np.array(self.vocabulary)
        self.n_items = len(self.vocabulary)
        index = {name: n + 1 for n, name in enumerate(self.vocabulary)}
        self.item = np.array([index.get(row["item_id"], -1) for row in rows], np.int32)
        event, begin, users, first_pair = [], [], [], []
        opening, of_user = 0, 0
        for n, row in enumerate(rows):
            if n and row["session_id"] != rows[n - 1]["session_id"]:
                opening = n
            if n > opening:
                event.append(n)
                begin.append(opening)
                of_user += 1
            if n + 1 == len(rows) or rows[n + 1]["user_id"] != row["user_id"]:
                if of_user >= n_support + n_query:
                    users.append(int(row["user_id"][1:]))
                    first_pair.append(len(event) - n_support - n_query)
                of_user = 0
        self.pair_event, self.pair_begin = np.array(event), np.array(begin)
        self.ranges = Ranges(np.array(users), np.array(first_pair), n_support, n_query)

    def episodes(self, split: str) -> Ranges:
        assert split == "test"
        return self.ranges

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Item indices of the query labels [N, Q]."""
        first = self.ranges.first_pair[rows][:, None] + self.ranges.n_support
        return self.item[self.pair_event[first + np.arange(self.ranges.n_query)]]


def score(world: World, log: Log, rows: Any, mode: Any = "fewshot", n_support: int | None = None) -> np.ndarray:
    return bayes_scores(world, log, "test", rows, mode, n_support)  # type: ignore[arg-type]


def enumerated(
    world: World, log: Log, table: pa.Table, rows: list[int], mode: str, n_support: int, fault: str | None = None
) -> np.ndarray:
    """The reference on the raw table: sessions by their ids, items by their names."""
    start, transition = world.start.tolist(), world.next_item.tolist()
    names, result = world.item_ids.tolist(), []
    table_rows = table.to_pylist()
    for row in rows:
        sessions: dict[int, list[int]] = {}
        for one in table_rows:
            if one["user_id"] == f"u{log.ranges.user[row]:07d}":
                sessions.setdefault(one["session_id"], []).append(names.index(one["item_id"]))
        events = list(sessions.values())
        pairs = [(s, j) for s, session in enumerate(events) for j in range(1, len(session))]
        k, q = log.ranges.n_support, log.ranges.n_query
        episode = pairs[-k - q :]
        support = episode[k - n_support : k] if mode == "fewshot" else []
        result.append(
            [next_item_probabilities(start, transition, events, support, query, fault) for query in episode[k:]]
        )
    columns = [names.index(name) for name in log.vocabulary]
    return np.array(result)[..., columns]


def typed_start(world: World) -> World:
    """A world whose sessions also open by type, so that first events count as evidence."""
    start = np.random.default_rng(0).dirichlet(np.ones(world.spec.n_items), world.spec.n_types)
    return replace(world, start=start)


@KINDS
@pytest.mark.parametrize(("mode", "n_support"), [("zeroshot", 5), ("fewshot", 5), ("fewshot", 2), ("fewshot", 0)])
@pytest.mark.parametrize("opening", ["shared", "typed"])
def test_equals_enumeration(kind: str, mode: str, n_support: int, opening: str) -> None:
    # much noise in the transition world: one with a certain posterior would hide a mistake
    table, world = generate(replace(TINY, kind=kind, noise=0.7 if kind == "transition" else None))
    world = typed_start(world) if opening == "typed" else world
    log = Log(table)
    rows = [0, 3, 4, 11]
    exact = score(world, log, rows, mode, n_support)
    slow = enumerated(world, log, table, rows, mode, n_support)
    assert exact.shape == (4, 10, 9) and exact.dtype == np.float64
    assert np.abs(exact - slow).max() < 1e-13
    for fault in ("double", "leak", "labels", "start"):  # the comparison notices each mistake it is there for
        if fault == "start" and opening == "shared":
            continue  # nothing to notice: the opening says nothing about the type
        if fault in ("double", "labels") and (mode == "zeroshot" or n_support == 0):
            continue  # mistakes about the support
        if fault == "leak" or n_support == 5:
            assert np.abs(exact - enumerated(world, log, table, rows, mode, n_support, fault)).max() > 1e-3, fault


def test_closed_form_with_two_types() -> None:
    """One session a, b, c: odds of the two types after a -> b are their probabilities of b; c mixes by these odds."""
    spec = WorldSpec(kind="transition", n_users=1, n_items=5, n_types=2, min_sessions=1, max_sessions=1)
    of_type = np.zeros((2, 5, 5))
    of_type[:, 0, 1:] = [[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]]
    of_type[:, 1, [0, 2, 3, 4]] = [[0.4, 0.2, 0.2, 0.2], [0.1, 0.6, 0.1, 0.2]]
    of_type[:, 2:, :2] = 0.5
    world = World(spec, of_type, np.full((2, 5), 0.2), np.zeros(1, np.int64))
    names = [f"i{n}" for n in (0, 1, 2, 3, 4)]
    sessions = [0, 0, 0] + [1] * 5  # the second session only brings the other items into the vocabulary
    items = [names[n] for n in (0, 1, 2)] + [names[n] for n in (3, 0, 4, 0, 2)]
    table = pa.table({"user_id": ["u0000000"] * 3 + ["u0000001"] * 5, "item_id": items, "session_id": sessions})
    log = Log(table, n_support=1, n_query=1)
    few, zero = score(world, log, [0], "fewshot"), score(world, log, [0], "zeroshot")
    odds = np.array([0.7, 0.2]) / 0.9  # support pair a -> b and the query's prefix a, b are the same single transition
    by_hand = [0.1 * odds[1] + 0.4 * odds[0], 0, 0.2 * odds[0] + 0.6 * odds[1], 0.2 * odds[0] + 0.1 * odds[1], 0.2]
    assert np.abs(few[0, 0] - by_hand).max() < 1e-15 and np.abs(zero[0, 0] - by_hand).max() < 1e-15
    assert np.allclose(type_posterior(world, log, "test", [0])[0, 0], odds)  # type: ignore[arg-type]


def statistics(world: World, log: Log, mode: str) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(log.ranges.user))
    return score(world, log, rows, mode), log.labels(rows)


def calibration_z(scores: np.ndarray, label: np.ndarray) -> float:
    """Of the ten deciles of the best item's probability: the largest |hits - expected hits| in standard deviations."""
    best = scores.max(-1).ravel()
    hit = (scores.argmax(-1) + 1 == label).ravel()
    deviations = []
    for part in np.array_split(np.argsort(best, kind="stable"), 10):
        spread = np.sqrt((best[part] * (1 - best[part])).sum())
        deviations.append(abs(hit[part].sum() - best[part].sum()) / spread)
    return float(max(deviations))


def gain_z(scores: np.ndarray, other: np.ndarray, label: np.ndarray) -> float:
    """Mean log-likelihood gain of `scores` over `other`, users as units, in standard errors."""
    at = label[..., None] - 1
    gain = np.log(np.take_along_axis(scores, at, -1) / np.take_along_axis(other, at, -1))[..., 0].mean(1)
    return float(gain.mean() / gain.std(ddof=1) * np.sqrt(len(gain)))


def hit_rate(scores: np.ndarray, label: np.ndarray, k: int) -> float:
    own = np.take_along_axis(scores, label[..., None] - 1, -1)
    return float(((scores >= own).sum(-1) <= k).mean())


@KINDS
def test_probabilities_are_calibrated_and_cannot_be_beaten(kind: str) -> None:
    table, world = generate(WorldSpec(kind=kind, n_users=1000))
    log = Log(table)
    few, label = statistics(world, log, "fewshot")
    zero, _ = statistics(world, log, "zeroshot")
    assert np.allclose(few.sum(-1), 1, atol=1e-12)
    assert calibration_z(few, label) < 4 and calibration_z(zero, label) < 4
    assert gain_z(few, zero, label) > 5
    generator = np.random.default_rng(5)
    flatter = few**0.9 / (few**0.9).sum(-1, keepdims=True)
    sharper = few**1.1 / (few**1.1).sum(-1, keepdims=True)
    noisy = few * np.exp(0.3 * generator.standard_normal(few.shape))
    noisy /= noisy.sum(-1, keepdims=True)
    stranger = few[generator.permutation(len(few))]
    for other in (flatter, sharper, noisy, np.where(few == 0, 0, 0.5 * few + 0.5 * zero)):
        assert gain_z(few, other, label) > 2
    assert gain_z(few, stranger + 1e-9, label) > 5
    for k in (1, 5, 10):
        assert hit_rate(few, label, k) > hit_rate(zero, label, k) > hit_rate(stranger, label, k)
        assert hit_rate(few, label, k) >= hit_rate(noisy, label, k)


def test_planted_faults_break_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting an event twice costs likelihood; a leaked label wins more often than its probability says."""
    table, world = generate(WorldSpec(kind="preference", n_users=1000))
    log = Log(table)
    honest, label = statistics(world, log, "fewshot")
    with monkeypatch.context() as patch:
        patch.setattr(bayes, "_uncounted", lambda begin, counted_to: begin)  # every pair counts its whole prefix
        double, _ = statistics(world, log, "fewshot")
        assert gain_z(honest, double, label) > 5
    true_likelihood = bayes._log_likelihood

    def leaking(world: World, log: Any, to_world: Any, session: Any, first: Any, end: np.ndarray) -> np.ndarray:
        is_query = end.shape[1] == 10
        return true_likelihood(world, log, to_world, session, first, end + is_query)

    with monkeypatch.context() as patch:
        patch.setattr(bayes, "_log_likelihood", leaking)
        leaked, _ = statistics(world, log, "zeroshot")
        assert calibration_z(leaked, label) > 6


def test_laws_of_the_evidence() -> None:
    table, world = generate(replace(TINY, kind="transition"))
    log = Log(table)
    rows = np.arange(len(log.ranges.user))
    zero, few = score(world, log, rows, "zeroshot"), score(world, log, rows, "fewshot")
    assert np.array_equal(score(world, log, rows, "fewshot", 0), zero)
    assert np.array_equal(score(world, log, rows, "fewshot", 5), few)
    assert np.array_equal(score(world, log, rows[::-1]), few[::-1])
    assert score(world, log, []).shape == (0, 10, 9)
    # what happens at and after a query's label changes nothing in its scores
    first = log.ranges.first_pair + log.ranges.n_support
    changed = Log(table)
    for query in first + 6:
        end = changed.pair_event[query]
        near = set(changed.item[end - 1 : end + 2].tolist())  # a repeat would be impossible, and refused
        changed.item[end] = min(set(range(1, 10)) - near)
    assert np.array_equal(score(world, changed, rows)[:, :7], few[:, :7])
    assert not np.array_equal(score(world, changed, rows), few)
    # one type: nothing to infer, the support is worthless
    single_table, single = generate(replace(TINY, n_types=1))
    log = Log(single_table)
    assert np.array_equal(score(single, log, [0, 1], "zeroshot"), score(single, log, [0, 1], "fewshot"))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table, world = generate(TINY)
    log = Log(table)
    rows = np.arange(len(log.ranges.user))
    whole = score(world, log, rows)
    monkeypatch.setattr(bayes, "CHUNK_NUMBERS", 3 * 10 * 9)
    assert np.array_equal(score(world, log, rows), whole)


def test_impossible_items_get_nothing_and_certainty_is_exact() -> None:
    """Without noise a transition world is deterministic given the type: probabilities 0 enter the evidence."""
    table, world = generate(replace(TINY, kind="transition", noise=0.0))
    log = Log(table)
    few, label = statistics(world, log, "fewshot")
    assert np.isfinite(few).all() and np.allclose(few.sum(-1), 1)
    assert (np.take_along_axis(few, label[..., None] - 1, -1) > 0).all()


def test_twelve_hundred_users_are_scored_in_seconds() -> None:
    table, world = generate(WorldSpec(n_users=1300))
    log = Log(table)
    rows = np.arange(1200)
    begin = time.perf_counter()
    score(world, log, rows)
    assert time.perf_counter() - begin < 5  # measured: 0.2 s


def test_a_vocabulary_without_some_items_has_no_column_for_them() -> None:
    table, world = generate(replace(TINY, n_items=30))
    whole = Log(table)
    # an item that only ever stands as the last label of its episode is evidence for nobody
    last = {row["item_id"] for row in table.to_pylist()}
    for candidate in sorted(last):
        log = Log(table, unknown=frozenset({candidate}))
        rows = [
            row
            for row in range(len(log.ranges.user))
            if -1
            not in log.item[
                np.arange(log.pair_begin[log.ranges.first_pair[row]], log.pair_event[log.ranges.first_pair[row] + 14])
            ]
        ]
        if rows:
            break
    column = whole.vocabulary.index(candidate)
    assert np.array_equal(score(world, log, rows), np.delete(score(world, whole, rows), column, axis=-1))
    evidence = [row for row in range(len(log.ranges.user)) if row not in rows]
    with pytest.raises(DataError, match=r"dataset synthetic: .* no training user has.*raise dataset\.world\.n_users"):
        score(world, log, evidence)


def test_refusals() -> None:
    table, world = generate(TINY)
    log = Log(table)
    with pytest.raises(ConfigError, match="mode: few-shot: is not one of zeroshot, fewshot -- take fewshot"):
        score(world, log, [0], "few-shot")
    for n in (-1, 6):
        with pytest.raises(ConfigError, match=r"n_support: -?\d: must lie in 0\.\.5"):
            score(world, log, [0], "fewshot", n)
    _, other = generate(replace(TINY, n_items=8))
    with pytest.raises(DataError, match="is no item of the world"):
        score(other, log, [0])
    with pytest.raises(DataError, match="is longer than 2"):
        score(replace(world, spec=replace(TINY, min_events=2, max_events=2)), log, [0, 1, 2])
    impossible = replace(world, next_item=np.zeros_like(world.next_item))
    with pytest.raises(DataError, match="have probability 0 under every type"):
        score(impossible, log, [0])
