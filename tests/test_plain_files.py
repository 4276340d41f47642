"""A FIFO, a device and a directory where a file was meant: told at once, and nobody waits for a writer."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarec import plain_files
from metarec.data.characters import read_documents
from metarec.data.prompt_file import read_examples
from metarec.data.table_files import read_numbers
from metarec.errors import DataError
from metarec.models.lm_titles import _table

READERS: dict[str, Callable[[Path], Any]] = {
    "prompts": read_examples,
    "tables": lambda path: read_numbers(path.parent),
    "text": read_documents,
    "titles": lambda path: _table(path, ["1", "2"]),
}


def fifo(path: Path) -> Path:
    """With somebody who writes to it whenever it is opened: who reads it is seen, and does not wait."""

    def write() -> None:
        with contextlib.suppress(OSError):
            while True:
                file = os.open(path, os.O_WRONLY)
                os.write(file, b"{}\n")
                os.close(file)
                time.sleep(0.01)

    os.mkfifo(path)
    threading.Thread(target=write, daemon=True).start()
    return path


def test_a_plain_file_is_read_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\ufeffx", encoding="utf-8")
    (tmp_path / "b").symlink_to("a")
    assert plain_files.read_bytes(tmp_path / "b") == b"\xef\xbb\xbfx"
    assert plain_files.read_text(tmp_path / "b", "utf-8-sig") == "x"


@pytest.mark.parametrize("what", ["fifo", "device", "directory", "nothing"])
def test_anything_else_is_an_oserror(what: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if what == "device" else tmp_path / "x"
    if what == "fifo":
        fifo(path)
    if what == "directory":
        path.mkdir()
    kinds: dict[str, type[OSError]] = {"directory": IsADirectoryError, "nothing": FileNotFoundError}
    with pytest.raises(kinds.get(what, plain_files.NotPlain)) as error:
        plain_files.read_bytes(path)
    assert error.value.filename == str(path)


@pytest.mark.parametrize("name", READERS)
def test_readers_of_named_files_do_not_wait(name: str, tmp_path: Path) -> None:
    path = fifo(tmp_path / "course2id.json")
    with pytest.raises(DataError, match="a FIFO, no plain file"):
        READERS[name](path)
