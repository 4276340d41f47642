"""Running text by characters: each character of each document a target once, behind its own block alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reference.small_text import corpus, document

from metarec.data import characters
from metarec.data.characters import load, read_documents
from metarec.data.prompt_batches import batcher_of, examples_batch
from metarec.data.spec import CharacterSpec
from metarec.errors import DataError

SPEC = CharacterSpec(length=7, n_support=4, n_query=3, n_episodes=2)
CPU = torch.device("cpu")


def texts(path: Path) -> dict[str, str]:
    return {d.name: d.text for d in read_documents(path)}


def expected(text: str, known: str, length: int) -> list[tuple[list[int], int]]:
    """(what is read, target) of every character, by hand: ids + 1, unknown, then BOS behind the known ones."""
    ids = [known.index(c) + 1 if c in known else len(known) + 1 for c in text]
    found = []
    for i, target in enumerate(ids):
        begin = i - i % length
        before = ids[begin - 1] if begin else len(known) + 2
        found.append(([before, *ids[begin:i]], target))
    return found


def test_every_character_is_a_target_once_behind_its_own_block(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    prepared = load(SPEC, path)
    known = "".join(sorted({c for name, text in texts(path).items() if name.startswith("train") for c in text}))
    assert prepared.n_items == len(known) + 2
    batcher = batcher_of(prepared, 7, CPU)
    for domain, name in enumerate(prepared.domains):
        batch = examples_batch(prepared, batcher, prepared.examples_of(np.array([domain]))[None])
        read = []
        for at, target in zip(batch.at[0].tolist(), batch.target[0].tolist(), strict=True):
            s = batch.sequences
            row, step = int(s.row[at - 1]), int(s.step[at - 1])
            start = int(s.starts[0, row])
            read.append((s.items[0, start : start + step + 1].tolist(), target))
        assert read == expected(texts(path)[name], known, 7)


def test_the_same_text_as_parquet_is_the_same_data(tmp_path: Path) -> None:
    path = corpus(tmp_path / "d")
    rows = [(d.split, int(d.name.rsplit("-", 1)[1]), d.text) for d in read_documents(path)]
    table = {
        key: list(column) for key, column in zip(("split", "article", "text"), zip(*rows, strict=True), strict=True)
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    one, other = load(SPEC, path), load(SPEC, tmp_path / "x.parquet")
    assert one.contents == other.contents
    assert one.vocabulary_sha256 == other.vocabulary_sha256


def test_documents_begin_at_titles_and_not_at_sections(tmp_path: Path) -> None:
    found = texts(corpus(tmp_path))
    assert Counter(name.split("-")[0] for name in found) == {"train": 4, "val": 2, "test": 3}
    assert found["train-00000"] == document(0, 60)
    for split, file in (("train", "train"), ("val", "valid"), ("test", "test")):
        own = "".join(text for name, text in found.items() if name.startswith(split))
        assert own == (tmp_path / f"wiki.{file}.tokens").read_text(encoding="utf-8")


def test_a_file_without_titles_is_one_document(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("to be or not to be, that is the question\n" * 3)
    prepared = load(SPEC, tmp_path)
    assert prepared.domains == ("test-00000", "train-00000", "val-00000")
    assert len(prepared.episodes("test")) == 2


def test_short_documents_are_read_and_have_no_episode(tmp_path: Path) -> None:
    prepared = load(SPEC, corpus(tmp_path))
    short = prepared.domains.index("train-00003")
    assert np.diff(prepared.domain_examples)[short] < SPEC.n_support + SPEC.n_query
    assert short not in prepared.candidates(0, 1)
    assert set(prepared.pretraining) >= set(prepared.examples_of(np.array([short])))
    drawn = prepared.training(1, 0, 50, 10)
    assert len(drawn) == 50 and short not in drawn.domain


def test_rare_characters_become_unknown(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    counts = Counter("".join(text for name, text in texts(path).items() if name.startswith("train")))
    kept = sum(count >= 20 for count in counts.values())
    prepared = load(CharacterSpec(7, 20, 4, 3, 2), path)
    assert prepared.n_items == kept + 2 < len(counts) + 2
    unknown = sum(count for count in counts.values() if count < 20)
    train = prepared.examples_of(prepared.of("train"))
    targets = np.concatenate([prepared.tokens[prepared.answer[e] : prepared.example_tokens[e + 1]] for e in train])
    assert int((targets == kept + 1).sum()) == unknown


def test_the_funnel_counts_unknown_characters(tmp_path: Path) -> None:
    (step,) = load(SPEC, corpus(tmp_path)).funnel
    assert "3 unknown in all" in step["why"]  # an é in each test article
    assert step["tokens"] == sum(map(len, texts(tmp_path).values()))


def test_what_is_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path / "d")
    with pytest.raises(DataError, match="no train document has the 2,000 blocks"):
        load(CharacterSpec(7, 1, 1000, 1000), path)
    (path / "more.test.txt").write_text("x")
    with pytest.raises(DataError, match="two files of test"):
        load(SPEC, path)
    for name in ("more.test.txt", "wiki.valid.tokens"):
        (path / name).unlink()
    with pytest.raises(DataError, match="no file of val"):
        load(SPEC, path)
    (path / "valid.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="byte 2: the text is not UTF-8"):
        load(SPEC, path)
    (path / "valid.txt").write_bytes(b"")
    with pytest.raises(DataError, match="no val text"):
        load(SPEC, path)
    with pytest.raises(DataError, match=f"did you mean {path.name}"):
        load(SPEC, tmp_path / "dd")
    pq.write_table(pa.table({"split": ["train"], "text": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no column article"):
        load(SPEC, tmp_path / "x.parquet")
    pq.write_table(pa.table({"split": ["trian"], "article": [1], "text": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 0: split: trian"):
        load(SPEC, tmp_path / "x.parquet")
    pq.write_table(pa.table({"split": ["train"] * 2, "article": [1] * 2, "text": ["x"] * 2}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="stands in two rows"):
        load(SPEC, tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="not readable as Parquet"):
        load(SPEC, tmp_path / "x.txt")


def test_wikitext2(data_dir: Path) -> None:
    """The published corpus has 283 characters, and none of validation and test is unknown."""
    prepared = load(CharacterSpec(), data_dir / "wikitext2" / "articles.parquet")
    assert prepared.counts["domains"] == {"train": 615, "val": 60, "test": 62}
    assert prepared.counts["response_tokens"] == {"train": 10_780_437, "val": 1_120_193, "test": 1_255_019}
    assert prepared.n_items == 285 and " 0 unknown" in prepared.funnel[0]["why"]


def test_blocks_by_hand() -> None:
    tokens, lengths = characters._blocks(np.array([5, 6, 7, 8, 9]), 2, 99)
    assert tokens.tolist() == [99, 5, 6, 6, 7, 8, 8, 9]
    assert lengths.tolist() == [3, 3, 2]
