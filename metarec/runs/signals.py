"""SIGINT and SIGTERM end a run at the next step, after a checkpoint; a second signal leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metarec.errors import Stopped


class Stop:
    """What a loop asks after each step."""

    def __init__(self) -> None:
        self.wanted: int | None = None

    def leave(self, step: int) -> None:
        """Raise Stopped, once a checkpoint of `step` is saved."""
        number = signal.Signals(self.wanted or signal.SIGTERM)
        raise Stopped(
            number.name, f"step {step}", "stopped as asked, after a checkpoint", "go on by resume=RUN", int(number)
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is not None:
            os._exit(128 + number)  # nothing is torn: files are renamed into place when whole
        self.wanted = number


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Install the handlers for the block (main thread only; elsewhere signals are somebody else's) and put them back."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
