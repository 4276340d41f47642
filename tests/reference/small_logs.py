"""Small random logs, written to a file and prepared for real; and prepared data read back into raw ids."""

from __future__ import annotations

import atexit
import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from reference.prepare_reference import Row, prepare_reference

from metarec.data import store
from metarec.data.prepare import prepare
from metarec.data.spec import Columns, DatasetSpec, EpisodeShape, Sessions, Split
from metarec.data.store import Prepared
from metarec.errors import DataError

START = 1_600_000_000  # seconds
SPLIT = ["train", "test", "train", "train", "val", "train", "test", "valid", "train"]  # of nine users
MINUTE = 60
ENGINE, COUNT = duckdb.connect, itertools.count()
ASKED = os.environ.get("METAREC_PROPERTY_EXAMPLES")
quick = settings(
    max_examples=int(ASKED or 25),
    deadline=None,
    derandomize=ASKED is None,  # the quick suite says the same every time
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failing example is small already; shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
properties = settings(quick, max_examples=int(ASKED or 300))  # of episodes: one takes up to a third of a second


@st.composite
def logs(draw: st.DrawFn, *, ties: bool = True, text_ids: bool | None = None) -> list[Row]:
    """5-9 users of 10-18 events in about 4 hours, 6 items: sessions, repeats, ties and duplicates all occur.

    Their split column has users to train and to test; in half of the logs some validate, under any of the three words.
    Without ``ties`` the times of a user are distinct.
    """
    as_text = draw(st.booleans()) if text_ids is None else text_ids
    names = draw(st.sampled_from([[3, 20, 100, 7, 55, -4, 0, 12, 9], [10, 2, 33, 4, 500, 6, 71, 8, 90]]))
    zeros = draw(st.booleans())  # leading zeros make ids text that sorts as text
    rows = []
    words = draw(st.sampled_from([["train", "test"], ["train", "val", "test"]]))
    for number, user in enumerate(names[: draw(st.integers(5, 9))]):
        word = words[number % len(words)] if number < 3 else draw(st.sampled_from(words))
        steps = draw(st.lists(st.integers(0 if ties else 1, 4), min_size=10, max_size=18))
        time = START + draw(st.integers(0, 60)) * MINUTE
        for step in steps:
            time += [0, 1, 7 * MINUTE, 30 * MINUTE, 30 * MINUTE + 1][step]
            drawn = draw(
                st.integers(0, 6 * 4 * 2 * 3 - 1)
            )  # at once: a draw of its own for each takes half of the time
            item, order, session = 5 * (1 + drawn % 6), drawn // 6 % 4, 1 + drawn // 24 % 2
            said = ["val", "valid", "validation"][drawn // 48] if word == "val" else word
            rows.append(Row(user, item, time * 1_000_000, order, session, split=said))
    rows = draw(st.permutations(rows))
    for place, row in enumerate(rows):
        row.place = place
        if as_text:
            row.user, row.item = (f"{'0' * zeros}{row.user}", f"{'0' * zeros}{row.item}")
    return rows


def example_log() -> list[Row]:
    """9 users of 24 events, five items in turn, a pause of more than half an hour after every fourth event."""
    rows = []
    for user in range(9):
        time = 1_600_000_000 + user * 600
        for n in range(24):
            time += 1801 if n % 4 == 0 else 60
            rows.append(Row(user, (n * (user % 3 + 1)) % 5, time * 1_000_000, n, n // 4, len(rows), SPLIT[user]))
    return rows


def shape(k: int = 2, q: int = 1, stride: int = 1, **options: Any) -> DatasetSpec:
    """Options that leave small logs some episodes."""
    split = Split(by=options.pop("by", "user_disjoint"), fractions=[0.4, 0.3, 0.3], time_quantiles=[0.35, 0.65])
    columns = options.pop("columns", Columns())
    if split.by == "column":
        columns = replace(columns, split="split")
    sessions = options.pop("sessions", Sessions())
    return DatasetSpec(
        duplicates=options.pop("duplicates", "drop"), episodes=EpisodeShape(k, q, stride), split=split,
        sessions=sessions, columns=columns, **options,
    )  # fmt: skip


def write_log(rows: list[Row], path: Path) -> None:
    columns = {
        "user_id": [row.user for row in rows],
        "item_id": [row.item for row in rows],
        "timestamp": [row.time // 1_000_000 for row in rows],
        "order": [row.order for row in rows],
        "session": [row.session for row in rows],
        "split": pa.array([row.split for row in rows], pa.string()),
    }
    pq.write_table(pa.table(columns), path)


class Scratch:
    """A connection to an empty database inside one engine that all small logs share: an engine of its own takes longer to
    start than a small log to prepare, and threads only get into each other's way."""

    _engine: Any = None

    def __init__(self, where: str, config: dict[str, Any]) -> None:
        if Scratch._engine is None:
            kept = {"preserve_insertion_order": config["preserve_insertion_order"]}
            Scratch._engine = ENGINE(where, config=kept | {"threads": 1})
            atexit.register(Scratch.end)
        self._name = f"scratch_{next(COUNT)}"
        self._connection = Scratch._engine.cursor()
        self._connection.execute(f"ATTACH ':memory:' AS {self._name}; USE {self._name}")

    @staticmethod
    def end() -> None:
        """Give the engine back; it says so at the end of the process if it is still held."""
        Scratch._engine.close()
        Scratch._engine = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> None:
        """Drop the database and, with the connection, what was temporary."""
        self._connection.execute(f"USE memory; DETACH {self._name}")
        self._connection.close()


def prepare_rows(rows: list[Row], spec: DatasetSpec) -> Prepared:
    """Prepare ``rows`` as a Parquet file; the directory outlives the call only as long as its maps are held."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        write_log(rows, path)
        spec.path = str(path)
        # a third of the time is waiting for the disk
        with patch.object(store, "sync"), patch.object(duckdb, "connect", Scratch):
            prepared = prepare(spec, data_dir=None, cache_dir=Path(folder))
        for lazy in ("user_ids", "item_ids", "funnel", "counts"):
            getattr(prepared, lazy)
        return prepared


def prepare_or_none(rows: list[Row], spec: DatasetSpec) -> Prepared | None:
    """None if a filter leaves too little, or the column nobody to train or test; every other failure is raised."""
    try:
        return prepare_rows(rows, spec)
    except DataError as error:
        if any(said in str(error) for said in ("0 events left", "dataset.episodes.n_support", "no user is t")):
            return None
        raise


def item_name(prepared: Prepared, index: int) -> str | None:
    """The id of an item index; None for an item outside the vocabulary."""
    return None if index < 0 else str(prepared.item_ids[index - 1])


def pair(prepared: Prepared, number: int) -> tuple[tuple[str | None, ...], str | None, int]:
    """(prefix, target, time of the target) of a pair, in ids."""
    begin, event = int(prepared.pair_begin[number]), int(prepared.pair_event[number])
    prefix = tuple(item_name(prepared, i) for i in prepared.item[begin:event])
    return prefix, item_name(prepared, prepared.item[event]), int(prepared.time[event])


def windows(prepared: Prepared, split: str) -> dict[str, list[list[tuple[tuple[str | None, ...], str | None, int]]]]:
    """All episodes of a split: user id -> windows -> pairs."""
    ranges = prepared.episodes(split)
    found = {}
    for user, first, n_windows in zip(ranges.user, ranges.first_pair, ranges.n_windows, strict=True):
        starts = [int(first) + n * ranges.stride for n in range(n_windows)]
        size = ranges.n_support + ranges.n_query
        found[str(prepared.user_ids[user])] = [[pair(prepared, p) for p in range(s, s + size)] for s in starts]
    return found


def columns_of_log() -> Columns:
    """The columns that `write_log` writes, with order and session mapped."""
    return Columns(order="order", session="session")


def assert_as_reference(prepared: Prepared | None, rows: list[Row], spec: DatasetSpec, rule: str, by: str) -> None:
    """Every event, session, split, pair, episode, item and count as the reference has it."""
    expected = prepare_reference(rows, spec, rule=rule, split_by=by)
    if prepared is None:
        assert not all(expected.episodes.values())
        return
    assert prepared.user_ids.tolist() == [str(u) for u in expected.pairs]
    assert prepared.item_ids.tolist() == [str(item) for item in expected.vocabulary]
    assert prepared.time_cuts == expected.cuts
    steps = {step["step"]: step["rows"] for step in prepared.funnel}
    assert {name: rows for name, rows in expected.steps.items() if name in steps} == {
        name: rows for name, rows in steps.items() if name in expected.steps
    }
    known = {str(item) for item in expected.vocabulary}

    def named(item: object) -> str | None:
        return str(item) if str(item) in known else None

    for number, user in enumerate(expected.pairs):
        first, last = prepared.user_sessions[number], prepared.user_sessions[number + 1]
        sessions = [
            [
                (item_name(prepared, prepared.item[e]), int(prepared.time[e]))
                for e in range(*prepared.session_offsets[[s, s + 1]])
            ]
            for s in range(first, last)
        ]
        assert sessions == [[(named(r.item), r.time) for r in s] for s in expected.sessions[user] if s]
        some = bool(sessions)
        code = {"train": 0, "val": 1, "test": 2}[expected.split[user]] if some else -1
        assert prepared.user_split[number] == code
        pairs = [pair(prepared, p) for p in range(*prepared.user_pairs[[number, number + 1]])]
        assert pairs == [(tuple(map(named, x)), named(y), t) for _, x, y, t in expected.pairs[user]]
        begin = prepared.session_offsets[first]
        assert prepared.train_event_end[number] - begin == len(expected.training_events[user])
        assert prepared.train_pairs[1][number] - prepared.train_pairs[0][number] == expected.n_train_pairs[user]
    for split, episodes in expected.episodes.items():
        flat = [episode for of_user in windows(prepared, split).values() for episode in of_user]
        assert flat == [[(tuple(map(named, x)), named(y), t) for _, x, y, t in episode] for episode in episodes]
        assert prepared.counts["episodes"][split] == len(episodes)
