"""The guard between a run and its tracker: after `begin` nothing that a tracker does stops the run or changes a number.

history.jsonl and metrics.json are the truth and a tracker is their mirror. So a failure (a full disk, a locked store) is
said once and the run goes on untold; at the end the tracker is told everything once more from the files, and when that
fails too, it is said again and stands in tracker.json. Before the first step a failure is refused: nothing is lost yet.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarec.contained import parse_json
from metarec.errors import EnvironmentFault, MetarecError, Pruned, Stopped
from metarec.runs import atomic
from metarec.runs.history import read_history
from metarec.trackers.card import Backend, Card, Closing, Row, figures, rows

STATE = "tracker.json"
LIVE_S = 5.0  # seconds between two tellings of training records; validations are told at once


@contextmanager
def tracked(backend: Backend | None, run_dir: Path, group: str | None = None) -> Iterator[Tracker]:
    """The tracker of the run in `run_dir` (None: none), connected; closed by how the block ends. Raises MetarecError."""
    tracker = Tracker(backend, run_dir, group)
    tracker.connect()
    try:
        yield tracker
    except BaseException as error:
        tracker.close("stopped" if isinstance(error, Stopped | Pruned | KeyboardInterrupt) else "failed")
        raise
    tracker.close("failed")  # of a run that did not come to its figures; does nothing after `finish`


class Tracker:
    """A `History` listener; without a backend it does nothing."""

    def __init__(
        self,
        backend: Backend | None,
        run_dir: Path,
        group: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend, self.run_dir, self.clock = backend, run_dir, clock
        self.state = state_of(run_dir) or {"id": secrets.token_hex(8), "group": group}
        self.card: Card | None = None
        self.trouble: str | None = None  # why it is told nothing any more
        self._waiting: list[Row] = []
        self._told_at = clock()

    def connect(self) -> None:
        """Reach the store, before anything of the run. Raises MetarecError."""
        if self.backend is not None:
            try:
                self.backend.connect()
            except Exception as error:
                raise self._refusal(error) from error

    def begin(self, config: Mapping[str, Any], notes: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Start the tracker's run, or carry it on, with the `records` of the history so far. Raises MetarecError."""
        if self.backend is None:
            return
        self._write("so far")  # on file before the tracker hears of the run, so that a kill leaves no second one there
        self.card = Card(self.state["id"], self.run_dir.name, self.state["group"], config, notes)
        try:
            self.backend.begin(self.card, rows(records))
        except Exception as error:
            self.card = None
            raise self._refusal(error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """A record that history.jsonl has just got."""
        if self.card is not None and self.trouble is None:
            self._waiting += rows([record])
            if record.get("kind") != "train" or self.clock() - self._told_at >= LIVE_S:
                self.sync()

    def sync(self) -> None:
        """Tell what has gathered."""
        backend, waiting = self.backend, self._waiting
        if backend is not None and waiting and self.trouble is None:
            self._waiting = []
            self.trouble = guarded(lambda: backend.tell(waiting))
            if self.trouble is not None:
                self._say(self.trouble, "the run goes on without it", "all is told once more at the end")
            self._told_at = self.clock()

    def finish(self, document: Mapping[str, Any], files: Iterable[Path]) -> None:
        """The figures of metrics.json; afterwards the tracker's run is over and its files are as they stay."""
        backend, card = self.backend, self.card
        if backend is None or card is None:
            return
        self.sync()
        notes = {key: document[key] for key in ("protocol", "checkpoint") if key in document}
        closing = Closing(document["training"]["steps"], figures(document), notes, tuple(files))
        before = self.trouble
        if before is not None:
            guarded(lambda: backend.close(None))
            records = read_history(self.run_dir / "history.jsonl")
            self.trouble = guarded(lambda: backend.begin(card, rows(records)))
        if self.trouble is None:
            self.trouble = guarded(lambda: backend.finish(closing))
        if self.trouble is not None:
            self._say(self.trouble, "not everything was told", f"all of it is in {self.run_dir}, see {STATE} there")
        elif before is not None:
            print(f"logger={backend.name}: everything was told at the end", file=sys.stderr, flush=True)
        self._write(self.trouble or "everything")
        self.card = None

    def close(self, ended: str) -> None:
        """End without figures; never raises."""
        backend = self.backend
        if backend is None or self.card is None:
            return
        self.sync()
        if trouble := guarded(lambda: backend.close(ended if self.trouble is None else None)):
            self._say(trouble, "the tracker could not be closed", "the run is not affected")
        self.card = None

    def _write(self, told: str) -> None:
        assert self.backend is not None
        now = {"tracker": self.backend.name, "store": self.backend.where, "told": told}
        atomic.write_json(self.run_dir / STATE, self.state | now)

    def _refusal(self, error: Exception) -> MetarecError:
        if isinstance(error, MetarecError):
            return error
        assert self.backend is not None
        fix = f"mend or move away {self.backend.where}"
        return EnvironmentFault(f"logger={self.backend.name}", reason(error), "the tracker cannot be written", fix)

    def _say(self, value: str, what: str, way_out: str) -> None:
        """On stderr even when quiet: a tracker with a gap must not look whole."""
        assert self.backend is not None
        print(f"logger={self.backend.name}: {value}: {what} -- {way_out}", file=sys.stderr, flush=True)


def state_of(run_dir: Path) -> dict[str, Any] | None:
    """What tracker.json says of a run that is carried on: the id, group and store it began with."""
    path = run_dir / STATE
    if not path.exists():
        return None
    try:
        state = parse_json(path.read_text(encoding="utf-8"))
        return {"id": str(state["id"]), "group": state["group"], "store": str(state["store"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "names no run of the tracker"
        raise EnvironmentFault(path, type(error).__name__, what, "remove it: the tracker gets a new run") from error


def guarded(action: Callable[[], None]) -> str | None:
    """Why `action` failed, None where it did not. The Stopped of a signal is no failure of the tracker and goes on."""
    try:
        action()
    except Stopped:
        raise
    except Exception as error:  # each library has its own classes, and none of them may end a run
        return reason(error)
    return None


def reason(error: Exception) -> str:
    """The first line of what a library says, with its kind."""
    said = (str(error).splitlines() or [""])[0].strip()[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
