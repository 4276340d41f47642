"""Progress: quiet prints nothing, plain prints few lines with rate and time left, a terminal gets a bar."""

from __future__ import annotations

import io

import pytest

from metarec.report import progress as module
from metarec.report.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet() -> None:
    stream = io.StringIO()
    with progress(10, "train", "quiet", stream=stream) as report:
        report.advance(10, loss=1.0)
        report.note("a line")
    assert stream.getvalue() == ""


def test_plain_lines_come_now_and_then() -> None:
    stream, now = io.StringIO(), [0.0]
    report = module._Plain(1000, "train", 100, stream, clock=lambda: now[0])
    for _ in range(900):
        now[0] += 0.125  # eight a second, exact in binary
        report.advance(1, loss=2.5)
    report.finish()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 12  # one in ten seconds, and the last one at the end
    assert lines[0] == "train 180/1,000  8.0/s  1:42 left  loss 2.5"
    assert lines[-1].startswith("train 1,000/1,000  8.0/s")
    assert "left" not in lines[-1]


def test_auto_is_plain_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with progress(3, "train", stream=stream) as report:
        report.note("step 2: validated")
        report.advance(3)
    assert stream.getvalue().splitlines()[0] == "step 2: validated"
    assert stream.getvalue().splitlines()[1].startswith("train 3/3")


def test_a_loop_of_unknown_length() -> None:
    stream = io.StringIO()
    with progress(None, "rows", "plain", stream=stream) as report:
        report.advance(1234)
    assert stream.getvalue().startswith("rows 1,234  ")
    assert "left" not in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress(4, "train", stream=stream, done=1) as report:
        report.advance(1, loss=0.5)
        report.note("a [line] that stays")
    assert "a [line] that stays" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_a_misspelt_mode_and_an_error_inside() -> None:
    with pytest.raises(ValueError, match="mode 'loud'"), progress(1, "x", "loud"):
        pass
    with pytest.raises(KeyError), progress(1, "x", "plain", stream=io.StringIO()):
        raise KeyError


def test_durations() -> None:
    assert [module._duration(s) for s in (0.4, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]
