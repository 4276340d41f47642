"""Files forced to the disk: which ones, in which order, and what a failure leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metarec import durable


def test_a_tree_is_forced_whole_and_names_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("/nowhere")
    seen: list[str] = []
    monkeypatch.setattr(durable, "sync", lambda path: seen.append(path.relative_to(tmp_path).as_posix()))
    durable.sync_tree(tmp_path)
    assert seen == ["a/b/z", "a/b", "a/y", "a", "x", "."]


def test_the_name_of_each_new_directory_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(durable, "sync", lambda path: seen.append(path.relative_to(tmp_path).as_posix()))
    for _ in range(2):  # one that is there costs nothing
        durable.make_directory(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
        assert seen == [".", "a"]


def test_a_failed_replacement_leaves_the_old_file_even_where_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    durable.replace_file(path, b"old")

    def broken(*args: object, **keywords: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        patch.setattr(os, "unlink", broken)
        with pytest.raises(OSError, match="Input/output error"):
            durable.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    (left,) = [entry.name for entry in tmp_path.iterdir() if entry.name != "a"]
    found = durable.TEMPORARY.match(left)
    assert found is not None
    assert (found[1], found["name"]) == ("new", "a")
