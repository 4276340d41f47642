"""Every failure that a user can mend, as one line and one exit code.

The line reads ``<where>: <value>: <what> -- <fix>``: *where* is a file with row and column, or a configuration key;
*value* is what was found there. Exit codes (0 ok, 1 a bug with its traceback, 130 and 143 signals) stand beside each class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

INTERRUPTED, TERMINATED = 130, 143  # exit codes after SIGINT and SIGTERM
LONGEST = 500  # characters of each part of a line but the place


class MetarecError(Exception):
    """A failure with a place, a value, a reason and a way out; never shown with a traceback."""

    exit_code = 1

    def __init__(self, where: object, value: object, what: str, fix: str) -> None:
        self.where, self.value, self.what, self.fix = str(where), str(value), what, fix
        super().__init__(where, value, what, fix)

    def __str__(self) -> str:
        line = f"{self.where}: {_short(self.value)}: {_short(self.what)} -- {_short(self.fix)}"
        # a value may be from a file: with line breaks, where the promise is one line, or what moves a terminal's cursor
        return "".join(c if c.isprintable() else "?" for c in " ".join(line.split()))

    def __reduce__(self) -> tuple[type[MetarecError], tuple[Any, ...]]:
        return type(self), (self.where, self.value, self.what, self.fix)


def _short(text: str) -> str:
    """As much as can be read in a line; of a file's names and values nobody knows the length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 80]} ... {text[-75:]}"


class ConfigError(MetarecError):
    """Usage or configuration."""

    exit_code = 2


class DataError(MetarecError):
    """An event log, a table or what is made of them."""

    exit_code = 3


class CheckpointError(MetarecError):
    """A checkpoint that is damaged, foreign or does not fit."""

    exit_code = 4


class EnvironmentFault(MetarecError):
    """Disk, lock, permission, device."""

    exit_code = 5


class DivergedError(MetarecError):
    """A loss, gradient or score that is not finite.

    `task`: its number in the batch, where it is one task's; `user`: his row in the data, once somebody who knows has said.
    """

    exit_code = 6

    def __init__(self, where: object, value: object, what: str, fix: str, *, task: int | None = None) -> None:
        super().__init__(where, value, what, fix)
        self.task = task
        self.user: int | None = None

    def within(self, before: str = "", after: str = "") -> DivergedError:
        """The same, of a place that is told better: `before` and `after` what it says already."""
        where = ", ".join(part for part in (before, self.where, after) if part)
        found = type(self)(where, self.value, self.what, self.fix, task=self.task)
        found.user = self.user
        return found


class Stopped(MetarecError):
    """Ended by a signal, with everything saved; the exit code is 128 + the signal's number."""

    def __init__(self, where: object, value: object, what: str, fix: str, signal_number: int) -> None:
        super().__init__(where, value, what, fix)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type[MetarecError], tuple[Any, ...]]:
        return type(self), (self.where, self.value, self.what, self.fix, self.exit_code - 128)


class Pruned(MetarecError):
    """Ended by a search at a validation, for it falls behind the other trials; saved, and no failure."""

    exit_code = 0


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The spelling in ``choices`` closest to ``name``, or None when nothing is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None
