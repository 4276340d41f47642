"""The directory of prepared data: written piece by piece, mapped, and no damage unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference.prepare_reference import Row
from reference.small_logs import shape, write_log

from metarec.data import store
from metarec.data.prepare import prepare
from metarec.data.store import ArrayWriter, Prepared, blocks, open_prepared, train_sessions, vocabulary_hash
from metarec.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("store")
    rows = [
        Row(user, (n * (user % 3 + 1)) % 5, (1_600_000_000 + n * 60 + n // 4 * 1_801) * 1_000_000, n, n // 4)
        for user in range(9)
        for n in range(24)
    ]
    write_log(rows, folder / "log.parquet")
    return prepare(shape(by="leave_one_out", path=str(folder / "log.parquet")), data_dir=None, cache_dir=folder)


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.root, tmp_path / "copy"))


def test_array_written_in_pieces(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a.npy", "<i4")
    pieces = [np.arange(n, dtype=np.int64) for n in (0, 3, 100_000, 1)]
    for piece in pieces:
        writer.append(piece)
    writer.close()
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert array.dtype == np.int32
    np.testing.assert_array_equal(array, np.concatenate(pieces))


def test_blocks_cover_an_array_once(prepared: Prepared) -> None:
    whole = np.concatenate([part for _, part in blocks(prepared.time, 7)])
    np.testing.assert_array_equal(whole, prepared.time)
    overlapping = [(first, len(part)) for first, part in blocks(np.arange(10), 4, overlap=1)]
    assert overlapping == [(0, 5), (4, 5), (8, 2)]


def test_arrays_are_maps_that_cannot_be_written(prepared: Prepared) -> None:
    for name, dtype in store.ARRAYS.items():
        array = getattr(prepared, name)
        assert isinstance(array, np.memmap)
        assert array.dtype == np.dtype(dtype)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        prepared.item_ids[0] = "x"


def test_contents_are_those_of_the_log_whatever_it_is_called(prepared: Prepared, copy: Path, tmp_path: Path) -> None:
    """The fingerprint holds the file's name, contents do not; one other item and they are others."""
    log = Path(shutil.copy(prepared.root.parents[1] / "log.parquet", tmp_path / "moved.parquet"))
    moved = prepare(shape(by="leave_one_out", path=str(log)), data_dir=None, cache_dir=tmp_path)
    assert moved.contents == prepared.contents
    assert moved.fingerprint != prepared.fingerprint
    manifest = json.loads((copy / "manifest.json").read_text())
    item = np.load(copy / "item.npy")
    item[3] = item[3] % 5 + 1
    store.write_arrays(copy, {"item": item})
    manifest["files"]["item.npy"] = store.measure(copy / "item.npy")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_prepared(copy).contents != prepared.contents


def test_opened_again_is_the_same(prepared: Prepared) -> None:
    again = open_prepared(prepared.root)
    for name in store.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(prepared, name))
    assert again.n_query == {"train": 1, "val": 1, "test": 1}
    assert (again.counts, again.funnel) == (prepared.counts, prepared.funnel)
    for split in store.SPLITS:
        assert again.episodes(split).sha256 == prepared.episodes(split).sha256


def test_every_file_and_every_kind_of_damage(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            damaged = bytearray(data)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            if path.name == store.MANIFEST:
                if place == len(data) - 1:
                    continue  # the line end of a JSON file: nothing is lost
                with pytest.raises((DataError, KeyError)):
                    open_prepared(copy)
                continue
            with pytest.raises(DataError, match=rf"{path.name}: other SHA-256: the file is damaged"):
                open_prepared(copy)
        path.write_bytes(data[:-2])  # of the manifest, the bracket
        with pytest.raises(DataError, match=path.name):
            open_prepared(copy, verify=False)
        path.unlink()
        with pytest.raises(DataError, match=f"{path.name}: missing"):
            open_prepared(copy, verify=False)
        path.write_bytes(data)
    open_prepared(copy)


def test_another_format_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / store.MANIFEST).read_text())
    (copy / store.MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="another version of metarec"):
        open_prepared(copy)
    manifest["files"].pop("time.npy")
    (copy / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"time\.npy: the manifest does not list this file"):
        open_prepared(copy)


@pytest.mark.parametrize("key", ["size", "sha256"])
def test_a_letter_of_the_manifest_is_damage_and_no_bug(key: str, copy: Path) -> None:
    """Where a key was misspelt the entry had nothing to compare with, and a KeyError came out."""
    path = copy / store.MANIFEST
    path.write_text(path.read_text().replace(f'"{key}"', f'"{key[:-1]}!"', 1))
    with pytest.raises(DataError, match=r"manifest\.json: .*: the manifest is damaged"):
        open_prepared(copy)


def test_vocabulary_hash_knows_borders_and_order() -> None:
    lists = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [], [""], ["", ""]]
    assert len({vocabulary_hash(items) for items in lists}) == len(lists)
    assert vocabulary_hash(np.array(["é", "x"])) == vocabulary_hash(["é", "x"])


def test_unknown_split_names_the_nearest(prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match="say test"):
        prepared.episodes("tset")


def test_train_sessions_by_hand(prepared: Prepared) -> None:
    """leave_one_out: six sessions of four events a user, the last cut before its third event."""
    begin, end = train_sessions(prepared)
    by_hand = [(u * 24 + s * 4, u * 24 + s * 4 + (4 if s < 5 else 2)) for u in range(9) for s in range(6)]
    assert list(zip(begin.tolist(), end.tolist(), strict=True)) == by_hand
    assert prepared.train_event_end.tolist() == [u * 24 + 22 for u in range(9)]
    first, last = prepared.train_pairs
    assert (last - first).tolist() == [16] * 9
    targets = prepared.pair_event[prepared.episodes("test").first_pair + 2]
    assert targets.tolist() == [u * 24 + 23 for u in range(9)]
    targets = prepared.pair_event[prepared.episodes("val").first_pair + 2]
    assert targets.tolist() == [u * 24 + 22 for u in range(9)]
