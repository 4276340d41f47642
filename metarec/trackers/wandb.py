"""Weights & Biases, offline: RUN/wandb holds one transaction log that `wandb sync RUN/wandb/offline-run-*` uploads later.

No account and no network unless `logger.online=true` asks for them; the API key is then wandb's own affair
(WANDB_API_KEY or `wandb login`), never a key of the configuration. Offline the log is made anew when a run is carried
on: it holds the records of history.jsonl, told at that time. Online a step that the server has is not told again.
Host, user, program, git, requirements and console output, which wandb collects of itself, are switched off.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

from metarec.errors import EnvironmentFault
from metarec.trackers.card import Card, Closing, Row

EXIT_CODES = {"stopped": 143, "failed": 1}
HEADER, BLOCK = 7, 32768  # bytes of the file's and of a record's head; a record does not cross a block but in parts


class Wandb:
    name = "wandb"

    def __init__(self, run_dir: Path, project: str, online: bool) -> None:
        self.run_dir, self.project, self.online = run_dir, project, online
        self.where = str(run_dir / "wandb")
        self._run: Any = None
        self._first = 0  # steps before it are with the server already

    def connect(self) -> None:
        """Raises EnvironmentFault for a login that needs a key and has none; offline it asks for nothing."""
        if not self.online:
            # offline or not, wandb counts its uses at its maker's server
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self.online and not wandb.login(prompt=False):
            raise EnvironmentFault(
                "logger.online", "true", "wandb has no API key", "set WANDB_API_KEY, run `wandb login`, or drop it"
            )

    def begin(self, card: Card, rows: list[Row]) -> None:
        """Offline a new log; online the same run by `card.id`, from the step that the server has."""
        import wandb

        if not self.online:
            shutil.rmtree(self.where, ignore_errors=True)
        settings = wandb.Settings(
            mode="online" if self.online else "offline", root_dir=str(self.run_dir), silent=True, symlink=False,
            console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_machine_info=True, x_disable_stats=True, x_save_requirements=False, host="", username="",
            email="", program="",
        )  # fmt: skip
        self._run = wandb.init(
            id=card.id, project=self.project, name=card.name, group=card.group,
            config={**card.config, "notes": dict(card.notes)}, resume="allow" if self.online else None, settings=settings,
        )  # fmt: skip
        self._first = self._run.starting_step
        self.tell(rows)

    def tell(self, rows: list[Row]) -> None:
        """Steps below the one the server has reached are left out, for it takes no step twice."""
        for step, numbers in rows:
            if step >= self._first:
                self._run.log(numbers, step=step)

    def finish(self, closing: Closing) -> None:
        """Figures and closing notes; offline the log is then checked to be whole."""
        self._run.config.update({"closing_notes": dict(closing.notes)}, allow_val_change=True)
        self._run.summary.update(dict(closing.figures))
        self._end(0)
        if not self.online:
            for path in Path(self.where).glob("*/*.wandb"):
                check_whole(path)

    def close(self, ended: str | None) -> None:
        """Closed with the exit code of how it ended; nothing where no run began."""
        if self._run is not None:
            self._end(EXIT_CODES.get(ended or "failed", 1))

    def _end(self, exit_code: int) -> None:
        import wandb

        run, self._run = self._run, None
        try:
            try:
                run.finish(exit_code)
            finally:
                wandb.teardown()  # waits for its service process: behind `finish` alone the log may still be empty
        except SystemExit as error:  # what it makes of a service process that died; it must not end the run
            raise OSError(f"wandb's service process ended with {error.code}") from error


def check_whole(path: Path) -> None:
    """OSError unless the log at `path` can be read to its last record, the run's end: wandb is silent of a full disk.

    The file is a LevelDB log: behind its header, records of a CRC-32, a length (2 bytes) and a kind (1 whole, 2 first,
    3 middle, 4 last part), none of them across a block.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, last = path.read_bytes(), HEADER, b"", None
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no room for a head: the next block
            at += BLOCK - at % BLOCK
            continue
        check, size, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + HEADER : at + HEADER + size]
        if zlib.crc32(bytes([kind]) + part) != check:
            break
        whole, at = whole + part, at + HEADER + size
        if kind in (1, 4):
            last, whole = Record.FromString(whole).WhichOneof("record_type"), b""
    if last != "exit":
        raise OSError(f"{path} ends after {at} bytes without the end of the run: is the disk full?")
