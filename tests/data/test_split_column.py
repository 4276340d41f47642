"""dataset.split.by=column: the users stand where the log puts them, and what the column leaves open is said or refused.

Against the slow reference on random logs: test_prepare.py; the properties of its episodes: test_properties.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.prepare_reference import Row
from reference.small_logs import (
    SPLIT,
    assert_as_reference,
    example_log,
    prepare_or_none,
    prepare_rows,
    shape,
    write_log,
)

from metarec.config.overrides import check_words
from metarec.data import guards, pipeline, splits, sql, store
from metarec.data.cache import fingerprint
from metarec.data.prepare import prepare
from metarec.data.spec import Columns, Core, DatasetSpec
from metarec.data.store import Prepared
from metarec.errors import DataError

PUBLISHED = ["train", "test", "train", "train", "train", "train", "test", "test", "train"]  # no validation users


def said(words: list[str]) -> list[Row]:
    """`example_log` under another split column."""
    return [replace(row, split=words[row.user]) for row in example_log()]


def as_file(rows: list[Row], path: Path) -> Path:
    """CSV, CSV.gz, Parquet or a directory of Parquet files, by the name."""
    write_log(rows, path.with_suffix(".whole"))
    table = pq.read_table(path.with_suffix(".whole"))
    if path.suffix in (".csv", ".gz"):
        table.to_pandas().to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.mkdir()
        pq.write_table(table.slice(0, 100), path / "a.parquet")
        pq.write_table(table.slice(100), path / "b.parquet")
    return path


def prepared_from(path: Path, **options: Any) -> Prepared:
    spec = shape(by=options.pop("by", "column"), path=str(path), **options)
    return prepare(spec, data_dir=None, cache_dir=path.parent / "cache")


def test_the_column_decides() -> None:
    prepared = prepare_rows(example_log(), shape(by="column"))
    assert prepared.user_split.tolist() == [{"train": 0, "val": 1, "valid": 1, "test": 2}[word] for word in SPLIT]
    assert (prepared.split_by, prepared.counts["users"]) == ("column", {"train": 5, "val": 2, "test": 2})
    assert "drawn" not in prepared.split_note
    by_auto = prepare_rows(example_log(), shape(by="auto", columns=Columns(split="split")))
    assert by_auto.user_split.tolist() == prepared.user_split.tolist()


def test_validation_is_drawn_from_the_training_users_where_the_column_has_none() -> None:
    prepared = prepare_rows(said(PUBLISHED), shape(by="column"))
    training = [user for user in range(9) if PUBLISHED[user] == "train"]
    shuffled = list(training)
    np.random.RandomState(20260107).shuffle(shuffled)
    assert np.flatnonzero(prepared.user_split == 1).tolist() == sorted(shuffled[:1])  # floor(0.3 * 6)
    assert np.flatnonzero(prepared.user_split == 2).tolist() == [1, 6, 7]
    assert prepared.split_note.endswith("validation: 1 of its training users, drawn")


def test_the_draw_never_changes() -> None:
    split = np.array([0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0], dtype=np.int8)
    drawn = splits.with_validation(split, 0.34, 1)
    assert np.flatnonzero(drawn == 1).tolist() == [3, 8, 10]
    assert np.array_equal(drawn == 2, split == 2)
    assert splits.with_validation(split, 0.1, 1).tolist() == split.tolist()  # less than one user


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    names = ("log.csv", "log.csv.gz", "log.parquet", "parts")
    found = [prepared_from(as_file(example_log(), tmp_path / name)) for name in names]
    coded = tmp_path / "coded.parquet"
    table = pq.read_table(tmp_path / "log.parquet")
    pq.write_table(table.set_column(5, "split", table["split"].dictionary_encode()), coded)
    for other in [*found[1:], prepared_from(coded)]:
        for name in store.ARRAYS:
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "parts"])
def test_bad_columns(name: str, tmp_path: Path) -> None:
    def refused(rows: list[Row], folder: str, *parts: str, **options: Any) -> None:
        (tmp_path / folder).mkdir()
        path = as_file(rows, tmp_path / folder / name)
        with pytest.raises(DataError) as caught:
            prepared_from(path, **options)
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(str(path))
        for part in parts:
            assert part in line, line

    place = "b.parquet: row 6: column split" if name == "parts" else f"{name}: row 106: column split"
    tset, other, empty = example_log(), example_log(), example_log()
    tset[105] = replace(tset[105], split="tset")
    refused(tset, "word", f"{place}: tset: user 4: no such split -- write train, val, valid, validation, test")
    other[105] = replace(other[105], split="test")
    first = "a.parquet: row 97" if name == "parts" else "row 97"
    refused(other, "two", f"{place}: test: user 4 is in two splits: val in ", first, "one split, or let metarec")
    other[30] = replace(other[30], split="train")
    refused(other, "three", "row 31: column split: train: user 1 is in two splits", "(so are 1 more users)")
    empty[105] = replace(empty[105], split=None)
    refused(
        empty,
        "none",
        f"{place}: ",
        "'': user 4: no such" if name == "log.csv" else "null: user 4: the split is missing",
    )
    capital = [word.replace("test", "Test") for word in SPLIT]
    refused(said(capital), "case", "Test: user 1: no such split (and in 47 more rows)")
    no_test = ["val" if word == "test" else word for word in SPLIT]
    refused(said(no_test), "untested", ": column split: train, val, valid: no user is test -- write test in the rows")
    refused(said(["test"] * 9), "untrained", ": column split: test: no user is train", "dataset.split.by=user_disjoint")
    missing = "header: spilt: no such column"
    refused(example_log(), "name", missing, "did you mean split? say dataset.columns.split=", columns=Columns(split="spilt"),
            by="auto")  # fmt: skip


def test_a_column_of_numbers_is_no_split(tmp_path: Path) -> None:
    table = pq.read_table(as_file(example_log(), tmp_path / "log.parquet"))
    pq.write_table(table.set_column(5, "split", pa.array([0] * len(table))), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"column split: int64: of a type that cannot be read as the words of a split"):
        prepared_from(tmp_path / "log.parquet")


def test_validation_users_that_a_filter_dropped_are_not_made_up_for() -> None:
    rows = [row for row in example_log() if SPLIT[row.user] not in ("val", "valid") or row.order < 8]
    with pytest.raises(
        DataError, match=r"no user of split val .* no user with a pair is left there; .*k-core dropped 16"
    ):
        prepare_rows(rows, shape(by="column", core=Core(9, 0)))


def test_a_share_too_small_for_one_user_says_so() -> None:
    spec = shape(by="column")
    spec.split.fractions = [0.8, 0.1, 0.1]
    with pytest.raises(DataError, match=r"split val .* raise the second of dataset\.split\.fractions"):
        prepare_rows(said(PUBLISHED), spec)


def test_under_another_rule_the_column_is_not_read() -> None:
    rows = said(["nonsense"] * 9)
    plain = prepare_rows(rows, shape(by="user_disjoint"))
    mapped = prepare_rows(rows, shape(by="user_disjoint", columns=Columns(split="split")))
    assert plain.user_split.tolist() == mapped.user_split.tolist()


# --- time ------------------------------------------------------------------------------------------------------------


def test_the_leak_is_judged_by_the_clock() -> None:
    """The users of `example_log` start one after another, ten minutes apart, so each overlaps the next."""
    leaky = prepare_rows(example_log(), shape(by="column"))
    assert leaky.leaky
    assert "by the log's own column, leaky: " in leaky.split_note
    rows = [
        replace(row, time=row.time + 10**12 * (SPLIT[row.user] == "test")) for row in example_log()
    ]  # tested 11 days later
    later = prepare_rows(rows, shape(by="column"))
    assert not later.leaky
    assert later.split_note.endswith("own column; no training event is later than the earliest test target")


def test_without_a_clock_nothing_is_claimed() -> None:
    rows = [replace(row, time=row.order * 1_000_000) for row in example_log()]
    prepared = prepare_rows(rows, shape(by="column", time_unit="order"))
    assert not prepared.leaky
    assert prepared.split_note.endswith("order only: whether the test is later than the training is not known")


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_column_is_part_of_the_identity(tmp_path: Path) -> None:
    one = DatasetSpec(columns=Columns(split="split"))
    assert fingerprint(one, {}) != fingerprint(replace(one, columns=Columns(split="fold")), {})
    assert fingerprint(one, {}) != fingerprint(DatasetSpec(), {})
    rows = example_log()
    first = prepared_from(as_file(rows, tmp_path / "log.parquet"))
    moved = prepared_from(as_file(said(PUBLISHED), tmp_path / "log.parquet"))
    assert first.fingerprint != moved.fingerprint
    assert first.user_split.tolist() != moved.user_split.tolist()


def test_a_log_without_a_split_column_keeps_its_cache() -> None:
    """What was prepared before there were split columns is found again."""
    assert fingerprint(DatasetSpec(), {"files": []}) == "e39a3658d088ce8e4b47ae436d112191"
    assert fingerprint(DatasetSpec(source="synthetic"), {"world": 1}) == "3bb81dbd91ff0a079c792626b3a9f382"


# --- the guard -------------------------------------------------------------------------------------------------------


def planted(prepared: Prepared, user: int, code: int) -> Prepared:
    """``user`` in another split, the events for training moved along, so that only the column tells."""
    split, end = np.array(prepared.user_split), np.array(prepared.train_event_end)
    split[user] = code
    events = np.asarray(prepared.session_offsets)[np.asarray(prepared.user_sessions)]
    end[user] = events[user + 1] if code == 0 else events[user]
    other = replace(prepared, user_split=split, train_event_end=end)
    for lazy in ("user_ids", "item_ids", "given_split"):
        other.__dict__[lazy] = getattr(prepared, lazy)
    return other


@pytest.mark.parametrize(
    ("words", "user", "code", "named"),
    [
        (SPLIT, 1, 0, "user 1: stands in split train, and the log's column says test"),
        (SPLIT, 0, 2, "user 0: stands in split test, and the log's column says train"),
        (SPLIT, 0, 1, "user 0: stands in split val, and the log's column says train"),  # validation users are named
        (SPLIT, 7, 0, "user 7: stands in split train, and the log's column says valid"),
        (PUBLISHED, 6, 1, "user 6: stands in split val, and the log's column says test"),
    ],
)
def test_the_guard_knows_the_column(words: list[str], user: int, code: int, named: str, tmp_path: Path) -> None:
    prepared = prepared_from(as_file(said(words), tmp_path / "log.parquet"))
    guards.check(prepared)
    wrong = planted(prepared, user, code)
    guards.check_split(wrong)  # consistent in itself
    with pytest.raises(DataError, match=f"guard split: {named}"):
        guards.check(wrong)


def test_the_guard_knows_the_users(tmp_path: Path) -> None:
    prepared = prepared_from(as_file(example_log(), tmp_path / "log.parquet"))
    prepared.__dict__["user_ids"] = np.array(["0", "1", "2", "3", "4", "44", "6", "7", "8"])
    with pytest.raises(DataError, match="user 44: the log's split column does not know him"):
        guards.check_given_split(prepared)


def test_users_matched_by_a_wrong_row_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that a guard is for: the codes of kept users taken for those of all."""
    first_two = {0, 1}
    rows = [row for row in example_log() if row.user not in first_two or row.order < 8]
    prepare_rows(rows, shape(by="column", core=Core(9, 0)))
    given = pipeline.LogPipeline._given_split

    def misplaced(self: pipeline.LogPipeline) -> np.ndarray:
        kept, self.kept_users = self.kept_users, np.arange(len(self.kept_users))
        found = given(self)
        self.kept_users = kept
        return found

    monkeypatch.setattr(pipeline.LogPipeline, "_given_split", misplaced)
    with pytest.raises(DataError, match="guard split: user 3: stands in split test"):
        prepare_rows(rows, shape(by="column", core=Core(9, 0)))


