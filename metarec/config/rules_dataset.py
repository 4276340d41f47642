"""Rules about the data (`metarec.config.rules` collects them)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from metarec.config.seen import Seen
from metarec.data import formats
from metarec.data.spec import DatasetSpec, WorldSpec, split_column
from metarec.options import Refusal


def dataset_path_missing(seen: Seen) -> Iterator[Refusal]:
    """A log or images without a place to read them from."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is not None and spec.source not in ("synthetic", "prompts") and spec.path is None:
        yield "dataset.path", f"dataset={spec.name} needs a file or directory", "add dataset.path=FILE"


def dataset_path_unused(seen: Seen) -> Iterator[Refusal]:
    """A path beside the embedded world, which is generated: the file would never be opened."""
    if seen.get("dataset.source") == "synthetic" and seen.get("dataset.path") is not None:
        yield "dataset.path", "the embedded world is generated, not read", "add dataset=events, or drop dataset.path"


def data_dir_missing(seen: Seen) -> Iterator[Refusal]:
    """A dataset that is looked up in a data directory, by a relative path, where none is known."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None or not spec.in_data_dir or spec.path is None or os.path.isabs(spec.path):
        return
    if not seen.get("data_dir"):
        yield "data_dir", f"dataset={spec.name} is read from a data directory", "add data_dir=DIR, or set METAREC_DATA"


def world_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of the embedded world beside a log, typed or changed in a config file."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is not None and spec.source != "synthetic":
        keys = seen.asked("dataset.world") or (["dataset.world"] if spec.world != WorldSpec() else [])
        for key in keys:
            yield key, f"does nothing: dataset={spec.name} is a log", "drop it, or use dataset=synthetic"


def world_ranges(seen: Seen) -> Iterator[Refusal]:
    """Ranges of the embedded world that end before they begin, and topics in the world that has none."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None or spec.source != "synthetic":
        return
    for what in ("sessions", "events"):
        low, high = getattr(spec.world, f"min_{what}"), getattr(spec.world, f"max_{what}")
        if low > high:
            yield f"dataset.world.min_{what}", f"is more than dataset.world.max_{what}={high}", "lower it"
    if spec.world.kind == "transition":
        for key in seen.asked("dataset.world.n_topics") + seen.asked("dataset.world.concentration"):
            fix = "drop it, or use dataset.world.kind=preference"
            yield key, "does nothing: the transition world has no topics", fix


def clock_needed(seen: Seen) -> Iterator[Refusal]:
    """Cuts in time and gaps in minutes where events have an order and no clock."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    if spec.source == "synthetic":
        why = "the embedded world has an order and no clock"
    elif spec.time_unit == "order":
        why = "dataset.time_unit=order is an order and no clock"
    else:
        return
    if spec.split.by == "user_time":
        fix = "use dataset.split.by=user_disjoint or leave_one_out"
        yield "dataset.split.by", f"needs clock times: {why}", fix
    if spec.sessions.by == "gap":
        yield "dataset.sessions.by", f"a gap needs clock times: {why}", "use dataset.sessions.by=user or column"


def column_missing(seen: Seen) -> Iterator[Refusal]:
    """A split, order or session that is read from a column, where none is named."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    if spec.split.by == "column" and split_column(spec) is None:
        fix = "use dataset.split.by=user_disjoint"
        if spec.source == "log":
            fix = f"add dataset.columns.split=NAME, or {fix}"
        yield "dataset.split.by", "column needs a log with a column that holds the split", fix
    if spec.source != "log":
        return
    if spec.ties == "order" and spec.columns.order is None:
        fix = "add dataset.columns.order=NAME, or use dataset.ties=item"
        yield "dataset.ties", "order needs the column that holds it", fix
    if spec.sessions.by == "column" and spec.columns.session is None:
        fix = "add dataset.columns.session=NAME, or use dataset.sessions.by=gap"
        yield "dataset.sessions.by", "column needs the column that holds the session", fix


def split_shape(seen: Seen) -> Iterator[Refusal]:
    """Shares of users that do not add up to 1, and a validation period that is empty."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    total = math.fsum(spec.split.fractions)
    if abs(total - 1) > 1e-9:
        fix = "give train, validation and test shares that add up to 1"
        yield "dataset.split.fractions", f"add up to {total:.10g}", fix
    first, second = spec.split.time_quantiles
    if first >= second:
        yield "dataset.split.time_quantiles", "the validation period would be empty", "give two rising values"


def split_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of one way to split beside another: they would do nothing."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    by = "column" if split_column(spec) is not None else spec.split.by
    if spec.columns.split is not None and by != "column":
        for key in seen.asked("dataset.columns.split"):
            what = f"dataset.split.by={by}" if spec.source == "log" else f"dataset={spec.name} has no columns"
            yield key, f"does nothing: {what}", "drop it, or use dataset.split.by=column with a log"
    if by in ("user_disjoint", "leave_one_out", "column"):
        for key in seen.asked("dataset.split.time_quantiles"):
            fix = "drop it, or use dataset.split.by=user_time"
            yield key, f"does nothing: dataset.split.by={by} has no time cut", fix
    if by == "leave_one_out":
        for key in seen.asked("dataset.split.fractions") + seen.asked("dataset.split.seed"):
            fix = "drop it, or use dataset.split.by=user_disjoint"
            yield key, "does nothing: leave_one_out divides no users", fix


def gap_unused(seen: Seen) -> Iterator[Refusal]:
    """A gap in minutes where sessions are told by the user or a column."""
    by = seen.get("dataset.sessions.by")
    if by in ("user", "column"):
        for key in seen.asked("dataset.sessions.gap_minutes"):
            yield key, f"does nothing: dataset.sessions.by={by}", "drop it, or use dataset.sessions.by=gap"


def delimiter_unused(seen: Seen) -> Iterator[Refusal]:
    """A delimiter for a format that separates nothing by one."""
    name, asked = seen.get("dataset.format"), seen.asked("dataset.delimiter")
    if asked and name in formats.FORMATS and not (reader := formats.reader_of(name)).delimiter:
        able = "|".join(other for other, found in formats.readers().items() if found.delimiter)
        for key in asked:
            yield key, f"does nothing: {reader.has} no delimiter", f"drop it, or use dataset.format={able}"
