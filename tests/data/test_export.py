"""The published tables written from prepared data: their numbers against the prefix of the log itself, and all or
nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from metarec.data import export
from metarec.data.export import export_tables
from metarec.data.prepare import prepare
from metarec.data.spec import Columns, DatasetSpec, EpisodeShape, Split, WorldSpec
from metarec.data.store import Prepared
from metarec.errors import ConfigError, EnvironmentFault


def clock_log(path: Path, n_users: int = 60) -> Path:
    """Users with sessions of 3 to 6 events over 100 days, an item in a session never twice in a row; user ids 1..n."""
    rng, rows = np.random.default_rng(5), []
    for user in range(1, n_users + 1):
        for _ in range(12):
            start = 1_500_000_000 + int(rng.integers(100 * 86_400))
            rows += [(user, f"i{rng.integers(30)}", start + 60 * n + 0.5) for n in range(int(rng.integers(3, 7)))]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(path, index=False)
    return path


def spec_for(kind: str, tmp_path: Path) -> DatasetSpec:
    shape = EpisodeShape(n_support=3, n_query=4, stride=2)
    if kind == "world":
        return DatasetSpec(
            name="synthetic",
            source="synthetic",
            time_unit="order",
            columns=Columns(session="session_id"),
            world=WorldSpec(n_users=60),
            episodes=shape,
            split=Split(fractions=[0.5, 0.2, 0.3]),
        )
    split = Split(by=kind, fractions=[0.5, 0.2, 0.3], time_quantiles=[0.4, 0.7])
    return DatasetSpec(
        name="log", path=str(clock_log(tmp_path / "log.csv")), duplicates="drop", episodes=shape, split=split
    )


def prepared_for(kind: str, tmp_path: Path) -> Prepared:
    return prepare(spec_for(kind, tmp_path), data_dir=None, cache_dir=tmp_path / "cache")


def described(prepared: Prepared, split: str) -> list[tuple[str, list[tuple[list[str], str]]]]:
    """Every episode in plain words: (user id, [(prefix item ids, target item id), ...]), "?" for an unknown item."""
    names, found = ["?", *prepared.item_ids.tolist()], []
    ranges = prepared.episodes(split)
    for user, first, count in zip(ranges.user, ranges.first_pair, ranges.n_windows, strict=True):
        for window in range(count):
            pairs = []
            start = first + window * ranges.stride
            for pair in range(start, start + ranges.n_support + ranges.n_query):
                begin, event = prepared.pair_begin[pair], prepared.pair_event[pair]
                items = [names[max(i, 0)] for i in prepared.item[begin : event + 1]]
                pairs.append((items[:-1], items[-1]))
            found.append((str(prepared.user_ids[user]), pairs))
    return found


@pytest.mark.parametrize("kind", ["world", "user_time", "user_disjoint", "leave_one_out"])
def test_tables_say_what_the_prepared_data_says(kind: str, tmp_path: Path) -> None:
    prepared = prepared_for(kind, tmp_path)
    files = export_tables(prepared, tmp_path / "tables")
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [p.name for p in files]
    numbers = json.loads((tmp_path / "tables" / "course2id.json").read_text())
    assert sorted(numbers.values()) == list(range(prepared.n_items))
    names = {number: item for item, number in numbers.items()} | {-1: "?"}
    for split in ("train", "val", "test"):
        pairs = pd.read_parquet(tmp_path / "tables" / f"pairs_{split}.parquet").set_index("pair_id")
        q = prepared.n_query[split]
        episodes = pd.read_parquet(tmp_path / "tables" / f"episodes_{split}_K3_Q{q}.parquet")
        told = []
        for row in episodes.itertuples():
            ids = [*row.support_pair_ids, *row.query_pair_ids]
            assert len(row.support_pair_ids) == 3
            assert len(row.query_pair_ids) == q
            assert set(pairs.loc[ids, "user_id"]) == {row.user_id}
            told.append((row.user_id, [([names[i] for i in pairs.prefix[p]], names[pairs.label[p]]) for p in ids]))
        assert told == described(prepared, split)
        assert len(told) > 0
        assert pairs.index.is_unique
        assert pairs.groupby("session_id").user_id.nunique().eq(1).all()


def test_label_times_are_seconds_with_a_clock_and_positions_without(tmp_path: Path) -> None:
    prepared = prepared_for("user_disjoint", tmp_path)
    export_tables(prepared, tmp_path / "a")
    pairs = pd.read_parquet(tmp_path / "a" / "pairs_train.parquet")
    times = np.asarray(prepared.time)[np.asarray(prepared.pair_event)[pairs.pair_id]]
    assert (pairs.label_ts_epoch == times // 10**6).all()
    assert (times % 10**6 == 500_000).all()
    world = prepared_for("world", tmp_path)
    export_tables(world, tmp_path / "b")
    pairs = pd.read_parquet(tmp_path / "b" / "pairs_train.parquet")
    assert (pairs.label_ts_epoch == np.asarray(world.time)[np.asarray(world.pair_event)[pairs.pair_id]]).all()


def test_types_and_the_word_on_numbering(tmp_path: Path) -> None:
    export_tables(prepared_for("world", tmp_path), tmp_path / "t")
    for name, schema in (("pairs_val", export.PAIRS), ("episodes_val_K3_Q4", export.EPISODES)):
        found = pq.read_schema(tmp_path / "t" / f"{name}.parquet")
        assert found.remove_metadata().equals(schema.remove_metadata())
        assert "0-based" in json.loads(found.metadata[b"metarec"])["item_numbers"]
    assert "0-based" in json.loads((tmp_path / "t" / "README.json").read_text())["item_numbers"]


def test_small_batches_write_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_for("user_time", tmp_path)
    export_tables(prepared, tmp_path / "a")
    monkeypatch.setattr(export, "BATCH_ITEMS", 16)
    export_tables(prepared, tmp_path / "b")
    for path in (tmp_path / "a").glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "b" / path.name)), path.name
    assert pq.read_metadata(tmp_path / "b" / "pairs_train.parquet").num_row_groups > 10


def test_an_earlier_export_is_replaced_and_other_files_are_refused(tmp_path: Path) -> None:
    prepared = prepared_for("world", tmp_path)
    export_tables(prepared, tmp_path / "t")
    (tmp_path / "t" / "pairs_val.parquet").write_text("old")
    export_tables(prepared, tmp_path / "t")
    assert pq.read_metadata(tmp_path / "t" / "pairs_val.parquet").num_rows > 0
    (tmp_path / "t" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"export: .*other files \(thesis\.tex\) -- give a new or empty directory"):
        export_tables(prepared, tmp_path / "t")
    assert (tmp_path / "t" / "thesis.tex").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        export_tables(prepared, tmp_path / "t" / "thesis.tex")


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_nothing_or_the_earlier_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    prepared = prepared_for("world", tmp_path)
    place = tmp_path / "out" / "t"
    if earlier:
        export_tables(prepared, place)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(export, "sync", full)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        export_tables(prepared, place)
    assert [p.name for p in (tmp_path / "out").iterdir()] == (["t"] if earlier else [])
