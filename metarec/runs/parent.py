"""A process that metarec starts ends with it, however that one ends, kill -9 included.

    STDIN=1     the standard input is a pipe whose other end the parent alone holds and never writes to: at its end the
                parent is gone. One that died before anybody looked has closed it as well, so there is no race
    PID=n       of a launcher's workers, whose pipes are not ours: somebody else than n is the parent by now, asked
                every POLL seconds; the number was handed down, so one that died early is noticed too

Both are variables of the environment, taken out when they are read. An orphan is stopped as by SIGTERM, so that a run saves
at its next step; GRACE seconds later it ends as it is, for nothing that is written can be torn (`metarec.durable`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

STDIN, PID = "METAREC_ENDS_WITH_STDIN", "METAREC_ENDS_WITH_PID"
GRACE = 3.0  # seconds between the request and the end
POLL = 0.25
GONE = GRACE + 5.0  # seconds in which an orphan has let go of what it wrote, on a busy machine


def watch() -> None:
    """Begin to watch, where the one that started this process asked for it; called before anything heavy is imported."""
    if os.environ.pop(STDIN, None):
        _when(_end_of_input)


def watch_launcher(launched: bool) -> None:
    """The same in a worker of a launcher that was told PID; in the process that told it nothing happens."""
    told = int(os.environ.get(PID, "0"))
    if launched and told not in (0, os.getpid()):
        os.environ.pop(PID)  # one watch a process
        _when(lambda: _other_parent(told))


def _when(gone: Callable[[], None]) -> None:
    def watching() -> None:
        gone()
        end_now()

    threading.Thread(target=watching, name="parent", daemon=True).start()


def _end_of_input() -> None:
    try:
        while os.read(0, 1):
            pass
    except OSError:  # closed by somebody in this process: nothing is known of the parent any more
        threading.Event().wait()


def _other_parent(told: int) -> None:
    while os.getppid() == told:
        time.sleep(POLL)


def end_now() -> None:
    """Stop this process as a signal would, and end it for certain a moment later."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