@pytest.mark.parametrize("fault", ["test trains", "other rows", "drawn from all", "val is train"])
def test_the_reference_finds_faults_without_the_guard(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    rows = said(PUBLISHED if fault == "drawn from all" else SPLIT)
    spec = shape(by="column")
    assert_as_reference(prepare_rows(rows, spec), rows, spec, "gap", "column")
    monkeypatch.setattr(guards, "check", lambda prepared: None)
    codes = sql.split_codes()
    if fault == "test trains":
        codes = codes.replace("WHEN 'test' THEN 2", "WHEN 'test' THEN 0")
    if fault == "other rows":
        codes = codes.replace("ORDER BY user_code.code", "ORDER BY user_code.code DESC")
    if fault == "val is train":
        codes = codes.replace("ELSE 1", "WHEN 'val' THEN 1 ELSE 0")
    if fault == "drawn from all":
        monkeypatch.setattr(
            splits, "with_validation", lambda split, share, seed: splits.assign_users(9, [0.4, 0.3], seed)
        )
    assert (codes != sql.split_codes()) == (fault != "drawn from all")
    monkeypatch.setattr(sql, "split_codes", lambda: codes)
    with pytest.raises((AssertionError, DataError)) as caught:
        assert_as_reference(prepare_or_none(rows, spec), rows, spec, "gap", "column")
    assert "guard" not in str(caught.value)


# --- published -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_diginetica_has_the_published_pairs(data_dir: Path, tmp_path: Path) -> None:
    """719,470 and 60,858 pairs, as the published preprocessing expands its training and its test sessions."""
    (job,) = check_words("train", ["experiment=diginetica_published", f"data_dir={data_dir}"]).jobs
    prepared = prepare(job.config.dataset, data_dir=data_dir, cache_dir=tmp_path)  # type: ignore[union-attr]
    pairs = prepared.counts["pairs"]
    assert (pairs["train"] + pairs["val"], pairs["test"]) == (719_470, 60_858)
    assert (prepared.n_items, prepared.n_read) == (43_097, 43_092)
    users = prepared.counts["users"]
    assert (users["val"], users["train"] + users["val"]) == (int(0.02 * 186_670), 186_670)
    assert (prepared.counts["episodes"]["test"], users["test"]) == (11_446, 15_963)
    assert not prepared.leaky
