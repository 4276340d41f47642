"""The cache of prepared data: used, mended, made once, never half-written."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from reference.small_logs import example_log, shape, write_log

from metarec.data import cache
from metarec.data.prepare import prepare
from metarec.data.store import Prepared
from metarec.errors import EnvironmentFault


def test_cache_is_used_and_mended(tmp_path: Path) -> None:
    write_log(example_log(), tmp_path / "log.parquet")
    spec = shape(path=str(tmp_path / "log.parquet"))
    said: list[str] = []

    def again() -> Prepared:
        said.clear()
        return prepare(spec, data_dir=None, cache_dir=tmp_path / "cache", report=said.append)

    first = again()
    assert said
    again()
    assert said == []  # nothing to do
    spec.memory_limit = "900MB"
    again()
    assert said == []  # changes no result
    items = first.item.tolist()
    target = first.root / "item.npy"
    for damage in ("flip", "short", "missing"):
        data = bytearray(target.read_bytes())
        target.unlink()
        if damage == "flip":
            data[-1] ^= 1
        if damage != "missing":
            target.write_bytes(data[:-4] if damage == "short" else data)
        mended = again()
        assert "item.npy" in said[0]
        assert said[0].endswith("preparing again")
        assert mended.item.tolist() == items
    assert sorted(p.name for p in (tmp_path / "cache" / "prepared").iterdir()) == [
        first.fingerprint,
        f"{first.fingerprint}.lock",
    ]
    spec.episodes.stride = 2
    assert again().fingerprint != first.fingerprint


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    write_log(example_log(), tmp_path / "log.parquet")
    spec = shape(path=str(tmp_path / "log.parquet"))
    first = prepare(spec, data_dir=None, cache_dir=tmp_path)
    name, home = first.fingerprint, first.root.parent
    first.root.rename(home / f".tmp-{name}-dead")
    prepare(spec, data_dir=None, cache_dir=tmp_path)
    assert sorted(p.name for p in home.iterdir()) == [name, f"{name}.lock"]


def test_two_at_once_prepare_once(tmp_path: Path) -> None:
    write_log(example_log(), tmp_path / "log.parquet")
    builds, said = [], []
    real = prepare(shape(path=str(tmp_path / "log.parquet")), data_dir=None, cache_dir=tmp_path / "real").root

    def build(work: Path) -> None:
        builds.append(work)
        time.sleep(0.3)  # long enough for the others to come
        for path in real.iterdir():
            shutil.copy(path, work)

    def run() -> None:
        cache.open_or_build(tmp_path / "cache", "name", build, said.append)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert said == ["another process is preparing the same data; waiting for it"] * 2


def test_failing_build_leaves_nothing(tmp_path: Path) -> None:
    def build(work: Path) -> None:
        (work / "item.npy").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentFault, match="the disk of the cache is full"):
        cache.open_or_build(tmp_path, "name", build, print)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == ["name.lock"]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    write_log(example_log(), tmp_path / "log.parquet")
    with pytest.raises(EnvironmentFault, match="set cache_dir=DIR"):
        prepare(shape(path=str(tmp_path / "log.parquet")), data_dir=None, cache_dir=tmp_path / "cache")
