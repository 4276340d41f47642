"""The engine's run over one log: the steps of `metarec.data.sql` in their order, counted, streamed into arrays.

Tables live in the engine's memory up to dataset.memory_limit and beyond it in temporary files inside the directory in
progress, which are removed at the end. From the codes on, one range of users is worked on after another (see sql.py),
so memory does not grow with the log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.data import shuffle, source, splits, sql, store, synthetic
from metarec.data.arrays import EventWriter, index_items, write_users_and_pairs
from metarec.data.faults import Fault, translate
from metarec.data.formats.reader import FILE_SHIFT
from metarec.data.funnel import Funnel
from metarec.data.spec import DatasetSpec
from metarec.data.store import Meta
from metarec.errors import DataError

PART_ROWS = 2_500_000  # events worked on at once: about 0.5 GB in the widest window step
BATCH_ROWS = 500_000  # rows handed from the engine to the arrays at a time
MINUTE = 60_000_000  # microseconds


@dataclass
class _Columns:
    """Which columns the events carry from step to step."""

    tie: str | None
    label: bool

    @property
    def order(self) -> str:
        return sql.total_order(tie=self.tie is not None, label=self.label)

    def __str__(self) -> str:
        return "u, i, t" + (", tie" if self.tie else "") + (", label" if self.label else "")


class LogPipeline:
    """One run of the engine over one log."""

    def __init__(
        self, spec: DatasetSpec, data_dir: Path | None, work: Path, name: str, report: Callable[[str], None]
    ) -> None:
        self.spec, self.data_dir, self.work, self.name, self.report = spec, data_dir, work, name, report
        self.where = spec.path or spec.name
        self.fault: Fault | None = None  # what the format of the log makes of an engine's message
        self.funnel = Funnel()
        self.split_note = ""  # what a reader of the split must know besides the rule
        self.engine_files = work / "engine"  # removed at the end; inside the directory in progress, so on its disk

    def run(self) -> tuple[Meta, Funnel]:
        """Write arrays and ids into the directory; returns what `metarec.data.prepare.finish` needs."""
        self.engine_files.mkdir()
        try:
            self.con = duckdb.connect(":memory:", config=self._settings())
            try:
                return self._run()
            finally:
                self.con.close()
        except duckdb.Error as error:
            raise translate(error, self.where, self.fault) from error
        finally:
            shutil.rmtree(self.engine_files)

    def _settings(self) -> dict[str, str | bool | int | float | list[str]]:
        return {
            "memory_limit": self.spec.memory_limit,
            "threads": os.cpu_count() or 1,
            "temp_directory": str(self.engine_files / "spill"),
            "preserve_insertion_order": False,  # every step that needs an order names it
        }

    def _run(self) -> tuple[Meta, Funnel]:
        has_clock = self._open()
        rule, split_by = splits.session_rule(self.spec, has_clock), splits.split_rule(self.spec, has_clock)
        tie = {"item": None, "row": "row", "order": "ord"}[self.spec.ties]
        self.columns = _Columns(tie, rule == "column")
        self._encode()
        self.report("ordering events into sessions")
        self._core()
        self._sessions(rule)
        split, cuts = self._split(split_by)
        shuffled, numbers = self.spec.sessions.order == "shuffled", self.engine_files / "numbers.npy"
        codes = self.engine_files / "codes.npy"
        writer = EventWriter(self.work, codes, self.n_users, numbers if shuffled else None)
        for table in self._cut_parts(cuts):
            rows = self.con.sql(sql.in_order(table, self.columns.order)).to_arrow_reader(BATCH_ROWS)
            for batch in rows:
                writer.append(batch)
        writer.close()
        if not writer.sessions.any():
            raise self._nobody()
        self.report("pairs and vocabulary")
        write_users_and_pairs(self.work, writer.sessions[self.kept_users], split, split_by)
        whole = self.spec.vocabulary == "all"
        vocabulary, n_trained = index_items(self.work, codes, self.n_items, whole)
        users, items = self._ids("user_code", self.kept_users), self._ids("item_code", vocabulary)
        store.write_ids(self.work, users, items)
        if shuffled:
            self._shuffle(numbers, users, split_by)
        shape, one = self.spec.episodes, split_by == "leave_one_out"
        n_query = {"train": shape.n_query, "val": 1 if one else shape.n_query, "test": 1 if one else shape.n_query}
        meta = Meta(
            fingerprint=self.name, name=self.spec.name, n_items=len(vocabulary), n_users=len(self.kept_users),
            has_clock=has_clock, split_by=split_by, leaky=False, split_note=self.split_note,
            n_support=shape.n_support, n_query=n_query, stride=shape.stride,
            vocabulary_sha256=store.vocabulary_hash(items.to_pylist()), time_cuts=cuts,
            repeated_events=self.spec.duplicates == "keep", given_vocabulary=whole,
            n_read=n_trained if whole else None, order=self.spec.sessions.order,
        )  # fmt: skip
        return meta, self.funnel

    # --- the whole log ------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Make the relation `log`; returns whether its times are clock times."""
        if self.spec.source == "synthetic":
            self.report("drawing the embedded world")
            log, world = synthetic.generate(self.spec.world)
            world.save(self.work / "world.npz")
            self.con.register("world_log", log)
            self.con.execute(
                "CREATE TEMPORARY VIEW log AS SELECT user_id, item_id, timestamp AS t, CAST(NULL AS BIGINT) AS row, "
                "timestamp AS ord, session_id AS session FROM world_log"
            )
            return False
        self.report("reading and checking the log")
        info = source.open_log(self.con, self.spec, self.data_dir)
        self.files, self.row_word, self.fault = info.files, info.reader.words.row, info.reader.fault
        self.where = str(info.files[0] if len(info.files) == 1 else info.files[0].parent)
        self.report(f"{info.n_rows:,} rows; {info.time_note}")
        return info.has_clock

    def _encode(self) -> None:
        """Tables user_code, item_code (label_code) and `coded`, and the parts: ranges of users of PART_ROWS events."""
        for name, column in (
            ("user", "user_id"),
            ("item", "item_id"),
            *([("label", "session")] if self.columns.label else []),
        ):
            self._table(f"{name}_id", sql.distinct(column))
            text = self._one(f"SELECT MAX(typeof(id)) FROM {name}_id") == "VARCHAR"
            as_integers = text and self._one(sql.not_canonical(f"{name}_id")) == 0
            self._table(f"{name}_code", sql.codes(f"{name}_id", as_integers=as_integers))
        self._table("coded", sql.coded(tie=self.columns.tie, label=self.columns.label))
        rows = self._column("SELECT n FROM user_code ORDER BY code", "n").astype(np.int64)
        self.n_users, self.n_items = len(rows), int(self._one("SELECT COUNT(*) FROM item_code"))
        if int(rows.sum()) != self._one("SELECT COUNT(*) FROM coded"):
            raise DataError(
                self.where, "rows lost", "an id is missing in a row", "give every row a user, an item and a time"
            )
        step = self.funnel.step("input", "rows of the log")
        step.rows, step.users, step.items = int(rows.sum()), self.n_users, self.n_items
        self.parts: list[tuple[int, int]] = []
        up_to, first = np.cumsum(rows), 0
        while first < self.n_users:
            done = up_to[first - 1] if first else 0
            last = max(first, int(np.searchsorted(up_to, done + PART_ROWS, side="right")) - 1)
            self.parts.append((first, last))
            first = last + 1

    def _core(self) -> None:
        """Without a core, `_sessions` removes duplicates in passing; a core counts events, so they must go before."""
        core = self.spec.core
        self.has_core = core.min_user_events > 1 or core.min_item_events > 1
        if not self.has_core:
            return
        self._table("core", f"SELECT * FROM ({sql.part('coded', 0, -1)}) AS none_yet")
        for _ in self._parts("coded"):
            self._single()
            self.con.execute(f"INSERT INTO core SELECT {self.columns} FROM single")
        found = True
        while found:
            found = False
            for column, query, least in (
                ("u", sql.small_users, core.min_user_events),
                ("i", sql.small_items, core.min_item_events),
            ):
                if least > 1:
                    self._table("too_small", query("core", least))
                    deleted = self._one(f"DELETE FROM core WHERE {column} IN (SELECT {column} FROM too_small)")
                    found = found or deleted > 0
        step = self.funnel.step(
            "k-core", f"users of fewer than {core.min_user_events} events, items of fewer than {core.min_item_events}"
        )
        rows, users, items = self._row("SELECT COUNT(*), COUNT(DISTINCT u), COUNT(DISTINCT i) FROM core")
        step.rows, step.users, step.items = rows, users, items
        if not rows:
            raise self._nobody()

    # --- one part at a time -------------------------------------------------------------------------------------------

    def _parts(self, table: str) -> Iterator[None]:
        """Makes `part` each range of users of ``table`` in turn."""
        for first, last in self.parts:
            self._table("part", sql.part(table, first, last), temporary=True)
            yield

    def _single(self) -> None:
        """`single`: `part` under the rule for rows that repeat (user, time, item)."""
        rows, users = self._row("SELECT COUNT(*), COUNT(DISTINCT u) FROM part")
        n_repeats = 0 if self.spec.duplicates == "keep" else rows - self._one(sql.n_distinct("part"))
        if n_repeats and self.spec.duplicates == "error":
            raise self._repeated()
        query = (
            sql.without_repeats("part", str(self.columns), self.columns.order) if n_repeats else "SELECT * FROM part"
        )
        self._table("single", query, temporary=True)
        step = self.funnel.step(
            "duplicates", f"rows that repeat user, time and item; duplicates={self.spec.duplicates}"
        )
        step.rows += self._one("SELECT COUNT(*) FROM single")
        step.users += users
        step.items = self.n_items

    def _sessions(self, rule: str) -> None:
        """Table `kept`: the events of sessions long enough, with their session number, and the users it holds."""
        sessions = self.spec.sessions
        gap = round(sessions.gap_minutes * MINUTE)
        why = {
            "gap": f"a gap of more than {sessions.gap_minutes:g} minutes opens a session",
            "user": "one sequence per user",
            "column": "the session column",
        }[rule]
        least, columns, order = sessions.min_events, str(self.columns), self.columns.order
        first = True
        for _ in self._parts("core" if self.has_core else "coded"):
            if self.has_core:
                self._table("single", "SELECT * FROM part", temporary=True)
            else:
                self._single()
            self._table("flagged", sql.flagged("single", columns, order, rule, gap), temporary=True)
            self._table("numbered", sql.numbered("flagged", columns, order), temporary=True)
            self._count("sessions", why, "numbered")
            table = "numbered"
            if sessions.drop_repeats:
                table = "changed"
                self._table(table, sql.changes("numbered"), temporary=True)
                self._count("repeats", "the same item twice in a row inside a session", table)
            self._table("long", sql.long_sessions(table, columns, least), temporary=True)
            self._count("short sessions", f"sessions of fewer than {least} events", "long")
            self.con.execute(
                "CREATE TABLE kept AS SELECT * FROM long" if first else "INSERT INTO kept SELECT * FROM long"
            )
            first = False
        self.kept_users = self._column("SELECT DISTINCT u FROM kept ORDER BY u", "u").astype(np.int64)
        if not len(self.kept_users):
            raise self._nobody()

    def _split(self, split_by: str) -> tuple[np.ndarray, tuple[int, int] | None]:
        """(split of every kept user int8 [U], time cuts or None); makes the table `user_split`."""
        rules = self.spec.split
        if split_by == "leave_one_out":
            return np.zeros(len(self.kept_users), dtype=np.int8), None
        if split_by == "column":
            return self._given_split(), None
        split = splits.assign_users(len(self.kept_users), list(rules.fractions), rules.seed)
        if split_by != "user_time":
            return split, None
        codes = pa.table({"u": pa.array(self.kept_users, pa.int32()), "split": pa.array(split)})
        self.con.register("user_split", codes)
        n_events = self._one("SELECT COUNT(*) FROM kept")
        first, second = (
            int(self._one(sql.event_time_at("kept", splits.quantile_position(quantile, n_events))))
            for quantile in rules.time_quantiles
        )
        return split, (first, second)

    def _given_split(self) -> np.ndarray:
        """Split of every kept user as the log's column says, int8 [U]; the column goes beside the arrays for the guard."""
        self._table("split_word", sql.split_words())
        words = self.con.sql("SELECT CAST(id AS VARCHAR) AS id, split FROM split_word ORDER BY id").to_arrow_table()
        pq.write_table(words, self.work / store.GIVEN_SPLIT)
        given = self._column(sql.split_codes(), "split").astype(np.int8)
        split: np.ndarray = given[self.kept_users]
        if (given == 1).any():  # of the whole log: validation users that a filter dropped are not made up for
            return split
        split = splits.with_validation(split, self.spec.split.fractions[1], self.spec.split.seed)
        self.split_note = f"; validation: {int((split == 1).sum()):,} of its training users, drawn"
        return split

    def _cut_parts(self, cuts: tuple[int, int] | None) -> Iterator[str]:
        """For each part the name of the table with its final events."""
        least, columns = self.spec.sessions.min_events, str(self.columns)
        for _ in self._parts("kept"):
            if cuts is None:
                yield "part"
                continue
            self._table("in_time", sql.in_time("part", columns, *cuts), temporary=True)
            self._count(
                "time cut",
                f"training up to {splits.date(cuts[0])}, validation to {splits.date(cuts[1])}, then test",
                "in_time",
            )
            self._table("final", sql.long_sessions("in_time", columns, least), temporary=True)
            self._count("cut sessions", f"sessions that the cut left with fewer than {least} events", "final")
            yield "final"

    def _shuffle(self, numbers: Path, users: pa.ChunkedArray, split_by: str) -> None:
        """Items into another order inside their sessions, counted and said. The vocabulary is made by now, so it is that
        of the real order."""
        self.report("shuffling the items inside every session")
        seed = self.spec.sessions.shuffle_seed
        ids = (str(name) for chunk in users.chunks for name in chunk.to_pylist())
        done = shuffle.shuffle_items(self.work, numbers, ids, seed, split_by)
        self.split_note += f"; ORDER SHUFFLED: items permuted inside their sessions (seed {seed}), not as they came"
        why = (
            f"items permuted inside their sessions, seed {seed}: {done.moved:,} events have the item of another one, "
            f"{done.repeats:,} the item of the one before them"
        )
        last, step = self.funnel.steps[-1], self.funnel.step("shuffled order", why)
        step.rows, step.users, step.sessions, step.items = last.rows, last.users, last.sessions, last.items

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _table(self, name: str, query: str, *, temporary: bool = False) -> None:
        self.con.execute(f"CREATE OR REPLACE {'TEMPORARY ' if temporary else ''}TABLE {name} AS {query}")

    def _row(self, query: str) -> tuple[Any, ...]:
        row = self.con.execute(query).fetchone()
        assert row is not None
        return row

    def _one(self, query: str) -> Any:
        return self._row(query)[0]

    def _column(self, query: str, name: str, values: tuple[Any, ...] = ()) -> np.ndarray:
        return np.asarray(self.con.execute(query, list(values)).fetchnumpy()[name])

    def _count(self, name: str, why: str, table: str) -> None:
        """Add the events of ``table`` to the step ``name`` of the funnel."""
        step = self.funnel.step(name, why, self.n_items)
        rows, users = self._row(f"SELECT COUNT(*), COUNT(DISTINCT u) FROM {table}")
        step.rows += rows
        step.users += users
        step.sessions = (step.sessions or 0) + self._one(
            f"SELECT COUNT(*) FROM (SELECT DISTINCT u, s FROM {table}) AS sessions"
        )
        assert isinstance(step.items, np.ndarray)
        step.items[self._column(f"SELECT DISTINCT i FROM {table}", "i")] = True

    def _ids(self, table: str, codes: np.ndarray) -> pa.ChunkedArray:
        """The ids of ``codes`` as text."""
        ids = self.con.sql(f"SELECT CAST(id AS VARCHAR) AS id FROM {table} ORDER BY code").to_arrow_table().column("id")
        return ids.take(pa.array(codes))

    # --- refusals -----------------------------------------------------------------------------------------------------

    def _nobody(self) -> DataError:
        return DataError(self.where, "0 events left", self.funnel.last_drop(), "relax the filter that dropped most")

    def _repeated(self) -> DataError:
        """Names the earliest repeat and the number of all of them."""
        n_repeats = self._one("SELECT COUNT(*) FROM coded") - self._one(sql.n_distinct("coded"))
        u, i, t = self._row(sql.repeated("coded"))
        user, item = (
            self._one(f"SELECT id FROM user_code WHERE code = {u}"),
            self._one(f"SELECT id FROM item_code WHERE code = {i}"),
        )
        rows = self._column(
            "SELECT row FROM log WHERE user_id = ? AND item_id = ? AND t = ? ORDER BY row", "row", (user, item, t)
        )
        file, first, second = (int(rows[1]) >> FILE_SHIFT), *(int(row) % (1 << FILE_SHIFT) + 1 for row in rows[:2])
        return DataError(f"{self.files[file]}: {self.row_word} {second}", f"user {user}, item {item}",
                         f"repeats {self.row_word} {first}: the same user, item and time "
                         f"({n_repeats:,} such rows in the log)",
                         f"dataset.duplicates=drop drops the {n_repeats:,} repeats, =keep keeps them")  # fmt: skip
