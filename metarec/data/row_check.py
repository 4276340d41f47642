"""Every row of an opened log checked in one pass: ids that are there and unambiguous, times that can be read.

Works on the view `log_file` (columns u, i, t, maybe s, o and p, and row) that `metarec.data.source` leaves in the
engine. Counts of each fault are aggregates of one query; only when one is not zero is the first row at fault looked
up and named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from metarec.data import splits, timestamps
from metarec.data.formats.reader import FILE_SHIFT, Column, Words
from metarec.errors import DataError

_BLANKS = "' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13) || chr(160) || chr(0)"
_EXACT = 2**53  # whole numbers up to here are exact in a double


class RowCheck:
    """The checks over the view `log_file` of ``columns`` read from ``files``; messages speak in ``words``."""

    def __init__(self, con: duckdb.DuckDBPyConnection, files: list[Path], columns: list[Column], words: Words) -> None:
        self.con, self.files, self.words = con, files, words
        self.by_role = {column.role: column for column in columns}
        self.ids = [column for column in columns if column.role != "t"]

    def run(self, time_unit: str) -> tuple[int, timestamps.TimePlan]:
        """(rows, how to read the time); raises DataError naming file, row, column and value of the first row at
        fault."""
        time = self.by_role["t"]
        first = self._one("SELECT t::VARCHAR FROM log_file LIMIT 1")
        if first is None:
            raise DataError(self.files[0], "0 rows", "the log has no rows", "give a log with at least one event")
        how = timestamps.reading(time.kind, first[0])
        aggregates = {"n": "count(*)"} | timestamps.aggregates(time.kind, how)
        for column in self.ids:
            for name, (predicate, _, _) in _faults(column).items():
                aggregates[f"{column.role}_{name}"] = f"count(*) FILTER (WHERE {predicate})"
            if column.kind == "text" and column.role not in ("o", "p"):
                aggregates[f"{column.role}_wide"] = (
                    f"count(*) FILTER (WHERE strlen({column.role}) <> length({column.role}))"
                )
        counts = self._aggregate(aggregates)
        for column in self.ids:
            for name, (predicate, what, fix) in _faults(column).items():
                if number := counts[f"{column.role}_{name}"]:
                    raise self._fault(column, predicate, what + _others(number), fix)
            if counts.get(f"{column.role}_wide"):
                self._one_form(column)
        if "p" in self.by_role:
            self._check_split(self.by_role["p"])
        if sizes := timestamps.size_aggregates(time.kind, how, counts):
            counts |= self._aggregate(sizes)
        try:
            return counts["n"], timestamps.decide(time.kind, how, time_unit, counts)
        except timestamps.TimeFault as fault:
            if fault.predicate is None:
                raise DataError(
                    f"{self.files[0]}: {self.words.column} {time.name}", time_unit, fault.what, fault.fix
                ) from None
            raise self._fault(time, fault.predicate, fault.what, fault.fix) from None

    def _aggregate(self, expressions: dict[str, str]) -> dict[str, Any]:
        found = self._one("SELECT " + ", ".join(expressions.values()) + " FROM log_file")
        return dict(zip(expressions, found or (), strict=True))

    def _one(self, sql: str) -> tuple[Any, ...] | None:
        return self.con.execute(sql).fetchone()

    def _fault(self, column: Column, predicate: str, what: str, fix: str) -> DataError:
        """The DataError of the first row for which ``predicate`` holds."""
        c = column.role
        found = self._one(f"SELECT row, {c}::VARCHAR, u::VARCHAR FROM log_file WHERE {predicate} ORDER BY row LIMIT 1")
        if found is None:
            # A filter trusts the column statistics that a file may hold, an aggregate reads the rows: the two disagree.
            what += "; the row is not found again, so the file is damaged (statistics against rows) or being changed"
            return DataError(self.files[0], column.name, what, "get a fresh copy and leave it alone while it is read")
        if c == "p":
            what = f"user {_shown(found[2])}: {what}"
        return DataError(f"{self._place(found[0])}: {self.words.column} {column.name}", _shown(found[1]), what, fix)

    def _check_split(self, column: Column) -> None:
        """Refuse a user whose rows name two splits, and a column that leaves nobody to train or to test."""
        way_out = "or let metarec split the users: dataset.split.by=user_disjoint"
        code = "CASE p WHEN 'train' THEN 0 WHEN 'test' THEN 2 ELSE 1 END"
        torn = f"SELECT u FROM log_file GROUP BY u HAVING min({code}) <> max({code})"
        (number,) = self._one(f"SELECT count(*) FROM ({torn})") or (0,)
        if number:
            found = self._one(
                f"SELECT row, p, u::VARCHAR, first_row, first_p FROM (SELECT row, p, u, {code} AS code, "
                f"first_value(row) OVER w AS first_row, first_value(p) OVER w AS first_p, first_value({code}) OVER w "
                f"AS first_code FROM log_file WHERE u IN ({torn}) WINDOW w AS (PARTITION BY u ORDER BY row)) "
                "WHERE code <> first_code ORDER BY row LIMIT 1"
            )
            assert found is not None
            row, word, user, first_row, first_word = found
            first = self._place(first_row)
            if row >> FILE_SHIFT == first_row >> FILE_SHIFT:
                first = first.removeprefix(f"{self.files[row >> FILE_SHIFT]}: ")
            others = "" if number == 1 else f" (so are {number - 1:,} more users)"
            raise DataError(
                f"{self._place(row)}: {self.words.column} {column.name}",
                word,
                f"user {_shown(user)} is in two splits: {first_word} in {first}{others}",
                f"give all rows of a user one split, {way_out}",
            )
        words = [word for (word,) in self.con.execute("SELECT DISTINCT p FROM log_file ORDER BY p").fetchall()]
        for needed in ("train", "test"):
            if needed not in words:
                place = self.files[0] if len(self.files) == 1 else self.files[0].parent
                fix = f"write {needed} in the rows of the users who {needed}, {way_out}"
                raise DataError(
                    f"{place}: {self.words.column} {column.name}", ", ".join(words), f"no user is {needed}", fix
                )

    def _place(self, row: int) -> str:
        return f"{self.files[row >> FILE_SHIFT]}: {self.words.row} {(row & ((1 << FILE_SHIFT) - 1)) + 1}"

    def _one_form(self, column: Column) -> None:
        """Refuse two ids that differ only in how an accent is encoded (NFC, NFD): they print alike and are two
        users."""
        c = column.role
        found = self._one(
            f"SELECT any_value(row), min({c}) FROM log_file WHERE strlen({c}) <> length({c}) "
            f"GROUP BY nfc_normalize({c}) HAVING min({c}) <> max({c}) LIMIT 1"
        )
        if found is not None:
            raise DataError(
                f"{self._place(found[0])}: {self.words.column} {column.name}",
                _shown(found[1]),
                "the same id stands in two Unicode forms (NFC and NFD)",
                "bring the column to one form, such as NFC",
            )


def _faults(column: Column) -> dict[str, tuple[str, str, str]]:
    """name -> (SQL predicate of a row at fault, what is wrong, how to mend it)."""
    nouns = {"u": "user id", "i": "item id", "s": "session id", "o": "position", "p": "split"}
    c, noun = column.role, nouns[column.role]
    found = {"null": (f"{c} IS NULL", f"the {noun} is missing", "fill it in or remove the row")}
    if column.role == "p":
        found["word"] = (f"p NOT IN {splits.WORDS}", "no such split", f"write {', '.join(splits.WORDS)}")
    elif column.role == "o":
        whole = "contains(o, '.')" if column.kind == "text" else "o <> trunc(o)" if column.kind == "float" else "false"
        found["null"] = (
            f"{column.order_sql} IS NULL OR {whole}",
            "not a whole number",
            "ties=order needs whole numbers",
        )
    elif column.kind == "text":
        found["empty"] = (f"{c} = ''", f"the {noun} is empty", "fill it in or remove the row")
        # Kept as it is, "u1 " would be a second user beside "u1"; cut off, two ids that differ on purpose would
        # become one. Only the owner of the log knows which, so neither is done. NUL too: it vanishes at the end
        # of a fixed- width string.
        found["blank"] = (
            f"{c} <> trim({c}, {_BLANKS})",
            f"white space or NUL around the {noun}",
            "trim the column, so that one id is not two",
        )
    elif column.kind == "float":
        found["part"] = (
            f"NOT coalesce(isfinite({c}) AND {c} = trunc({c}) AND abs({c}) <= {_EXACT}, false)",
            f"the {noun} is a float and not a whole number below 2^53",
            "store ids as integers or text (an integer column with gaps becomes float in pandas)",
        )
    return found


def _others(number: int) -> str:
    return "" if number == 1 else f" (and in {number - 1:,} more rows)"


def _shown(value: str | None) -> str:
    """A cell as it can be printed: quoted where white space would hide, at most 80 characters."""
    if value is None:
        return "null"
    text = value if value.isprintable() and value == value.strip() and value else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
