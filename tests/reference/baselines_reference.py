"""The baseline panel a second time, slow and obvious: lists, sets and dictionaries, one query after another.

A row gives every item a key, a tuple that is larger the better the item stands; `place` is where it stands, equal keys
together. A question knows its events by (session, position), so what a history holds is a set of events.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.baselines.log import TrainingLog
from metarec.ragged import Ragged, running

Event = tuple[int, int]  # session, position
UNKNOWN = -1


@dataclass
class Question:
    """Events of the prefix and of the support of one query of one user."""

    user: int
    query: int
    prefix: list[Event]
    support: list[Event]


@dataclass
class Small:
    """Sessions [(item, time), ...] in stored order, the first `n_train` of training users; and what is asked."""

    n_items: int
    has_clock: bool
    sessions: list[list[tuple[int, int]]]
    n_train: int
    questions: list[Question]
    users: list[list[int]]  # of training: the numbers of each one's sessions
    log: TrainingLog
    asked: Asked

    def items(self, events: list[Event]) -> list[int]:
        """Known items of events, in time order."""
        found = [self.sessions[session][position][0] for session, position in sorted(events)]
        return [item for item in found if item != UNKNOWN]

    def only(self, user: int) -> Asked:
        """What is asked of one user."""
        t, n = self.asked.user.tolist().index(user), self.asked.n_query
        rows, own = np.arange(t * n, (t + 1) * n), self.asked.support[t]
        prefix = self.asked.prefix
        return Asked(
            np.array([user]), n, Ragged(prefix.gather(rows), running(prefix.sizes[rows])),
            Ragged(own, np.array([0, len(own)])), self.asked.before[rows],
        )  # fmt: skip

    @property
    def training(self) -> list[list[tuple[int, int]]]:
        return self.sessions[: self.n_train]

    @property
    def popularity(self) -> Counter[int]:
        return Counter(item for session in self.training for item, _ in session if item != UNKNOWN)


def small(n_items: int, sessions: list[list[tuple[int, int]]], users: list[list[int]], n_train_users: int, n_support: int,
          n_query: int, has_clock: bool = True) -> Small:  # fmt: skip
    """`users`: the numbers of each one's sessions. Asked are the last pairs of those who have enough."""
    item = np.array([item for session in sessions for item, _ in session], dtype=np.int32)
    time = np.array([time for session in sessions for _, time in session], dtype=np.int64)
    start = np.cumsum([0, *map(len, sessions)])
    pairs = [(s, p) for s, session in enumerate(sessions) for p in range(1, len(session))]
    begin = np.array([start[s] for s, _ in pairs], dtype=np.int64)
    event = np.array([start[s] + p for s, p in pairs], dtype=np.int64)
    n_train = sum(map(len, users[:n_train_users]))
    of_train = sum(s < n_train for s, _ in pairs)
    user, support, query, questions = [], [], [], []
    for number, own in enumerate(users[n_train_users:], n_train_users):
        numbers = [n for n, (s, _) in enumerate(pairs) if s in own][-n_support - n_query :]
        if len(numbers) < n_support + n_query:
            continue
        user.append(number)
        support.append(numbers[:n_support])
        query.append(numbers[n_support:])
        seen = {(s, p) for s, last in (pairs[n] for n in numbers[:n_support]) for p in range(last + 1)}
        for place, (s, last) in enumerate(pairs[n] for n in numbers[n_support:]):
            questions.append(Question(number, place, [(s, p) for p in range(last)], sorted(seen)))
    first, last = start[:n_train], start[1 : n_train + 1]
    owner = np.repeat(np.arange(n_train_users), [len(own) for own in users[:n_train_users]])
    log = TrainingLog(item, time, has_clock, first, last, begin[:of_train], event[:of_train], n_items, owner)
    asked = Asked.of_pairs(
        item, begin, event, np.array(user, np.int64), np.array(support, np.int64).reshape(len(user), n_support),
        np.array(query, np.int64).reshape(len(user), n_query),
    )  # fmt: skip
    return Small(n_items, has_clock, sessions, n_train, questions, users[:n_train_users], log, asked)


def spelt(training: str, asked: str, n_support: int = 0, n_query: int = 1, n_items: int = 5) -> Small:
    """Sessions as words: a letter an item, '-' an unknown one, a letter later a moment later. One user is asked."""
    words = [*training.split(), *asked.split()]
    start = np.cumsum([0, *map(len, words)]).tolist()
    sessions = [
        [(ord(c) - 96 if c != "-" else UNKNOWN, begin + place) for place, c in enumerate(word)]
        for begin, word in zip(start, words, strict=False)
    ]
    n_train = len(training.split())
    users = [[number] for number in range(n_train)] + [list(range(n_train, len(words)))]
    return small(n_items, sessions, users, n_train, n_support, n_query)


