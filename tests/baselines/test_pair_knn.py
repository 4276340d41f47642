"""The published Session-KNN row of MARS, from the real file: HR@1/5/10 29.41/37.06/38.82, NDCG@10 34.06, MRR 32.81.

Published ranks are taken over every item of the log, also those that no training user has; here such a target is a miss.
79 of the 170 targets are of that kind: none of them is in a top ten, so only the MRR tells the two apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.baselines.log import TrainingLog
from metarec.data.prepare import prepare
from metarec.data.spec import DatasetSpec, EpisodeShape, Sessions, Split
from metarec.data.store import Prepared, train_sessions
from metarec.metrics import METRICS
from metarec.metrics.ranks import rank_of_target

PUBLISHED = {"hr@1": 29.41, "hr@5": 37.06, "hr@10": 38.82, "ndcg@10": 34.06}


@pytest.fixture(scope="module")
def mars(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    spec = DatasetSpec(
        name="mars", path="mars/explicit_en.parquet", in_data_dir=True, duplicates="drop", ties="row",
        sessions=Sessions(by="gap", gap_minutes=30, min_events=2), episodes=EpisodeShape(5, 10),
        split=Split(by="user_disjoint", fractions=[0.4, 0.2, 0.4], seed=20260107),
    )  # fmt: skip
    return prepare(spec, data_dir=data_dir, cache_dir=tmp_path_factory.mktemp("mars"))


def metrics(mars: Prepared, item: np.ndarray, n_items: int, ties: str) -> dict[str, float]:
    """In percent, over the 170 query targets, with the items numbered as in `item`."""
    begin, end = train_sessions(mars)
    of_user = [np.arange(first, last) for first, last in zip(*mars.train_pairs, strict=True)]
    pairs = np.concatenate(of_user)
    assert len(pairs) == 693
    log = TrainingLog(
        item, mars.time, mars.has_clock, begin, end, mars.pair_begin[pairs], mars.pair_event[pairs], n_items,
        np.arange(len(begin)),
    )  # fmt: skip
    test = mars.episodes("test")
    support = test.first_pair[:, None] + np.arange(5)
    query = test.first_pair[:, None] + np.arange(5, 15)
    asked = Asked.of_pairs(item, mars.pair_begin, mars.pair_event, test.user, support, query)
    target = torch.from_numpy(item[mars.pair_event[query]].astype(np.int64))
    rank = rank_of_target(torch.from_numpy(BASELINES["pair_knn"](log)(asked)), target, ties).numpy().ravel()
    assert len(rank) == 170
    return {name: 100 * float(metric(rank, n_items).mean()) for name, metric in METRICS.items()}


@pytest.mark.parametrize("ties", ["first", "conservative"])
def test_published_row_with_unknown_targets_as_misses(mars: Prepared, ties: str) -> None:
    found = metrics(mars, mars.item, mars.n_items, ties)
    assert {name: round(found[name], 2) for name in PUBLISHED} == PUBLISHED
    assert round(found["mrr"], 2) == 32.72


def test_published_row_over_every_item(mars: Prepared, data_dir: Path) -> None:
    """Items numbered as they first appear: a target that is none in training stands where its number puts it."""
    log = pd.read_parquet(data_dir / "mars/explicit_en.parquet")[["user_id", "item_id", "timestamp"]].drop_duplicates()
    log = log.sort_values(["user_id", "timestamp"], kind="stable")
    opens = (log.user_id != log.user_id.shift()) | (log.timestamp.diff() > 30 * 60)
    log = log[opens.groupby(opens.cumsum()).transform("size") >= 2]
    by_user = {str(user): own.item_id.tolist() for user, own in log.groupby("user_id")}
    ids = [item for user in mars.user_ids for item in by_user[user]]
    number = {item: place for place, item in enumerate(dict.fromkeys(ids), 1)}
    item = np.array([number[own] for own in ids])
    known = mars.item > 0
    assert [str(own) for own, is_known in zip(ids, known, strict=True) if is_known] == list(
        mars.item_ids[mars.item[known] - 1]
    )
    found = metrics(mars, item, len(number), "first")
    assert {name: round(found[name], 2) for name in (*PUBLISHED, "mrr")} == {**PUBLISHED, "mrr": 32.81}
