"""The split of users, the rules that `auto` stands for, and the sampler of episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.data import splits
from metarec.data.episodes import EpisodeRanges, last_pairs, sample, sliding_windows
from metarec.data.spec import Columns, DatasetSpec, Sessions, Split
from metarec.errors import ConfigError


def test_split_is_that_of_the_shuffled_list_of_ids() -> None:
    ids = [f"u{n:03d}" for n in range(378)]
    shuffled = list(ids)
    np.random.RandomState(20260107).shuffle(shuffled)
    split = splits.assign_users(378, [0.4, 0.2, 0.4], 20260107)
    assert [(split == code).sum() for code in range(3)] == [151, 75, 152]
    assert {ids[n] for n in np.flatnonzero(split == 0)} == set(shuffled[:151])
    assert {ids[n] for n in np.flatnonzero(split == 1)} == set(shuffled[151:226])


def test_split_of_a_seed_never_changes() -> None:
    assert splits.assign_users(10, [0.5, 0.2, 0.3], 1).tolist() == [0, 1, 0, 1, 0, 2, 0, 2, 2, 0]


def test_auto_rules() -> None:
    assert splits.session_rule(DatasetSpec(), True) == "gap"
    assert splits.session_rule(DatasetSpec(), False) == "user"
    assert splits.session_rule(DatasetSpec(columns=Columns(session="s")), True) == "column"
    assert splits.session_rule(DatasetSpec(source="synthetic"), False) == "column"
    assert splits.session_rule(DatasetSpec(sessions=Sessions(by="user")), True) == "user"
    assert splits.split_rule(DatasetSpec(), True) == "user_time"
    assert splits.split_rule(DatasetSpec(), False) == "user_disjoint"
    assert splits.split_rule(DatasetSpec(split=Split(by="leave_one_out")), False) == "leave_one_out"
    assert splits.split_rule(DatasetSpec(columns=Columns(split="fold")), True) == "column"
    assert (
        splits.split_rule(DatasetSpec(columns=Columns(split="fold"), split=Split(by="user_time")), True) == "user_time"
    )
    assert splits.split_rule(DatasetSpec(columns=Columns(split="fold"), source="synthetic"), False) == "user_disjoint"


def test_all_problems_are_found_together() -> None:
    spec = DatasetSpec(ties="never", split=Split(fractions=[0.7, 0.1, 0.3]), sessions=Sessions(min_events=1))
    keys = [problem.where for problem in splits.spec_problems(spec)]
    assert keys == ["dataset.ties", "dataset.sessions.min_events", "dataset.split.fractions"]
    assert splits.spec_problems(DatasetSpec()) == []


def test_leave_one_out_ends_before_the_last_but_one_target() -> None:
    # user 0: one sequence of 5; user 1: sessions of 3 and 2; user 2: one pair
    user_events, user_pairs = np.array([0, 5, 10, 12]), np.array([0, 4, 7, 8])
    pair_event = np.array([1, 2, 3, 4, 6, 7, 9, 11])
    end = splits.train_event_end("leave_one_out", np.zeros(3, np.int8), user_events, user_pairs, pair_event)
    assert end.tolist() == [3, 7, 12]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_sliding_windows_by_hand() -> None:
    user, begin, end = np.array([4, 7, 9]), np.array([0, 10, 20]), np.array([9, 12, 27])
    ranges = sliding_windows(user, begin, end, n_support=1, n_query=2, stride=2)
    assert ranges.user.tolist() == [4, 9]
    assert ranges.first_pair.tolist() == [0, 20]
    assert ranges.n_windows.tolist() == [4, 3]  # starts 0 2 4 6 of 9 pairs; 20 22 24 of 7
    assert ranges.n_episodes == 7
    last = last_pairs(user, begin, end, n_support=1, n_query=2)
    assert (last.user.tolist(), last.first_pair.tolist(), last.n_windows.tolist()) == ([4, 9], [6, 24], [1, 1])


def test_hash_is_of_the_episodes() -> None:
    one = ranges_of([3, 1])
    assert one.sha256 == ranges_of([3, 1]).sha256
    others = [ranges_of([3, 2]), ranges_of([3, 1], stride=2), ranges_of([3, 1], k=2)]
    assert len({other.sha256 for other in [one, *others]}) == 4


def ranges_of(n_windows: list[int], stride: int = 1, k: int = 1) -> EpisodeRanges:
    users = np.arange(len(n_windows))
    return EpisodeRanges(users, users * 1000, np.array(n_windows, dtype=np.int64), stride, k, 1)


# --- sampler ---------------------------------------------------------------------------------------------------------


def test_sampler_has_no_memory() -> None:
    """Property 12: the same (seed, step) gives the same episodes whatever was drawn before."""
    ranges = ranges_of([5, 1, 9, 30, 2], stride=3)
    for sampler in ("user", "window"):
        first = sample(ranges, seed=3, step=17, n_tasks=4, sampler=sampler)
        for step in range(40):
            sample(ranges, seed=3, step=step, n_tasks=4, sampler=sampler)
        again = sample(ranges, seed=3, step=17, n_tasks=4, sampler=sampler)
        assert [a.tolist() for a in first] == [a.tolist() for a in again]
        others = [sample(ranges, seed=s, step=t, n_tasks=4, sampler=sampler)[0].tolist() for s, t in ((4, 17), (3, 18))]
        assert first[0].tolist() not in others


def test_sampler_is_frozen() -> None:
    """A change of these numbers changes every training run."""
    ranges = ranges_of([5, 1, 9, 30, 2], stride=3)
    assert [a.tolist() for a in sample(ranges, seed=1, step=0, n_tasks=3)] == [[2006, 4000, 1000], [2, 4, 1]]
    assert [a.tolist() for a in sample(ranges, seed=1, step=0, n_tasks=3, sampler="window")] == [
        [3018, 3057, 0],
        [3, 3, 0],
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 4), st.data())
def test_sampler_draws_windows_that_exist(n_windows: list[int], n_tasks: int, stride: int, data: st.DataObject) -> None:
    ranges = ranges_of(n_windows, stride)
    sampler = data.draw(st.sampled_from(["user", "window"]))
    first, row = sample(ranges, seed=data.draw(st.integers(0, 2**40)), step=0, n_tasks=n_tasks, sampler=sampler)
    assert (first.dtype, row.dtype, first.shape, row.shape) == (np.int64, np.int64, (n_tasks,), (n_tasks,))
    place = first - ranges.first_pair[row]
    assert (place % stride == 0).all()
    assert ((place >= 0) & (place // stride < ranges.n_windows[row])).all()
    if sampler == "user" and n_tasks <= len(n_windows):
        assert len(set(row.tolist())) == n_tasks  # without replacement while it can


@pytest.mark.parametrize("sampler", ["user", "window"])
def test_sampler_is_uniform(sampler: str) -> None:
    """Chi-square over 4,000 steps of 2 tasks: users equally, or windows equally; then windows equally inside a user."""
    ranges = ranges_of([1, 2, 7])
    draws = [sample(ranges, seed=9, step=step, n_tasks=2, sampler=sampler) for step in range(4_000)]
    row = np.concatenate([r for _, r in draws])
    window = np.concatenate([f for f, _ in draws]) - ranges.first_pair[row]
    share = np.array([1, 1, 1]) / 3 if sampler == "user" else np.array([1, 2, 7]) / 10
    expected = share * len(row)
    assert (((np.bincount(row, minlength=3) - expected) ** 2) / expected).sum() < 13.8  # 0.1 % of chi-square, 2 degrees
    inside = np.bincount(window[row == 2], minlength=7)
    expected = np.full(7, inside.sum() / 7)
    assert (((inside - expected) ** 2) / expected).sum() < 22.5  # 0.1 %, 6 degrees
    assert (sampler == "window") == bool(((((np.bincount(row) - len(row) / 3) ** 2) / (len(row) / 3)).sum()) > 1_000)


def test_sampler_refuses() -> None:
    with pytest.raises(ConfigError, match="choose user or window"):
        sample(ranges_of([1]), seed=0, step=0, n_tasks=1, sampler="users")
    with pytest.raises(ConfigError, match=r"train\.meta_batch_size"):
        sample(ranges_of([1]), seed=0, step=0, n_tasks=0)
    with pytest.raises(ConfigError, match="no user has an episode"):
        sample(ranges_of([]), seed=0, step=0, n_tasks=1)
