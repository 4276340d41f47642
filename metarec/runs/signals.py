"""SIGINT and SIGTERM end a run: inside a loop at its next step, after a checkpoint, elsewhere at once; a second signal
leaves without another word. A search ends a run too, at a validation that is behind those of its other trials."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from metarec.errors import Pruned, Stopped

ShouldStop = Callable[[int, float], bool]  # (step, validation value) -> whether to go no further; told every validation

RESUME = "go on by metarec train resume=RUN"


class Stop:
    """What a loop asks after each step and tells each validation."""

    def __init__(self, way_out: str = RESUME, should_stop: ShouldStop | None = None) -> None:
        self.way_out = way_out
        self.wanted: int | None = None
        self._should_stop = should_stop
        self._waiting = False

    @contextmanager
    def at_steps(self) -> Iterator[None]:
        """Inside the block a signal only sets `wanted`: the loop saves at its next step and calls `leave`."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def validated(self, step: int, value: float, *, last: bool) -> None:
        """Tell a validation, once a checkpoint of `step` is saved; raises Pruned where the run is to go no further.

        After its `last` one a run has ended by itself, and is not pruned.
        """
        if self._should_stop is not None and self._should_stop(step, value) and not last:
            what = "the search ended this run: at the same step most others were better"
            raise Pruned(f"step {step}", f"{value:.4f}", what, "go on with it nevertheless by metarec train resume=RUN")

    def leave(self, step: int) -> None:
        """Raise Stopped, once a checkpoint of `step` is saved."""
        raise self.stopped(f"step {step}", "stopped as asked, after a checkpoint")

    def stopped(self, where: str, what: str) -> Stopped:
        """The exception to raise: the signal seen (SIGTERM where none was), its exit code, and the way out."""
        number = signal.Signals(self.wanted or signal.SIGTERM)
        return Stopped(number.name, where, what, self.way_out, int(number))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is not None:
            os._exit(128 + number)  # nothing is torn: files are renamed into place when whole
        self.wanted = number
        if not self._waiting:
            raise self.stopped("between checkpoints", "stopped as asked")


@contextmanager
def stop_on_signals(way_out: str = RESUME, should_stop: ShouldStop | None = None) -> Iterator[Stop]:
    """Install the handlers for the block (main thread only; elsewhere signals are somebody else's) and put them back."""
    stop = Stop(way_out, should_stop)
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
