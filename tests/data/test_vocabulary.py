"""dataset.vocabulary=all: items of the training users first, the others behind them, none unknown."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data.batches import Batcher
from metarec.data.prepare import prepare
from metarec.data.reliability import reliability_of
from metarec.data.spec import DatasetSpec, EpisodeShape, Sessions, Split
from metarec.data.store import Prepared, train_sessions


@pytest.fixture
def both(tmp_path: Path) -> tuple[Prepared, Prepared]:
    """The same log, with either vocabulary: 40 users, each with items of his own among common ones."""
    rng, rows = random.Random(3), ["user_id,item_id,timestamp"]
    for user in range(40):
        for n in range(12):
            item = f"own{user}_{rng.randint(0, 3)}" if rng.random() < 0.4 else f"i{rng.randint(0, 30)}"
            rows.append(f"u{user},{item},{1_600_000_000 + 100_000 * user + 60 * n}")
    log = tmp_path / "log.csv"
    log.write_text("\n".join(rows) + "\n")
    spec = DatasetSpec(
        path=str(log), sessions=Sessions(by="user"), split=Split(by="user_disjoint", fractions=[0.5, 0.2, 0.3]),
        episodes=EpisodeShape(2, 3),
    )  # fmt: skip
    made = [
        prepare(one, data_dir=None, cache_dir=tmp_path / "cache") for one in (spec, replace(spec, vocabulary="all"))
    ]
    return made[0], made[1]


def test_training_items_keep_their_numbers_and_the_others_follow_as_they_first_stand(
    both: tuple[Prepared, Prepared],
) -> None:
    training, whole = both
    assert training.fingerprint != whole.fingerprint
    assert (np.asarray(training.item) == -1).any()
    assert whole.given_vocabulary
    assert whole.n_read == training.n_items
    assert training.n_read is None
    assert not training.given_vocabulary
    known = np.asarray(training.item) > 0
    assert np.array_equal(whole.item[known], training.item[known])
    assert whole.item_ids[: training.n_items].tolist() == training.item_ids.tolist()
    others = [int(item) for item in np.asarray(whole.item)[~known]]
    assert list(dict.fromkeys(others)) == list(range(training.n_items + 1, whole.n_items + 1))


def test_training_looks_at_the_same_events(both: tuple[Prepared, Prepared]) -> None:
    training, whole = both
    for one, other in zip(train_sessions(training), train_sessions(whole), strict=True):
        assert np.array_equal(one, other)
    for split in ("train", "val", "test"):
        assert training.episodes(split).sha256 == whole.episodes(split).sha256
    assert whole.counts["unknown_target_share"]["test"] == 0
    assert training.counts["unknown_target_share"]["test"] > 0


def test_a_model_reads_the_same_and_is_asked_for_more(both: tuple[Prepared, Prepared]) -> None:
    """Prefixes and reliability of one are those of the other; targets outside the vocabulary have numbers."""
    training, _ = both
    batches = []
    for prepared in both:
        reliability = reliability_of(prepared)
        batcher = Batcher(
            np.asarray(prepared.item), np.asarray(prepared.pair_begin), np.asarray(prepared.pair_event), 50,
            reliability, n_read=prepared.n_read,
        )  # fmt: skip
        ranges = prepared.episodes("test")
        batches.append(batcher.episodes(ranges.user, ranges.first_pair, 2, 3))
    one, other = batches
    assert torch.equal(one.reliability, other.reliability)
    for part in ("support", "query"):
        known, every = getattr(one, part), getattr(other, part)
        assert torch.equal(known.sequences.items, every.sequences.items)
        assert torch.equal(known.at, every.at)
        assert torch.equal(known.target, torch.where(every.target > training.n_items, -1, every.target))
    assert (other.query.target > training.n_items).any()
