"""Omniglot, what is refused: sizes that the archive does not have, archives and lists that are not sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.small_images import N_CLASSES, N_DRAWINGS, SMALL, SPLIT, arrays, write

from metarec.config.overrides import check_words
from metarec.data.omniglot import Omniglot
from metarec.data.spec import ImageSpec
from metarec.errors import ConfigError, DataError, MetarecError


def refused(directory: Path, spec: ImageSpec = SMALL, error: type[MetarecError] = DataError) -> str:
    """The one line that says why."""
    with pytest.raises(error) as caught:
        Omniglot.load(directory, spec)
    line = str(caught.value)
    assert "\n" not in line
    assert " -- " in line
    return line


@pytest.mark.parametrize(("n_shot", "n_query"), [(2, 5), (6, 1), (1, 6)])
def test_more_images_than_drawings(n_shot: int, n_query: int, tmp_path: Path) -> None:
    """Support and query are different drawings, and there are six."""
    line = refused(write(tmp_path), replace(SMALL, n_shot=n_shot, n_query=n_query), ConfigError)
    assert line.startswith(f"dataset.images.n_query: {n_query}: with n_shot={n_shot} more than the 6 drawings")
    assert line.endswith(f"give at most {6 - n_shot}")
    Omniglot.load(tmp_path, replace(SMALL, n_shot=2, n_query=4))


def test_more_than_twenty_images_of_a_real_class(data_dir: Path) -> None:
    Omniglot.load(data_dir / "omniglot", ImageSpec(n_shot=5, n_query=15))
    line = refused(data_dir / "omniglot", ImageSpec(n_shot=6, n_query=15), ConfigError)
    assert "more than the 20 drawings of a character -- give at most 14" in line


def test_more_ways_than_classes(tmp_path: Path) -> None:
    """Of the smallest split; turns are no classes to be told apart at test."""
    line = refused(write(tmp_path), replace(SMALL, n_way=5), ConfigError)
    assert line == "dataset.images.n_way: 5: more classes than the smallest split has (4) -- give at most 4"
    Omniglot.load(tmp_path, replace(SMALL, n_way=4))


def broken(change: Callable[[bytes], bytes], name: str = "omniglot28.npz") -> Callable[[Path], None]:
    def plant(directory: Path) -> None:
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return plant


def not_an_archive(directory: Path) -> None:
    with (directory / "omniglot28.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))


def changed_byte(directory: Path) -> None:
    """In an archive that is not compressed: only its checksum knows."""
    np.savez(directory / "omniglot28.npz", **arrays())
    broken(lambda raw: raw[:900] + bytes([raw[900] ^ 1]) + raw[901:])(directory)


def damaged_stream(raw: bytes) -> bytes:
    """The first array's compressed bytes begin with a kind of block that does not exist."""
    begin = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
    return raw[:begin] + b"\xff" * 8 + raw[begin + 8 :]


UNSOUND_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no archive": (lambda d: (d / "omniglot28.npz").unlink(), "No such file"),
    "no list": (lambda d: (d / "classes.parquet").unlink(), "not readable as the list of classes"),
    "half an archive": (broken(lambda raw: raw[: len(raw) // 2]), "not a zip file"),
    "text for an archive": (broken(lambda raw: b"not an archive at all"), "not readable as the Omniglot archive"),
    "a changed byte of an archive": (changed_byte, "Bad CRC-32"),
    "an archive that does not unpack": (broken(damaged_stream), "not readable as the Omniglot archive"),
    "an empty archive": (broken(lambda raw: b""), "not readable as the Omniglot archive"),
    "one array for an archive": (not_an_archive, "not readable as the Omniglot archive"),
    "an empty list": (broken(lambda raw: b"", "classes.parquet"), "not readable as the list of classes"),
    "half a list": (broken(lambda raw: raw[: len(raw) // 2], "classes.parquet"), "not readable as the list of classes"),
}


@pytest.mark.parametrize("name", UNSOUND_FILES)
def test_unsound_files(name: str, tmp_path: Path) -> None:
    """One line that names the file."""
    plant, said = UNSOUND_FILES[name]
    write(tmp_path)
    plant(tmp_path)
    line = refused(tmp_path)
    assert line.startswith(str(tmp_path / ("classes.parquet" if "list" in name else "omniglot28.npz")))
    assert said in line


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").startswith(str(tmp_path / "nowhere" / "omniglot28.npz"))


ROWS = N_CLASSES * N_DRAWINGS
UNSOUND_CONTENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no drawer": ({"drawer": None}, {}, "drawer is not a file in the archive"),
    "no images": ({"images_packed": None}, {}, "images_packed is not a file in the archive"),
    "unpacked": ({"images_packed": np.zeros((ROWS, 28, 28), np.uint8)}, {}, "not 28 x 28 packed images"),
    "another size": ({"images_packed": np.zeros((ROWS, 1_379), np.uint8)}, {}, "not 28 x 28 packed images"),
    "a class of fewer": ({"class_id": np.r_[1, arrays()["class_id"][1:]]}, {}, "not as many of each class"),
    "a class not listed": ({"class_id": arrays()["class_id"] + (arrays()["class_id"] == 13)}, {}, "not as many of each"),
    "no split column": ({}, {"vinyals_split": None}, "not readable as the list of classes"),
    "no class column": ({}, {"class_id": None}, "not readable as the list of classes"),
    "a wrong split": ({}, {"vinyals_split": [*SPLIT[:-1], "tset"]}, "vinyals_split knows train, val, test only"),
    "a class twice": ({}, {"class_id": [0, *range(N_CLASSES - 1)]}, "classes 0, 1, ..."),
    "classes from 1": ({}, {"class_id": list(range(1, N_CLASSES + 1))}, "classes 0, 1, ..."),
    "a split of none": ({}, {"vinyals_split": ["train"] * 7 + ["val"] * 7}, "smallest split has (0)"),
    "a null split": ({}, {"vinyals_split": [*SPLIT[:-1], None]}, "vinyals_split"),
    "a null class": ({}, {"class_id": [*range(N_CLASSES - 1), None]}, "class"),
    "fewer images than labels": ({"images_packed": arrays()["images_packed"][:-1]}, {}, "images"),
    "more images than labels": ({"images_packed": np.zeros((ROWS + 1, 98), np.uint8)}, {}, "images"),
    "images of floats": ({"images_packed": np.zeros((ROWS, 98))}, {}, "images"),
    "a class below 0": ({"class_id": np.r_[np.int16(-1), arrays()["class_id"][1:]]}, {}, "class"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSOUND_CONTENTS)
def test_unsound_contents(name: str, tmp_path: Path) -> None:
    held, listed, said = UNSOUND_CONTENTS[name]
    line = refused(write(tmp_path, held=held, listed=listed), error=MetarecError)
    assert said in line


@pytest.mark.parametrize("key", ["n_way", "n_shot", "n_query", "n_val", "n_test"])
def test_numbers_out_of_range_are_refused_on_the_command_line(key: str) -> None:
    """Before a file is opened."""
    with pytest.raises(ConfigError, match=rf"dataset\.images\.{key}"):
        check_words("train", ["dataset=omniglot", f"dataset.images.{key}=0", "data_dir=here"])
