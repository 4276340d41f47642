"""A choice in the cache: taken, or made again where it is damaged, and said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metarec import build
from metarec.verbs.tuned import tuned


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(build, "cache_dir", lambda config: tmp_path)
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"steps": 2, "lr": 0.1 + 0.2}

    def run() -> tuple[dict[str, Any], int]:
        found = tuned(SimpleNamespace(), "control", ["x"], make)  # type: ignore[arg-type]
        return found, len(made)

    return run


def test_it_is_made_once_and_keeps_bits_and_order(choose: Any) -> None:
    first, _ = choose()
    second, count = choose()
    assert first == second
    assert list(first) == list(second) == ["steps", "lr"]
    assert count == 1


def test_a_changed_digit_is_seen_said_and_made_again(
    choose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text stays JSON, and 0.5 would have been taken for the step size."""
    first, _ = choose()
    (path,) = (tmp_path / "control").glob("*.json")
    whole = path.read_bytes()
    for data in (
        whole.replace(b"0.30000000000000004", b"0.50000000000000004"),
        whole[:-20],
        b'{"steps": 2, "lr": 0.5}',
    ):
        assert data != whole
        path.write_bytes(data)
        found, _ = choose()
        assert found == first
        assert f"a tuned choice in the cache is damaged and made again: {path}: damaged" in capsys.readouterr().err
        assert path.read_bytes() == whole
