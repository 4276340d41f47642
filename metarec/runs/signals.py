"""SIGINT and SIGTERM end a run: inside a loop at its next step, after a checkpoint, elsewhere at once; a second signal
leaves without another word."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metarec.errors import Stopped

RESUME = "go on by metarec train resume=RUN"


class Stop:
    """What a loop asks after each step."""

    def __init__(self, way_out: str = RESUME) -> None:
        self.way_out = way_out
        self.wanted: int | None = None
        self._waiting = False

    @contextmanager
    def at_steps(self) -> Iterator[None]:
        """Inside the block a signal only sets `wanted`: the loop saves at its next step and calls `leave`."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def leave(self, step: int) -> None:
        """Raise Stopped, once a checkpoint of `step` is saved."""
        raise self.stopped(f"step {step}", "stopped as asked, after a checkpoint")

    def stopped(self, where: str, what: str) -> Stopped:
        number = signal.Signals(self.wanted or signal.SIGTERM)
        return Stopped(number.name, where, what, self.way_out, int(number))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is not None:
            os._exit(128 + number)  # nothing is torn: files are renamed into place when whole
        self.wanted = number
        if not self._waiting:
            raise self.stopped("between checkpoints", "stopped as asked")


@contextmanager
def stop_on_signals(way_out: str = RESUME) -> Iterator[Stop]:
    """Install the handlers for the block (main thread only; elsewhere signals are somebody else's) and put them back."""
    stop = Stop(way_out)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Exception as error:
        if stop.wanted is None or isinstance(error, Stopped):
            raise
        # a library that was interrupted reports it as a failure of its own
        raise stop.stopped("between checkpoints", "stopped as asked") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
