"""No path out of a directory leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metarec.contained import parse_json, plain_file, refuse_link, refuse_links, understood
from metarec.errors import CheckpointError


def test_links_inside_pass_and_links_out_do_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "a" / "b").mkdir(parents=True)
    (run / "a" / "b" / "file").write_text("x")
    (run / "latest").symlink_to("a/b")
    refuse_links(run)
    (run / "a" / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"run/a/out: -> .*elsewhere: a link that leads out"):
        refuse_links(run)
    (run / "a" / "out").unlink()
    os.mkfifo(run / "a" / "b" / "pipe")
    with pytest.raises(CheckpointError, match=r"pipe: prw.*: not a regular file"):
        refuse_links(run)


def test_a_run_that_is_reached_by_a_link_is_no_link_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("x")
    (tmp_path / "typed").symlink_to("run")
    refuse_links(tmp_path / "typed")


def test_a_loop_and_a_prefix_of_the_name(tmp_path: Path) -> None:
    for name in ("run", "run2"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "x").symlink_to(tmp_path / "run2" / "x")  # not inside of "run", though its name begins so
    with pytest.raises(CheckpointError):
        refuse_links(tmp_path / "run")
    (tmp_path / "run" / "x").unlink()
    (tmp_path / "run" / "x").symlink_to("x")
    with pytest.raises(CheckpointError):
        refuse_links(tmp_path / "run")
    with pytest.raises(CheckpointError):
        refuse_link(tmp_path / "run" / "x")
    refuse_link(tmp_path / "run" / "nothing")  # whoever opens it says so


def test_a_download_cache_may_lead_to_its_contents_alone(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1f"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "ab").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ab")
    assert plain_file(snapshot / "config.json") == (blobs / "ab").resolve()
    (tmp_path / "secret").write_text("x")
    (snapshot / "y").symlink_to("../../../secret")
    with pytest.raises(CheckpointError, match="leads out of its directory"):
        plain_file(snapshot / "y")
    with pytest.raises(CheckpointError, match="missing"):
        plain_file(snapshot / "z")


def test_only_parsing_is_understood() -> None:
    with (
        pytest.raises(CheckpointError, match=r"x: guard: is not as metarec writes it \(KeyError: 'a'\)"),
        understood(Path("x"), "guard"),
    ):
        {}["a"]
    with pytest.raises(ZeroDivisionError), understood(Path("x"), "guard"):
        _ = 1 / 0


def test_what_a_tracker_keeps_may_link_to_its_own_logs_and_its_directory_may_be_no_link(tmp_path: Path) -> None:
    logs, run = tmp_path / "logs", tmp_path / "run"
    logs.mkdir()
    (run / "wandb" / "offline").mkdir(parents=True)
    (run / "wandb" / "offline" / "debug.log").symlink_to(logs)
    refuse_links(run)
    (run / "other").mkdir()
    (run / "other" / "wandb").mkdir()
    (run / "other" / "wandb" / "debug.log").symlink_to(logs)
    with pytest.raises(CheckpointError, match=r"other/wandb/debug\.log"):
        refuse_links(run)
    second = tmp_path / "second"
    second.mkdir()
    (second / "wandb").symlink_to(logs)
    with pytest.raises(CheckpointError, match="wandb"):
        refuse_links(second)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff", "9" * 5000])
def test_whatever_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
