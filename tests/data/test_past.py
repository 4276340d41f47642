"""More of a user's history: whose pairs, which, and what stands where a user has fewer than another of his batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.small_episodes import small_log
from reference.tiny_runs import tiny

from metarec import build
from metarec.config.overrides import check_words
from metarec.data.past import Past, filled

LOG = small_log(5, n_users=6, n_pairs=9, max_len=4)
USER = np.arange(6)
MIDDLE = USER * 9 + 7  # the last two pairs are the query
FIRST = MIDDLE - np.array([7, 1, 4, 7, 2, 5])


def past(chunk: int = 4) -> Past:
    return Past(LOG.batcher, USER, FIRST, MIDDLE, 2, chunk, torch.device("cpu"))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_rectangle_holds_every_range_at_its_end_and_is_rising(spans: list[tuple[int, int]]) -> None:
    first = np.array([begin for begin, _ in spans])
    found, real = filled(first, first + np.array([count for _, count in spans]))
    assert found.shape == real.shape == (len(spans), max(count for _, count in spans))
    for row, there, (begin, count) in zip(found, real, spans, strict=True):
        assert row[there].tolist() == list(range(begin, begin + count))
        assert set(row[~there].tolist()) <= {begin}
        assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_pairs_have_their_own_targets_and_what_is_filled_up_has_none(chunk: int) -> None:
    done = 0
    for batch in past(chunk).batches():
        for task in range(batch.n_tasks):
            user = int(batch.user[task])
            assert user == USER[done]
            wanted = [target for _, target in LOG.expand(np.arange(FIRST[user], MIDDLE[user]))]
            width = batch.support.target.shape[1]
            assert batch.support.target[task].tolist() == [0] * (width - len(wanted)) + wanted
            asked = [target for _, target in LOG.expand(np.arange(MIDDLE[user], MIDDLE[user] + 2))]
            assert batch.query.target[task].tolist() == asked
            done += 1
    assert done == len(past(chunk)) == 6


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 6), (8, [2, 1, 1, 1, 1]), (14, [3, 2, 1]), (42, [6])])
def test_a_batch_has_at_most_so_many_pairs_but_one_user_at_least(most: int, sizes: list[int]) -> None:
    batches = list(replace(past(6).by_length(), most=most).batches())  # of 1, 2, 4, 5, 7, 7 pairs
    assert [batch.n_tasks for batch in batches] == sizes
    assert torch.cat([batch.user for batch in batches]).tolist() == [1, 4, 2, 5, 0, 3]


def test_filling_up_adds_no_sequence_and_no_event() -> None:
    (together,) = past(6).batches()
    alone = [next(iter(past().of(np.array([row])).batches())) for row in range(6)]
    for task, one in enumerate(alone):
        whole: Any = together.support
        own: Any = one.support
        assert sorted(x for x in whole.sequences.lengths[task].tolist() if x) == sorted(
            x for x in own.sequences.lengths[0].tolist() if x
        )
        assert [x for x in whole.sequences.items[task].tolist() if x] == [
            x for x in own.sequences.items[0].tolist() if x
        ]


def test_by_length_keeps_users_with_their_pairs() -> None:
    ordered = past().by_length()
    assert ordered.pairs.tolist() == [1, 2, 4, 5, 7, 7]
    assert ordered.user.tolist() == [1, 4, 2, 5, 0, 3]  # equal ones in their order
    assert (ordered.first == FIRST[ordered.user]).all()


@pytest.fixture(scope="module", params=["", "dataset.split.by=leave_one_out", "pretrain.hold_out=0.3"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    given_words = [request.param] if request.param else []
    words = [*tiny(*given_words), *given_words, f"cache_dir={tmp_path_factory.mktemp('cache')}"]
    if "leave_one_out" in request.param:  # one query pair, and few pairs a user
        words += ["dataset.episodes.n_query=1"]
    (job,) = check_words("train", words).jobs
    config: Any = job.config
    on = build.hardware(config.hardware)
    return build.bench(config, config.evaluation, build.data(config, config.dataset, lambda line: None), on)


@pytest.mark.parametrize("split", ["val", "test"])
def test_of_users_to_be_judged_it_is_aligned_with_their_episodes(split: str, bench: Any) -> None:
    episodes, more = bench.episodes(split), bench.past(split)
    assert (more.user == episodes.user).all()
    support, query = episodes.pairs()
    assert (more.middle == query[:, 0]).all()
    assert (more.first <= support[:, 0]).all()
    assert (more.first < support[:, 0]).any()
    assert (more.first == bench.prepared.user_pairs[more.user]).all()  # all he has
    for short, long in zip(episodes.batches(), more.batches(), strict=True):
        assert torch.equal(short.user, long.user)
        assert torch.equal(short.query.target, long.query.target)
        assert torch.equal(short.support.target, long.support.target[:, -short.support.target.shape[1] :])
    some = bench.past(split, np.array([3, 1]), 7)
    assert (some.user == episodes.user[[3, 1]]).all()
    assert (some.pairs == np.minimum(more.pairs[[3, 1]], 7)).all()
    assert (some.middle == more.middle[[3, 1]]).all()


def test_of_training_users_nothing_is_seen_that_may_not_be_trained_on(bench: Any) -> None:
    more, prepared = bench.past("train"), bench.prepared
    begin, end = (np.asarray(part) for part in prepared.train_pairs)
    assert (more.first == begin[more.user]).all()
    assert (more.middle + more.n_query == end[more.user]).all()
    assert (more.pairs >= prepared.n_support).all()
    ranges = prepared.episodes("train")
    wanted = ranges.user if bench.held is None else ranges.user[bench.held]
    assert (more.user == wanted).all()
    assert (bench.held is None) == (len(more) == len(ranges.user))
    assert (bench.past("train", most=1).pairs == 1).all()
