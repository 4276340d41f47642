"""How far a long loop is: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

Output goes to standard error, so that a table on standard output can be piped away clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

MODES = ("auto", "plain", "quiet")
_EVERY_S = 10.0  # seconds between two plain lines


class Reporter:
    """What the loop calls: ``advance`` after n more units, ``note`` for a line that stays."""

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """n more of the total are done; ``fields`` (loss=3.21) are shown beside."""

    def note(self, line: str) -> None:
        """A line that stays on the screen; dropped when quiet, so a warning goes to ``logging`` instead."""


@contextmanager
def progress(
    total: int | None, label: str, mode: str = "auto", *, done: int = 0, stream: IO[str] | None = None
) -> Iterator[Reporter]:
    """Report ``total`` units (None: unknown) under ``label``; ``done`` of them were done before, by a resumed run.

    mode auto: a bar on a terminal, plain lines elsewhere; plain: lines; quiet: nothing.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: one of {MODES}")
    stream = stream or sys.stderr
    if mode == "quiet":
        yield Reporter()
    elif mode == "auto" and stream.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(file=stream, highlight=False), transient=True) as bar:
            yield _Bar(bar, total, label, done)
    else:
        plain = _Plain(total, label, done, stream)
        yield plain
        plain.finish()


class _Pace:
    """Units per second since the start of this process's part of the work."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.started, self.first = clock, clock(), done

    def rate(self, done: int) -> float:
        return (done - self.first) / max(self.clock() - self.started, 1e-9)


class _Bar(Reporter):
    def __init__(self, bar: Progress, total: int | None, label: str, done: int) -> None:
        self.bar, self.done, self.pace, self.shown = bar, done, _Pace(done), ""
        self.task = bar.add_task(label, total=total, completed=done, rate="", shown="")

    def advance(self, n: int = 1, **fields: float | str) -> None:
        self.done += n
        self.shown = _fields(fields) or self.shown
        self.bar.update(self.task, advance=n, rate=f"{self.pace.rate(self.done):.1f}/s", shown=self.shown)

    def note(self, line: str) -> None:
        self.bar.console.print(line, markup=False)


class _Plain(Reporter):
    def __init__(
        self, total: int | None, label: str, done: int, stream: IO[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.label, self.done, self.stream = total, label, done, stream
        self.pace, self.fields = _Pace(done, clock), ""
        self.last_time, self.last_done = self.pace.started, done

    def advance(self, n: int = 1, **fields: float | str) -> None:
        self.done += n
        self.fields = _fields(fields) or self.fields
        if self.pace.clock() - self.last_time >= _EVERY_S:
            self._line()

    def note(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def finish(self) -> None:
        """The closing line, unless the last one said the same."""
        if self.last_done != self.done:
            self._line()

    def _line(self) -> None:
        rate = self.pace.rate(self.done)
        parts = [f"{self.label} {self.done:,}" + (f"/{self.total:,}" if self.total else ""), f"{rate:.1f}/s"]
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        print("  ".join([*parts, self.fields]).rstrip(), file=self.stream, flush=True)
        self.last_time, self.last_done = self.pace.clock(), self.done


def _fields(fields: dict[str, float | str]) -> str:
    return " ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in fields.items()
    )


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
