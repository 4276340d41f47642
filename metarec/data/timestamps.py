"""The time column of an event log: its unit, found once over all rows, and the SQL that turns it into microseconds.

A Parquet timestamp or date says its unit itself (a time zone names an instant; without one, UTC is read). ISO 8601
text is read with its zone, else as UTC. Numbers, in text too, are judged by size, for a log lies between 1973 and
5138 in exactly one unit:

    0 <= v < 1e8   a position in a sequence, no clock      1e11 <= v < 1e14   milliseconds
    1e8 <= v < 1e11   seconds since 1970-01-01 UTC         1e14 <= v < 1e17   microseconds      1e17 <= v   nanoseconds

Values of two classes are a mix of units and refused. A unit given by hand allows small values (a clock that starts at
zero) and still refuses a mix. All functions write SQL over one column named ``t``; none reads rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

# name: (smallest value, first value beyond, microseconds as (multiply, divide), word)
UNITS = {
    "s": (1e8, 1e11, (1_000_000, 1), "seconds"),
    "ms": (1e11, 1e14, (1_000, 1), "milliseconds"),
    "us": (1e14, 1e17, (1, 1), "microseconds"),
    "ns": (1e17, 9.2e18, (1, 1_000), "nanoseconds"),
}
ORDER_END = 1e8
LAST = 9.2e18  # beyond int64, whatever the unit


@dataclass(frozen=True)
class TimePlan:
    """How to read the column: ``sql`` over ``t`` gives BIGINT microseconds since 1970 UTC, or the position without a
    clock."""

    sql: str
    has_clock: bool
    note: str


class TimeFault(Exception):
    """A column that cannot be read as times; ``predicate`` is SQL over ``t``, true for the rows at fault (None: the
    whole column)."""

    def __init__(self, what: str, fix: str, predicate: str | None) -> None:
        super().__init__(what)
        self.what, self.fix, self.predicate = what, fix, predicate


def reading(kind: str, first: str | None) -> str:
    """``typed``, ``iso`` or ``number``: how a column of ``kind`` (formats.parquet.time_class) is read; text is judged
    by its first value."""
    if kind.startswith(("timestamp", "date")):
        return "typed"
    if kind != "text":
        return "number"
    try:
        float(first or "")
    except ValueError:
        return "iso"
    return "number"


def aggregates(kind: str, how: str) -> dict[str, str]:
    """Name -> SQL aggregate over ``t`` for the one pass over all rows: bad, low, high and, of numbers, fraction."""
    v = value_sql(kind, how)
    found = {"bad": f"count(*) FILTER (WHERE NOT {_finite(v, how)})", "low": f"min({v})", "high": f"max({v})"}
    return found | ({"fraction": f"count(*) FILTER (WHERE {_fraction(kind)})"} if how == "number" else {})


def size_aggregates(kind: str, how: str, counts: dict[str, Any]) -> dict[str, str]:
    """Aggregates of a second pass, needed only when the smallest and the largest number are of different classes.

    Otherwise empty, and every row is known to be of the class of ``counts["low"]``.
    """
    if how != "number" or counts["bad"] or size_of(counts["low"]) == size_of(counts["high"]):
        return {}
    v = value_sql(kind, how)
    tests = {"order": f"{v} < {ORDER_END}"} | {
        u: f"{v} >= {low} AND {v} < {high}" for u, (low, high, *_) in UNITS.items()
    }
    return {name: f"count(*) FILTER (WHERE {test})" for name, test in tests.items()}


def size_of(value: float) -> str:
    """``order``, ``s``, ``ms``, ``us`` or ``ns`` by the size of ``value``."""
    return next((unit for unit in reversed(UNITS) if value >= UNITS[unit][0]), "order")


def value_sql(kind: str, how: str) -> str:
    """``t`` as microseconds (typed, iso) or as DOUBLE in its own unit (number); NULL where it cannot be read."""
    if how == "typed":
        # nanoseconds with a zone have no epoch_us of their own
        return "epoch_us(t::TIMESTAMPTZ)" if kind == "timestamp[ns, zone]" else "epoch_us(t)"
    if how == "iso":
        # the first character keeps out words that the engine would take: epoch, infinity, today
        return "epoch_us(CASE WHEN ascii(t) BETWEEN 48 AND 57 THEN TRY_CAST(t AS TIMESTAMPTZ) END)"
    return "TRY_CAST(t AS DOUBLE)"


def _finite(v: str, how: str) -> str:
    return f"coalesce(isfinite({v}), false)" if how == "number" else f"({v} IS NOT NULL)"


def _fraction(kind: str) -> str:
    if kind == "float":
        return "t <> trunc(t)"
    return "contains(t, '.')" if kind == "text" else "false"


def decide(kind: str, how: str, unit: str, counts: dict[str, Any]) -> TimePlan:
    """The plan for a column with these ``counts`` (n and the aggregates of both passes) under
    dataset.time_unit=``unit``; raises TimeFault."""
    v = value_sql(kind, how)
    if counts["bad"]:
        other = " (the first value is " + ("a number)" if how == "number" else "no number)") if kind == "text" else ""
        raise TimeFault(
            f"not a time{other}",
            "give numbers or ISO 8601 (2024-05-31T12:00:00Z) throughout, no empty values",
            f"NOT {_finite(v, how)}",
        )
    if counts["low"] < 0:
        raise TimeFault("a time before 1970", "mend or remove the row; times count from 1970-01-01 UTC", f"{v} < 0")
    if how != "number":
        return _typed(kind, how, unit, counts, v)
    if counts["high"] >= LAST:
        raise TimeFault("beyond any time that 64 bits hold", "mend or remove the row", f"{v} >= {LAST}")
    if unit == "iso":
        raise TimeFault(
            "a number, where dataset.time_unit=iso promises ISO 8601 text", "say dataset.time_unit=auto", "true"
        )
    found = _unit_by_size(counts, v) if unit == "auto" else _unit_by_hand(unit, counts, v)
    if found == "order":
        if counts["fraction"]:
            raise TimeFault(
                "a position in a sequence must be a whole number",
                "if these are clock times say dataset.time_unit=s (or ms, us, ns)",
                _fraction(kind),
            )
        how_known = (
            "as asked"
            if unit == "order"
            else "all below 1e8; if this is a clock say dataset.time_unit=s (or ms, us, ns)"
        )
        return TimePlan("TRY_CAST(t AS BIGINT)", False, f"positions in a sequence, no clock ({how_known})")
    multiply, divide = UNITS[found][2]
    whole = f"TRY_CAST(t AS BIGINT) * {multiply}" if divide == 1 else f"TRY_CAST(t AS BIGINT) // {divide}"
    parts = f"CAST(round(TRY_CAST(t AS DOUBLE) * {multiply} / {divide}) AS BIGINT)"
    sql = {"float": parts, "integer": whole}.get(kind, whole)
    if kind == "text" and counts["fraction"]:
        sql = f"CASE WHEN contains(t, '.') THEN {parts} ELSE {whole} END"
    span = _span(counts["low"] * multiply / divide, counts["high"] * multiply / divide)
    source = "by their size" if unit == "auto" else "as asked"
    return TimePlan(sql, True, f"{UNITS[found][3]} since 1970 UTC ({source}), {span}")


def _typed(kind: str, how: str, unit: str, counts: dict[str, Any], v: str) -> TimePlan:
    """A column that carries its own unit; dataset.time_unit may only agree with it, or take it as an order."""
    named = "ISO 8601 text" if how == "iso" else f"of type {kind}"
    if unit == "order":
        return TimePlan(v, False, f"{named}, read as an order only (as asked)")
    if unit != "auto" and (unit != "iso" or how != "iso"):
        raise TimeFault(
            f"the column is {named}, dataset.time_unit={unit} contradicts it", "say dataset.time_unit=auto", None
        )
    zone = "" if "zone" in kind else ", UTC where no zone is given" if how == "iso" else ", read as UTC"
    kept = ", kept to the microsecond" if "ns" in kind else ""
    return TimePlan(v, True, f"{named}{zone}{kept}, {_span(counts['low'], counts['high'])}")


def _unit_by_size(counts: dict[str, Any], v: str) -> str:
    sizes = {name: counts[name] for name in ("order", *UNITS) if counts.get(name)} or {
        size_of(counts["low"]): counts["n"]
    }
    if len(sizes) > 1:
        raise _mixed(sizes, v)
    return next(iter(sizes))


def _unit_by_hand(unit: str, counts: dict[str, Any], v: str) -> str:
    if unit == "order":
        return unit
    if unit != "ns" and counts["high"] >= 100 * UNITS[unit][1]:
        raise TimeFault(
            f"mixed time units or not {UNITS[unit][3]}: the value is a hundred times beyond any date in that unit",
            "bring the column to one unit, or say dataset.time_unit=auto",
            f"{v} >= {100 * UNITS[unit][1]}",
        )
    if counts["low"] >= UNITS[unit][1]:  # a clock that starts at zero may end there, but not begin
        raise TimeFault(
            f"not {UNITS[unit][3]}: in that unit every time is beyond the year 5138",
            "say dataset.time_unit=auto, or the unit that the column has",
            f"{v} >= {UNITS[unit][1]}",
        )
    names = list(UNITS)
    lower = {name: counts[name] for name in names[: names.index(unit)] if counts.get(name)}
    # A clock that starts at zero passes through every class below its own; a mix of units leaves the lowest one empty.
    # (Where no second pass was needed all rows are of one class, and ``lower`` is empty.)
    if lower and counts[unit] and not counts["order"]:
        raise _mixed(lower | {unit: counts[unit]}, v)
    return unit


def _mixed(sizes: dict[str, int], v: str) -> TimeFault:
    """The fault of a column whose values fall into several classes; its predicate picks the rarest."""
    rare, common = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
    low, high = (0, ORDER_END) if rare == "order" else UNITS[rare][:2]
    word = {name: UNITS[name][3] if name in UNITS else "too small for a clock time" for name in sizes}
    if rare == common:  # as many of one as of the other
        common = next(name for name in sizes if name != rare)
    many = f"{sizes[rare]:,} value{'s' if sizes[rare] > 1 else ''}"
    return TimeFault(
        f"mixed time units: {many} of this size ({word[rare]}), {sizes[common]:,} of another ({word[common]})",
        "bring the column to one unit; if it is one unit, name it: dataset.time_unit=s|ms|us|ns|order",
        f"{v} >= {low} AND {v} < {high}",
    )


def _span(low_us: float, high_us: float) -> str:
    """First and last day of times in microseconds since 1970 UTC."""
    return f"{_day(low_us)} to {_day(high_us)}"


def _day(us: float) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).strftime("%Y-%m-%d")
    except OverflowError:  # seconds by hand may lie beyond the year 9999
        return f"{us / 1e6:.0f} s"
