"""From an event log to prepared data: duplicates, k-core, sessions, split, vocabulary, pairs, episodes, guards.

The steps over events are the SQL of `metarec.data.sql`, run by DuckDB on files of its own beside the cache, one range
of users after another; what comes out in order is streamed into the arrays of `metarec.data.store`. Order of the
filters:

    rows -> duplicates -> k-core -> sessions -> repeats inside a session -> short sessions -> users split
         -> time cut -> sessions that the cut made too short -> vocabulary of the training users -> pairs -> episodes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metarec.data import export, guards, source, splits, store, tables
from metarec.data.cache import fingerprint, open_or_build
from metarec.data.funnel import Funnel, late_training_events, split_counts
from metarec.data.pipeline import LogPipeline
from metarec.data.spec import DatasetSpec
from metarec.data.store import Meta, Prepared
from metarec.data.table_files import table_paths

Report = Callable[[str], None]


def prepare(
    spec: DatasetSpec, *, data_dir: Path | None, cache_dir: Path, report: Report | None = None,
    export_dir: Path | None = None,
) -> Prepared:  # fmt: skip
    """The prepared data of ``spec``, from the cache if the same input and options were prepared before.

    ``report`` gets a line at every stage. ``export_dir``: also write the published tables there. Raises ConfigError
    for an option, DataError for the log (with file and row), EnvironmentFault for disk and memory; nothing
    half-written remains.
    """
    say = report or (lambda line: None)
    for problem in splits.spec_problems(spec):
        raise problem
    if spec.source == "episode_tables":
        origin = _tables_fingerprint(spec, data_dir)
    elif spec.source == "synthetic":
        origin = {"world": asdict(spec.world)}
    else:
        origin = source.source_fingerprint(spec, data_dir)
    name = fingerprint(spec, origin)

    def build(work: Path) -> None:
        if spec.source == "episode_tables":
            meta, steps = _tables(spec, data_dir, work, name, say)
        else:
            meta, steps = LogPipeline(spec, data_dir, work, name, say).run()
        finish(work, meta, steps, say)

    prepared = open_or_build(cache_dir, name, build, say)
    if export_dir is not None:
        export.export_tables(prepared, export_dir)
    return prepared


def finish(work: Path, meta: Meta, steps: Funnel, report: Report) -> None:
    """Complete a directory that holds arrays and ids: refuse empty splits, judge the leak, run the guards, seal it."""
    draft = store.assemble(work, meta)
    splits.require_episodes(draft, f"; {steps.last_drop()}")
    n_late = late_training_events(draft) if meta.has_clock and meta.split_by != "user_time" else 0
    leaky, note = splits.describe(meta.split_by, meta.has_clock, meta.time_cuts, n_late)
    meta = replace(meta, leaky=leaky, split_note=note + meta.split_note)
    report("checking every event, pair and episode")
    guards.check(replace(draft, **vars(meta)))
    store.seal(work, meta, {"steps": steps.plain(), "counts": split_counts(draft)})


def _tables_fingerprint(spec: DatasetSpec, data_dir: Path | None) -> dict[str, Any]:
    directory = source.locate(spec, data_dir)
    paths = [
        *table_paths(directory, spec.episodes.n_support, spec.episodes.n_query).values(),
        directory / "course2id.json",
    ]
    return {"files": {path.name: store.measure(path) for path in paths if path.exists()}}


def _tables(spec: DatasetSpec, data_dir: Path | None, work: Path, name: str, report: Report) -> tuple[Meta, Funnel]:
    """Write arrays and ids made of published episode tables; returns what `finish` needs."""
    report("reading the episode tables")
    given = tables.read_episode_tables(spec, data_dir)
    for note in given.notes:
        report(note)
    store.write_arrays(work, given.arrays)
    store.write_ids(work, given.user_ids, given.item_ids)
    funnel = Funnel()
    step = funnel.step("input", "; ".join(["events of the tables' sessions", *given.notes]))
    step.rows, step.users, step.items = len(given.arrays["item"]), len(given.user_ids), len(given.item_ids)
    step.sessions = len(given.arrays["session_offsets"]) - 1
    meta = Meta(
        fingerprint=name, name=spec.name, n_items=len(given.item_ids), n_users=len(given.user_ids),
        has_clock=given.has_clock, split_by="user_disjoint", leaky=False, split_note="",
        n_support=given.n_support, n_query=given.n_query, stride=given.stride,
        vocabulary_sha256=store.vocabulary_hash(given.item_ids), time_cuts=None,
        repeated_events=True,  # the tables' times are whole seconds, in which an item may well come back
        given_vocabulary=True,
    )  # fmt: skip
    return meta, funnel