@st.composite
def smalls(draw: st.DrawFn) -> Small:
    """Up to 9 items, 3-6 training users and 2-3 others of 1-3 sessions; unknown items, equal times, repeats all occur."""
    n_items = draw(st.integers(1, 9))
    names = [*range(1, n_items + 1), *range(1, n_items + 1), UNKNOWN]
    n_train, n_others = draw(st.integers(3, 6)), draw(st.integers(2, 3))
    sessions: list[list[tuple[int, int]]] = []
    users: list[list[int]] = []
    for _ in range(n_train + n_others):
        own = draw(st.lists(st.lists(st.sampled_from(names), min_size=2, max_size=7), min_size=1, max_size=3))
        time = draw(st.integers(0, 9))
        users.append([])
        for items in own:
            users[-1].append(len(sessions))
            sessions.append([])
            for item in items:
                time += draw(st.integers(0, 2))
                sessions[-1].append((item, time))
    k, q, has_clock = draw(st.integers(0, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    return small(n_items, sessions, users, n_train, k, q, has_clock)


def places(keys: list[Any]) -> list[int]:
    """Where every key stands among the different ones, the lowest at 0."""
    order = sorted(set(keys))
    return [order.index(key) for key in keys]


def nine_digits(votes: dict[int, float]) -> dict[int, float]:
    top = max(votes.values(), default=1.0)
    return {item: round(vote / top, 9) for item, vote in votes.items() if vote > 0}


def check(name: str, slow: Callable[..., list[Any]], s: Small, **options: Any) -> None:
    """A row puts the items where its slow version, (small, question, options) -> keys, has them."""
    row = BASELINES[name]
    if row.why_not(s.has_clock, s.n_items) or not s.popularity:
        return  # refused (test_baseline.py), or there is nothing to learn from
    scores = row(s.log, **options)(s.asked)
    assert scores.dtype == np.float64
    assert scores.shape == (len(s.asked), s.asked.n_query, s.n_items)
    for q, found in zip(s.questions, scores.reshape(-1, s.n_items), strict=True):
        assert places(found.tolist()) == places(slow(s, q, **options))


# --- rows: (small, question, options) -> a key for each item, item 1 first ----------------------------------------------


def popularity(s: Small, q: Question) -> list[Any]:
    return [s.popularity[item] for item in range(1, s.n_items + 1)]


def leaky_popularity(s: Small, q: Question) -> list[Any]:
    return [sum(1 for other in s.log.item.tolist() if other == item) for item in range(1, s.n_items + 1)]


def recent_popularity(s: Small, q: Question, share: float) -> list[Any]:
    events = [(time, item) for session in s.training for item, time in session if item != UNKNOWN]
    wanted = math.ceil(share * len(events))
    since = sorted((time for time, _ in events), reverse=True)[wanted - 1]
    recent = Counter(item for time, item in events if time >= since)
    return [(recent[item], s.popularity[item]) for item in range(1, s.n_items + 1)]


def repeat_last(s: Small, q: Question) -> list[Any]:
    last = {item: place for place, item in enumerate(s.items(q.prefix))}
    return [(last.get(item, -1), 0 if item in last else s.popularity[item]) for item in range(1, s.n_items + 1)]


def frequent_prefix(s: Small, q: Question) -> list[Any]:
    counts = Counter(s.items(q.prefix))
    return [(counts[item], s.popularity[item]) for item in range(1, s.n_items + 1)]


def frequent_support(s: Small, q: Question, decay: float) -> list[Any]:
    history = s.items(list({*q.prefix, *q.support}))
    last = {item: place for place, item in enumerate(history)}
    votes: dict[int, float] = {}
    for age, item in enumerate(reversed(history)):
        votes[item] = votes.get(item, 0.0) + decay**age
    votes = nine_digits(votes)
    return [
        (votes.get(item, 0.0), last.get(item, -1), 0 if item in last else s.popularity[item])
        for item in range(1, s.n_items + 1)
    ]


def markov(s: Small, q: Question, window: int, smoothing: float) -> list[Any]:
    """The scores themselves."""
    total = sum(s.popularity.values())
    scores = [smoothing * s.popularity[item] / max(total, 1) for item in range(1, s.n_items + 1)]
    prefix = s.items(q.prefix)
    for session in s.training if prefix else []:
        known = [item for item, _ in session if item != UNKNOWN]
        for i, item in enumerate(known):
            for j in range(i + 1, min(i + window, len(known) - 1) + 1):
                if item == prefix[-1]:
                    scores[known[j] - 1] += 1 / (j - i)
    return scores


def newest(s: Small) -> list[set[int]]:
    """Item sets of the training sessions with a known item, the newest first."""
    rows = []
    for number, session in enumerate(s.training):
        known = [(item, time) for item, time in session if item != UNKNOWN]
        if known:
            rows.append((known[-1][1] if s.has_clock else 0, number, {item for item, _ in known}))
    return [items for _, _, items in sorted(rows, key=lambda row: row[:2], reverse=True)]


def session_knn(s: Small, q: Question, k: int, sample_size: int, similarity: str, support: bool,
                repeats: bool) -> list[Any]:  # fmt: skip
    own = set(s.items(list({*q.prefix, *q.support} if support else q.prefix)))
    near = []
    for other in [other for other in newest(s) if own & other][:sample_size]:
        common = len(own & other)
        cosine = common / math.sqrt(len(own) * len(other))
        near.append((cosine if similarity == "cosine" else common / len(own | other), other))
    near.sort(key=lambda row: round(row[0], 10), reverse=True)  # stable, reverse too
    votes: dict[int, float] = {}
    for similar, other in near[:k]:
        for item in other:
            votes[item] = votes.get(item, 0.0) + similar * (repeats or item not in own)
    return over_popularity(s, votes)


def v_sknn(s: Small, q: Question, k: int, sample_size: int, weighting: str, weighting_score: str, idf_weighting: float,
           support: bool, repeats: bool) -> list[Any]:  # fmt: skip
    history = s.items(list({*q.prefix, *q.support} if support else q.prefix))
    n, every = len(history), newest(s)

    def weight(step: int) -> float:  # 1 = the last event
        linear = max(1 - 0.1 * (step - 1), 0)
        part = (n - step + 1) / n
        log = 1 / math.log10(step - 1 + 1.7)
        return {"same": 1, "linear": linear, "div": part, "log": log, "quadratic": part**2}[weighting]

    def decay(step: int) -> float:
        linear, log = max(1 - 0.1 * step, 0), 1 / math.log10(step + 1.7)
        return {"same": 1, "linear": linear, "div": 1 / step, "log": log, "quadratic": 1 / step**2}[weighting_score]

    steps: dict[int, int] = {}
    for step, item in enumerate(reversed(history), 1):
        steps.setdefault(item, step)
    near = []
    for other in [other for other in every if other & set(steps)][:sample_size]:
        similar = sum(weight(step) for item, step in steps.items() if item in other)
        near.append((similar, min(step for item, step in steps.items() if item in other), other))
    near.sort(key=lambda row: round(row[0], 10), reverse=True)
    votes: dict[int, float] = {}
    for similar, step, other in near[:k]:
        for item in other:
            idf = math.log(len(every) / sum(item in session for session in every))
            votes[item] = votes.get(item, 0.0) + similar * decay(step) * (1 + idf_weighting * idf) * (
                repeats or item not in steps
            )
    return over_popularity(s, votes)


def over_popularity(s: Small, votes: dict[int, float]) -> list[Any]:
    levels = nine_digits(votes)
    return [(levels.get(item, -1.0), s.popularity[item]) for item in range(1, s.n_items + 1)]


def ridge(x: Any, l2: float) -> Any:
    """[V, V]: min ||X - X B||^2 + l2 ||B||^2 with a zero diagonal, column by column: item j from the others."""
    n = x.shape[1]
    out = np.zeros((n, n))
    for j in range(n):
        others = [i for i in range(n) if i != j]
        rows = np.vstack([x[:, others], math.sqrt(l2) * np.eye(n - 1)])
        out[others, j] = np.linalg.lstsq(rows, np.concatenate([x[:, j], np.zeros(n - 1)]), rcond=None)[0]
    return out


def binary(s: Small) -> Any:
    """[training users, V]: who had what."""
    x = np.zeros((len(s.users), s.n_items))
    for row, own in zip(x, s.users, strict=True):
        for item in s.items([(session, place) for session in own for place in range(len(s.sessions[session]))]):
            row[item - 1] = 1.0
    return x


def ease(s: Small, q: Question, l2: float, support: bool, repeats: bool) -> list[Any]:
    history = set(s.items(list({*q.prefix, *q.support} if support else q.prefix)))
    weights = ridge(binary(s), l2)
    score = [sum(weights[own - 1, item] for own in history) for item in range(s.n_items)]
    top = max(1e-6, *map(abs, score))  # lstsq leaves 1e-17 in the place of 0
    return [
        (repeats or item not in history, round(score[item - 1] / top, 9) * (repeats or item not in history),
         s.popularity[item])
        for item in range(1, s.n_items + 1)
    ]  # fmt: skip


def pair_knn(s: Small, q: Question) -> list[Any]:
    """As published, over lists: unknown events are made items of their own."""

    def last(events: list[tuple[int, int]], name: str) -> set[Any]:
        return {(item if item != UNKNOWN else f"{name}{place}") for place, (item, _) in enumerate(events[-3:])}

    pairs = []
    for session in s.training:
        for place in range(1, len(session)):
            if session[place][0] != UNKNOWN:
                pairs.append((last(session[:place], "training "), session[place][0]))
    own = last([s.sessions[session][position] for session, position in q.prefix], "query ")
    similarity = [len(own & other) / len(own | other) for other, _ in pairs]
    votes: dict[int, float] = {}
    for place in sorted(range(len(pairs)), key=lambda place: -similarity[place])[:100]:
        target = pairs[place][1]
        votes[target] = votes.get(target, 0.0) + similarity[place]
    ranked = sorted(votes, key=lambda item: -votes[item])
    ranked += [item for item, _ in Counter(target for _, target in pairs).most_common() if item not in votes]
    ranked += [item for item in range(1, s.n_items + 1) if item not in ranked]
    return [-ranked.index(item) for item in range(1, s.n_items + 1)]
