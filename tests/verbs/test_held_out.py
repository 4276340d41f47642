"""Users kept from pretraining: who they are, that pretraining reads none of their events, and that episodes are theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference.tiny_runs import Work, metrics, tiny

from metarec import build
from metarec.config.overrides import check_words
from metarec.data.episodes import EpisodeRanges, held_out, rows_of
from metarec.errors import ConfigError
from metarec.pretrain import training_pieces


def ranges(n: int) -> EpisodeRanges:
    return EpisodeRanges(np.arange(n) * 10, np.arange(n) * 100, np.arange(n) % 3 + 1, 1, 2, 3)


def test_a_share_of_the_users_drawn_by_the_seed_alone() -> None:
    found = held_out(ranges(40), 0.25, 3)
    assert len(found) == len(set(found.tolist())) == 10
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, held_out(ranges(40), 0.25, 3))
    assert not np.array_equal(found, held_out(ranges(40), 0.25, 4))
    assert len(held_out(ranges(40), 0.001, 3)) == 1
    with pytest.raises(ConfigError, match=r"pretrain\.hold_out: 0\.99: is all of the 40 training users"):
        held_out(ranges(40), 0.99, 3)
    own = rows_of(ranges(40), found)
    assert own.user.tolist() == [10 * row for row in found]
    assert own.n_windows.tolist() == [row % 3 + 1 for row in found]


def bench(*words: str) -> Any:
    (job,) = check_words("train", [*tiny(*words), *words]).jobs
    config: Any = job.config
    on = build.hardware(config.hardware)
    return config, build.bench(config, config.evaluation, build.data(config, config.dataset, lambda line: None), on)


@pytest.mark.parametrize("history", ["sessions", "user"])
def test_pretraining_reads_no_event_of_theirs_and_every_event_of_the_others(history: str, work: Work) -> None:
    words = ("pretrain.hold_out=0.3", f"dataset.history={history}", f"cache_dir={work.cache}")
    config, own = bench(*words)
    prepared, stream = own.prepared, own.batcher.stream
    assert len(own.unread) == round(0.3 * len(prepared.episodes("train").user))
    every = training_pieces(prepared, config.model.max_len, 64, 1, stream)
    some = training_pieces(prepared, config.model.max_len, 64, 1, stream, own.unread)
    users = np.repeat(np.arange(prepared.n_users), np.diff(prepared.user_sessions))
    owner = np.repeat(users, np.diff(prepared.session_offsets))  # of every event
    if stream is not None:
        owner_of_token = np.full(len(stream.item), -1)
        owner_of_token[stream.at(np.arange(len(owner)))] = owner
        owner = owner_of_token

    def read(pieces: Any) -> list[int]:
        spans = zip(pieces.start, pieces.last, strict=True)
        return sorted({int(event) for begin, end in spans for event in range(begin, end) if owner[event] >= 0})

    kept = [event for event in read(every) if owner[event] not in set(own.unread.tolist())]
    assert read(some) == kept
    assert len(kept) < len(read(every))


def test_episodes_of_training_are_theirs_alone(work: Work) -> None:
    config, own = bench("pretrain.hold_out=0.3", f"cache_dir={work.cache}")
    seen = {int(u) for step in range(6) for b in own.training_batches(config.train, 1, step) for u in b.user}
    assert seen <= set(own.unread.tolist())
    assert len(seen) > 3
    assert np.array_equal(bench(f"cache_dir={work.cache}")[1].unread, [])


def test_a_run_with_users_held_out_has_other_weights_and_its_figures_come_again(work: Work) -> None:
    run = work.train("pretrain.hold_out=0.4", "evaluation.panel=none")
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]
    plain = work.train("evaluation.panel=none")
    assert metrics(run)["metrics"]["pretrained"] != metrics(plain)["metrics"]["pretrained"]
