"""Claim: V-SKNN over 200,000 sessions answers a query in about a millisecond on one core.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py                      # sample_size 1000 and 10000
    OMP_NUM_THREADS=1 python benchmarks/neighbours.py --sessions 20000     # smaller

The log: 200,000 sessions of 7 events on the mean, 20,000 items of Zipf popularity, one query for each prefix of 5 to 14
events of 64 sessions. Beside it, in the same run and on a tenth of the queries, the same neighbours and votes by sets and
dictionaries, as the authors' code finds them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from machine import alternate, finish, machine, medians

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.baselines.log import TrainingLog

N_ITEMS, USERS, QUERIES = 20_000, 64, 10


def made_up(n_sessions: int) -> tuple[TrainingLog, Asked]:
    rng = np.random.default_rng(0)
    length = np.minimum(2 + rng.geometric(0.2, n_sessions), 60)
    length[:USERS] = 20
    end = np.cumsum(length)
    weight = 1 / np.arange(1, N_ITEMS + 1) ** 0.9
    item = rng.choice(N_ITEMS, end[-1], p=weight / weight.sum()).astype(np.int32) + 1
    time = np.sort(rng.integers(0, 10**9, end[-1]))
    begin = end - length
    event = np.setdiff1d(np.arange(end[-1]), begin)
    first = np.repeat(begin, length - 1)
    log = TrainingLog(item, time, True, begin, end, first, event, N_ITEMS, np.arange(n_sessions))
    span = np.searchsorted(event, begin[:USERS] + 5)[:, None] + np.arange(QUERIES)
    return log, Asked.of_pairs(item, first, event, np.arange(USERS), span[:, :0], span)


class ByDictionaries:
    """V-SKNN with weights and decays `div`, as nested loops."""

    def __init__(self, log: TrainingLog) -> None:
        rows = [(log.item[b:e].tolist(), log.time[e - 1]) for b, e in zip(log.begin, log.end, strict=True)]
        self.items = [set(items) for items, _ in rows]
        self.time = [time for _, time in rows]
        self.holding: dict[int, set[int]] = defaultdict(set)
        for number, items in enumerate(self.items):
            for item in items:
                self.holding[item].add(number)

    def votes(self, history: list[int], k: int, sample_size: int) -> dict[int, float]:
        step = {item: len(history) - place for place, item in enumerate(history)}
        possible = set().union(*(self.holding[item] for item in step))
        sample = sorted(possible, key=lambda session: (self.time[session], session), reverse=True)[:sample_size]
        near = []
        for session in sample:
            common = [step[item] for item in step if item in self.items[session]]
            near.append((sum((len(history) - s + 1) / len(history) for s in common), min(common), session))
        near.sort(key=lambda row: round(row[0], 10), reverse=True)
        votes: dict[int, float] = defaultdict(float)
        for similar, latest, session in near[:k]:
            for item in self.items[session]:
                votes[item] += similar / latest
        return votes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    options = parser.parse_args()
    log, asked = made_up(options.sessions)
    slow, histories = ByDictionaries(log), [row.tolist() for row in asked.prefixes]
    some = range(0, len(histories), 10)
    ratios, milliseconds = {}, {}
    for sample_size in (1_000, 10_000):
        score = BASELINES["v_sknn"](log, k=100, sample_size=sample_size)
        found = score(asked).reshape(-1, N_ITEMS)
        for number in some:  # the same neighbours before anything is timed
            votes = slow.votes(histories[number], 100, sample_size)
            assert set(votes) == set((np.flatnonzero(found[number] >= 1) + 1).tolist())
        seconds = alternate(
            {
                "index": lambda score=score: score(asked),
                "dictionaries": lambda size=sample_size: [slow.votes(histories[n], 100, size) for n in some],
            },
            options.repeats,
        )
        middle = medians(seconds)
        index, plain = 1e3 * middle["index"] / len(histories), 1e3 * middle["dictionaries"] / len(some)
        milliseconds[f"sample {sample_size}"] = {"index": round(index, 3), "dictionaries": round(plain, 3)}
        ratios[f"dictionaries/index, sample {sample_size}"] = round(plain / index, 1)
    finish({"milliseconds_a_query": milliseconds, "ratios": ratios, "machine": machine()}, options.record)


if __name__ == "__main__":
    main()
