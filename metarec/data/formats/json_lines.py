"""JSON lines: every line an object, and every mapped field in it; also compressed by gzip.

The engine (DuckDB) reads the file as one column of text and takes the fields out by pointer, so a line keeps its
number, blank ones included. A column is a dotted path: event.product.sku is the field sku of product of event. Left to
`metarec.data.row_check`: null, empty and blank ids, and times, as in every format.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from metarec import strict_json
from metarec.data.faults import shown
from metarec.data.formats import text
from metarec.data.formats.reader import Column, Opened, Reader, Words, mapped
from metarec.data.formats.recognise import BOM
from metarec.data.quoting import literal
from metarec.data.spec import DatasetSpec
from metarec.errors import DataError, nearest

Field = tuple[str, ...]  # the keys from the line's object down to the value
_KINDS = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "text"}
_SHAPES = {"OBJECT": "an object", "ARRAY": "a list", "BOOLEAN": "true or false"}
_NEW = "jq -c {} FILE > NEW.jsonl"


def open_file(con: duckdb.DuckDBPyConnection, files: list[Path], spec: DatasetSpec, zipped: bool) -> Opened:
    """Columns by dotted path. Raises DataError naming the line for a field that is missing or of the wrong kind."""
    (path,) = files
    relation = text.lines(path, zipped)
    line, known = read_fields(con, path, zipped, relation)
    words = replace(READER.words, header=f"line {line}")
    columns = [
        Column(role, name, "text", key, f"c{at}")
        for at, (role, name, key) in enumerate(mapped(spec, list(known), path, words))
    ]
    fields = [known[column.name] for column in columns]
    check_fields(con, path, relation, columns, fields)
    return Opened(columns, values(relation, fields))


def values(relation: str, fields: list[Field]) -> str:
    """The relation (c0, c1, ..., row) of ``fields`` as text, out of `lines`."""
    chosen = ", ".join(f"v[{at + 1}] AS c{at}" for at in range(len(fields)))
    return (
        f"(SELECT {chosen}, row FROM (SELECT row, json_extract_string(line, {_pointers(fields)}) AS v FROM {relation}))"
    )


def read_fields(
    con: duckdb.DuckDBPyConnection, path: Path, zipped: bool, relation: str
) -> tuple[int, dict[str, Field]]:
    """Check that every line is a JSON object; returns the number of the first line and its fields by dotted name."""
    text.read_head(path, zipped, READER)
    text.check_bytes(path, zipped, READER)
    found = con.execute(
        f"SELECT row, line FROM {relation} WHERE CASE WHEN json_valid(line) THEN json_type(line) ELSE '' END "
        "<> 'OBJECT' ORDER BY row LIMIT 1"
    ).fetchone()
    first = con.execute(f"SELECT row, line FROM {relation} ORDER BY row LIMIT 1").fetchone()
    if found is not None:
        raise _not_an_object(con, path, *found, first=found == first)
    assert first is not None  # a file of blank lines has been refused
    names: dict[str, Field] = {}
    for field in _leaves(_parsed(con, path, *first)):
        if ".".join(field) in names:
            raise DataError(
                f"{path}: line {first[0] + 1}",
                ".".join(field),
                "two fields have this dotted name",
                "rename one of them",
            )
        names[".".join(field)] = field
    return first[0] + 1, names


def check_fields(
    con: duckdb.DuckDBPyConnection, path: Path, relation: str, columns: list[Column], fields: list[Field]
) -> None:
    """Refuse the first line in which a mapped field is missing, stands twice, or is no text or number."""
    holders = sorted({field[:at] for field in fields for at in range(len(field))})
    checked = (
        f"(SELECT row, line, json_type(line, {_pointers(fields)}) AS k, json_extract_string(line, {_pointers(fields)}) "
        f"AS v, json_keys(line, {_pointers(holders)}) AS h FROM {relation})"
    )
    faults: list[tuple[int, str, str]] = []
    for at, (column, field) in enumerate(zip(columns, fields, strict=True)):
        k, v = f"k[{at + 1}]", f"v[{at + 1}]"
        twice = " OR ".join(
            f"len(list_filter(h[{holders.index(field[:n]) + 1}], lambda x: x = {literal(field[n])})) > 1"
            for n in range(len(field))
        )
        faults += [(at, "missing", f"{k} IS NULL"), (at, "twice", twice), (at, "shape", f"{k} IN {tuple(_SHAPES)}")]
        if column.role in "uis":  # whole numbers beyond 64 bits are DOUBLE to the engine, and keep their digits as text
            faults.append((at, "part", f"{k} = 'DOUBLE' AND NOT regexp_full_match({v}, '-?[0-9]+')"))
            faults.append((at, "text", f"{k} = 'VARCHAR'"))
            faults.append((at, "number", f"{k} NOT IN ('VARCHAR', 'NULL')"))
    counts = con.execute(
        "SELECT " + ", ".join(f"count(*) FILTER (WHERE {test})" for *_, test in faults) + f" FROM {checked}"
    ).fetchone()
    number = {(at, name): n for (at, name, _), n in zip(faults, counts or (), strict=True)}
    for at, name, test in faults:
        if number[at, name] and name not in ("text", "number"):
            found = con.execute(
                f"SELECT row, line, k[{at + 1}], v[{at + 1}] FROM {checked} WHERE {test} ORDER BY row LIMIT 1"
            ).fetchone()
            assert found is not None
            raise _fault(con, path, columns[at], fields[at], name, number[at, name], found)
    for at, column in enumerate(columns):
        if number.get((at, "text")) and number.get((at, "number")):
            _check_one_type(con, path, column, at, checked)


def _check_one_type(con: duckdb.DuckDBPyConnection, path: Path, column: Column, at: int, checked: str) -> None:
    """Refuse an id that stands both as a number and as text, 5 and "5": as text they are one user, and may be two."""
    k, v = f"k[{at + 1}]", f"v[{at + 1}]"
    found = con.execute(
        f"SELECT min(row) FILTER (WHERE {k} = 'VARCHAR'), min(row) FILTER (WHERE {k} <> 'VARCHAR'), {v} FROM {checked} "
        f"WHERE {k} <> 'NULL' GROUP BY {v} HAVING min({k} = 'VARCHAR') <> max({k} = 'VARCHAR') ORDER BY 1 LIMIT 1"
    ).fetchone()
    if found is not None:
        as_text, number, value = found
        raise DataError(
            f"{path}: line {as_text + 1}: field {column.name}",
            f'"{value}"',
            f"the same id is a number in line {number + 1} and text here",
            "write it in one way, so that one id is not two",
        )


def _fault(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    column: Column,
    field: Field,
    name: str,
    number: int,
    found: tuple[Any, ...],
) -> DataError:
    row, line, kind, value = found
    place = f"{path}: line {row + 1}: field {column.name}"
    others = "" if number == 1 else f" (and in {number - 1:,} more lines)"
    if name == "missing":
        names = [".".join(leaf) for leaf in _leaves(_parsed(con, path, row, line))]
        near = nearest(column.name, names)
        return DataError(
            place,
            "missing",
            _why_missing(_parsed(con, path, row, line), field) + others,
            (f"did you mean {near}? " if near else "") + "write the field in every line, or remove the line",
        )
    if name == "twice":
        return DataError(place, shown(line), "a key on its way stands twice in one object" + others, "keep one of them")
    if name == "part":
        return DataError(
            place, value, "an id with a fraction or exponent" + others, "store ids as whole numbers or text"
        )
    need = "a time (a number or ISO 8601 text)" if column.role == "t" else "a whole number or text"
    inner = f"name a field inside it, dataset.columns.{column.key}={column.name}.NAME" if kind == "OBJECT" else ""
    return DataError(
        place,
        shown(value),
        f"{_SHAPES[kind]}, where {need} is needed{others}",
        inner or f"convert the field, or say dataset.columns.{column.key}=NAME",
    )


def _why_missing(line: Any, field: Field) -> str:
    """What stands where the path of ``field`` ends early."""
    for at, key in enumerate(field):
        holder = ".".join(field[:at])
        if not isinstance(line, dict):
            return f"{holder} is {_KINDS.get(type(line), 'a number')}, not an object"
        if key not in line:
            return f"{holder or 'the line'} holds {shown(', '.join(map(repr, line))) if line else 'nothing'}"
        line = line[key]
    return "no such field"


def _leaves(value: Any, at: Field = ()) -> list[Field]:
    """The fields of an object that hold no object themselves, from the outermost on."""
    if not isinstance(value, dict) or not value:
        return [at]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*at, key))]


def _parsed(con: duckdb.DuckDBPyConnection, path: Path, row: int, line: str) -> Any:
    """A line as Python has it, by way of the engine, which lets more pass (a comma before a closing bracket)."""
    (plain,) = con.execute("SELECT json(?)::VARCHAR", [line]).fetchone() or ("null",)
    try:
        value = strict_json.lenient(plain, parse_int=float)
        strict_json.check_depth(value)
    except ValueError:
        what = f"lists and objects lie more than {strict_json.DEPTH} deep in each other"
        raise DataError(f"{path}: line {row + 1}", shown(line), what, "write the line flatter, or remove it") from None
    return value


def _not_an_object(con: duckdb.DuckDBPyConnection, path: Path, row: int, line: str, *, first: bool) -> DataError:
    place, value = f"{path}: line {row + 1}", shown(line)
    begins = line.lstrip()[:1]
    query = "'.[]'" if begins == "[" else "."
    whole = f"if the file is one JSON document, write one object a line: {_NEW.format(query)}"
    try:
        con.execute("SELECT json_type(?::VARCHAR)", [line])
    except duckdb.InvalidInputException as error:
        reason = re.search(r"Malformed JSON at (byte \d+) of input: (.*?)\.  Input", str(error))
        what = "broken JSON" + (f", {reason[1]}: {reason[2]}" if reason else "")
        if first and begins not in ("{", "["):
            return DataError(
                place, value, what, "say dataset.format=csv if it is CSV; every line must be a JSON object"
            )
        return DataError(place, value, what, whole if first else "mend or remove the line")
    return DataError(
        place, value, 'not an object, {"field": value, ...}', whole if first else "write one JSON object a line"
    )


def _pointers(fields: list[Field]) -> str:
    """A list of JSON pointers in SQL."""
    escaped = (("/" + key.replace("~", "~0").replace("/", "~1") for key in field) for field in fields)
    return "[" + ", ".join(literal("".join(keys)) for keys in escaped) + "]"


def _kind(head: bytes) -> str | None:
    return "JSON" if head.removeprefix(BOM).lstrip()[:1] in (b"{", b"[") else None


_CONTROL = "broken JSON: it holds the control character \\x01", "mend or remove the line"
READER = Reader(
    noun="JSON lines",
    plural=True,
    example="a file with one JSON object a line",
    suffixes=(".jsonl", ".ndjson"),
    open=open_file,
    words=Words("line", "field", "line 1", "the line"),
    kind=_kind,
    fault=text.LineFaults(
        fields=_CONTROL, other=_CONTROL, long=(text.LineFaults.long[0], f"write one object a line: {_NEW.format('.')}")
    ),
)
