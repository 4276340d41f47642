"""Published tables read back: the same episodes, both numberings of items, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data.test_export import described, prepared_for

from metarec.data.export import export_tables
from metarec.data.prepare import prepare
from metarec.data.spec import DatasetSpec, EpisodeShape
from metarec.data.tables import read_episode_tables
from metarec.errors import DataError


def tables_spec(path: Path) -> DatasetSpec:
    return DatasetSpec(name="episode_tables", source="episode_tables", path=str(path), episodes=EpisodeShape(3, 4))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    export_tables(prepared_for("user_disjoint", path), path / "tables")
    return path / "tables"


@pytest.fixture
def tables(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "tables")
    return tmp_path / "tables"


def changed(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    frame = pd.read_parquet(path)
    result = change(frame)
    (frame if result is None else result).to_parquet(path)


def refusal(directory: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_episode_tables(tables_spec(directory), None)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", ["world", "user_time", "user_disjoint"])
def test_round_trip_gives_the_same_episodes(kind: str, tmp_path: Path) -> None:
    first = prepared_for(kind, tmp_path)
    export_tables(first, tmp_path / "tables")
    again = prepare(tables_spec(tmp_path / "tables"), data_dir=None, cache_dir=tmp_path / "cache")
    for split in ("train", "val", "test"):
        assert described(again, split) == described(first, split)
        assert again.episodes(split).n_episodes == first.episodes(split).n_episodes > 0
    assert again.stride == first.stride == 2
    assert again.has_clock == first.has_clock
    assert again.item_ids.tolist() == first.item_ids.tolist()
    export_tables(again, tmp_path / "tables2")
    for split in ("train", "val", "test"):  # numbers of pairs and sessions may differ, their content not
        one, two = (pd.read_parquet(tmp_path / t / f"pairs_{split}.parquet") for t in ("tables", "tables2"))
        for column in ("user_id", "label", "label_ts_epoch"):
            assert one[column].tolist() == two[column].tolist()
        assert [list(p) for p in one.prefix] == [list(p) for p in two.prefix]


def test_row_order_and_user_type_do_not_matter(tables: Path, exported: Path) -> None:
    plain = read_episode_tables(tables_spec(exported), None)
    for path in tables.glob("*.parquet"):
        changed(path, lambda f: f.assign(user_id=f.user_id.astype(int)).sample(frac=1, random_state=3))
    shuffled = read_episode_tables(tables_spec(tables), None)
    assert shuffled.user_ids == plain.user_ids == sorted(plain.user_ids, key=int)
    for name, array in plain.arrays.items():
        assert np.array_equal(array, shuffled.arrays[name]), name


def test_numbering_from_one_is_found(tables: Path, exported: Path) -> None:
    plain = read_episode_tables(tables_spec(exported), None)
    numbers = json.loads((tables / "course2id.json").read_text())
    (tables / "course2id.json").write_text(json.dumps({item: n + 1 for item, n in numbers.items()}))
    up = {n: n + 1 for n in range(len(numbers))} | {-1: -1}
    for split in ("train", "val", "test"):
        changed(
            tables / f"pairs_{split}.parquet",
            lambda f: f.assign(label=f.label.map(up), prefix=[[up[i] for i in p] for p in f.prefix]),
        )
    one = read_episode_tables(tables_spec(tables), None)
    assert np.array_equal(one.arrays["item"], plain.arrays["item"])
    assert one.item_ids == plain.item_ids
    assert "course2id.json: items are numbered from 1" in one.notes
    (tables / "course2id.json").unlink()
    bare = read_episode_tables(tables_spec(tables), None)
    assert np.array_equal(bare.arrays["item"], plain.arrays["item"])
    assert any("the smallest item number is 1, so items are taken to be numbered from 1" in note for note in bare.notes)


def test_pairs_after_the_episode_are_left_out_with_a_note(tables: Path, exported: Path) -> None:
    path = tables / "episodes_test_K3_Q4.parquet"

    def shift(f: pd.DataFrame) -> pd.DataFrame:
        return f.assign(**{name: [ids - 1 for ids in f[name]] for name in ("support_pair_ids", "query_pair_ids")})

    pairs = pd.read_parquet(tables / "pairs_test.parquet")
    enough = pairs.groupby("user_id").pair_id.min()
    episodes = pd.read_parquet(path)
    movable = [s[0] - 1 >= enough[u] for u, s in zip(episodes.user_id, episodes.support_pair_ids, strict=True)]
    assert all(movable)
    changed(path, shift)
    found = read_episode_tables(tables_spec(tables), None)
    assert any(f"{len(episodes)} pairs after the episodes of their users are left out" in note for note in found.notes)
    plain = read_episode_tables(tables_spec(exported), None)
    assert len(found.arrays["pair_event"]) == len(plain.arrays["pair_event"]) - len(episodes)


def _swap(f: pd.DataFrame) -> pd.DataFrame:
    return f.assign(
        support_pair_ids=[q[:3] for q in f.query_pair_ids],
        query_pair_ids=[[*s, q[3]] for s, q in zip(f.support_pair_ids, f.query_pair_ids, strict=True)],
    )


def _set(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.at[row, column] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        (
            "pairs_val",
            lambda f: f.assign(prefix=[p[1:] if len(p) > 1 else p for p in f.prefix]),
            ["pairs_val.parquet: pair_id"],
        ),
        (
            "pairs_val",
            lambda f: f.assign(label=f.label[::-1].to_numpy()),
            ["pairs_val.parquet: pair_id", "not a start of the session"],
        ),
        (
            "pairs_test",
            lambda f: f.assign(prefix=[p[::-1] for p in f.prefix]),
            ["pairs_test.parquet: pair_id", "not a start of the session"],
        ),
        ("pairs_val", _set("label", 2, 999), ["pair_id", "999: no such item"]),
        ("pairs_val", _set("label", 2, -2), ["-2: no such item"]),
        ("pairs_val", _set("prefix", 2, []), ["empty prefix"]),
        ("pairs_val", lambda f: f.drop(columns="label"), ["label: no such column"]),
        (
            "pairs_val",
            lambda f: f.assign(pair_id=f.pair_id.where(f.index != 1, f.pair_id[0])),
            ["the pair_id stands twice"],
        ),
        (
            "pairs_val",
            lambda f: f.assign(label_ts_epoch=f.label_ts_epoch[::-1].to_numpy()),
            ["earlier than that of the pair before"],
        ),
        ("pairs_val", lambda f: f.assign(label_ts_epoch=f.label_ts_epoch * 1000), ["label_ts_epoch must be seconds"]),
        (
            "pairs_val",
            lambda f: f.assign(label_ts_epoch=f.label_ts_epoch - 10**9 * 2),
            ["label_ts_epoch must be seconds"],
        ),
        ("pairs_val", lambda f: f.assign(label=f.label.astype(str)), ["column label: ", "string: not whole numbers"]),
        ("pairs_val", lambda f: f.assign(prefix=1), ["column prefix", "not lists of whole numbers"]),
        ("pairs_val", lambda f: f.assign(user_id=f.user_id.where(f.index > 0)), ["row 1: column user_id: null"]),
        ("episodes_val_K3_Q4", _swap, ["episode_id 0", "support is not strictly before query"]),
        (
            "episodes_val_K3_Q4",
            _set("support_pair_ids", 1, [0, 1]),
            ["episode_id 1: 2 pairs", "support_pair_ids must hold 3"],
        ),
        (
            "episodes_val_K3_Q4",
            _set("support_pair_ids", 1, [9**9, 1, 2]),
            ["a pair_id that the pair table of this split does not have"],
        ),
        ("episodes_val_K3_Q4", lambda f: f.assign(user_id=f.user_id[::-1].to_numpy()), ["a pair of user"]),
        (
            "episodes_val_K3_Q4",
            lambda f: f.assign(support_pair_ids=[s - [1, 0, 0] for s in f.support_pair_ids]),
            ["not consecutive pairs"],
        ),
        ("episodes_val_K3_Q4", lambda f: f.iloc[1:], ["has 7 pairs and no episode"]),
        ("episodes_val_K3_Q4", lambda f: f.iloc[:0], ["0 episodes"]),
        ("episodes_val_K3_Q4", lambda f: pd.concat([f, f.iloc[:1]]), ["has more than one episode"]),
        ("episodes_train_K3_Q4", lambda f: f.drop(index=3), ["not all sliding windows with one stride"]),
        ("episodes_train_K3_Q4", lambda f: pd.concat([f, f.iloc[:1]]), ["not all sliding windows with one stride"]),
    ],
)
def test_refusals(
    tables: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame | None], parts: list[str]
) -> None:
    changed(tables / f"{name}.parquet", change)
    refusal(tables, name.partition("_K")[0] + (".parquet" if name.startswith("pairs") else "_K3_Q4.parquet"), *parts)


def test_a_user_in_two_splits(tables: Path) -> None:
    train = pd.read_parquet(tables / "pairs_train.parquet")
    changed(tables / "pairs_val.parquet", lambda f: f.assign(user_id=f.user_id.where(f.index > 0, train.user_id[0])))
    refusal(tables, f"user {train.user_id[0]}", "is in train too", "for leave-one-out prepare the log itself")


def test_missing_files_and_other_k_and_q(tables: Path) -> None:
    with pytest.raises(
        DataError, match=r"episodes_train_K5_Q10\.parquet: not found: .*say dataset\.episodes.*episodes_test_K3_Q4"
    ):
        read_episode_tables(DatasetSpec(source="episode_tables", path=str(tables)), None)
    (tables / "pairs_val.parquet").unlink()
    refusal(tables, "pairs_val.parquet: not found: a table is missing")
    refusal(tables / "none", "not found: episode tables are a directory")
    refusal(tables / "course2id.json", "not a directory")


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        ("{", "not a JSON file"),
        ("[1]", "not an object"),
        ('{"a": "x"}', "not an object"),
        ('{"a": 0, "b": 0}', "without gap or repeat"),
        ('{"a": 0, "b": 2}', "b: 2: the numbers must run"),
        ('{"a": 5}', "the numbers must run"),
    ],
)
def test_bad_numbering(tables: Path, numbers: str, part: str) -> None:
    (tables / "course2id.json").write_text(numbers)
    refusal(tables, "course2id.json", part)
