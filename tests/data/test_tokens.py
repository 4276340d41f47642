"""Tokenizers: bytes, one trained on the spot, and a file of Hugging Face."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reference.small_prompts import SPEC, load, write

from metarec.data import tokens
from metarec.data.tokens import Tokenizer, tokenizer
from metarec.errors import ConfigError, DataError, EnvironmentFault

TEXTS = ["the rule of the house", "the house of the rule", "<eos> the <bos>"]


def made(name: str, cache: Path, texts: list[str] = TEXTS, said: list[str] | None = None) -> Tokenizer:
    return tokenizer(name, texts, cache, (said if said is not None else []).append)


def test_bytes() -> None:
    found = made("bytes", Path())
    assert found.encode(["aé", ""]) == [[97, 195, 169], []]
    assert (found.n_tokens, found.begin, found.separator, found.end) == (259, (256,), (257,), 258)


def test_bpe_is_trained_on_the_texts_and_deterministic(tmp_path: Path) -> None:
    found = made("bpe:300", tmp_path / "a")
    (ids,) = found.encode(["the house"])
    assert len(ids) < len("the house")
    assert max(max(row) for row in found.encode(["the house", "é \0 ÿ"])) < found.n_tokens - 3
    assert (found.begin, found.separator, found.end) == (
        (found.n_tokens - 3,), (found.n_tokens - 2,), found.n_tokens - 1
    )  # fmt: skip
    again = made("bpe:300", tmp_path / "b", TEXTS[::-1] * 2)
    assert again.sha256 == found.sha256
    assert again.encode(TEXTS) == found.encode(TEXTS)
    assert made("bpe:300", tmp_path / "a", ["other"]).sha256 != found.sha256
    # what a text spells is never a special token
    assert not {found.n_tokens - 1 - i for i in range(3)} & {i for row in found.encode(TEXTS) for i in row}


def test_bpe_comes_from_the_cache_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made("bpe:280", tmp_path)
    (file,) = (tmp_path / "tokenizers").iterdir()
    learn = tokens._learn
    monkeypatch.setattr(tokens, "_learn", lambda size, texts: pytest.fail("it was in the cache"))
    assert made("bpe:280", tmp_path).sha256 == first.sha256
    monkeypatch.setattr(tokens, "_learn", learn)
    kept = file.read_text(encoding="utf-8")
    # the last is a whole tokenizer all the same, of another merge
    for text in (
        "{",
        kept[:-3],
        kept.replace('"vocab"', '"Vocab"', 1),
        kept.replace('"t","h"', '"t","i"').replace("t h", "t i"),
    ):
        file.write_text(text, encoding="utf-8")
        said: list[str] = []
        assert made("bpe:280", tmp_path, said=said).sha256 == first.sha256
        assert text == kept or "damaged and made again" in said[0]
        assert file.read_text(encoding="utf-8") == kept


def test_bpe_of_more_tokens_than_the_texts_give_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    found = made("bpe:5000", tmp_path, said=said)
    assert said == [f"bpe:5000: the training texts give {found.n_tokens} tokens only"]


def test_bpe_sees_no_validation_or_test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    learn = tokens._learn
    monkeypatch.setattr(tokens, "_learn", lambda size, texts: seen.extend(texts) or learn(size, texts))
    load(write(tmp_path / "x.jsonl"), replace(SPEC, tokenizer="bpe:260"))
    assert set(seen) == {"ab", "c", "xyz", "abab", "x", "xx", "", "é"}


def hugging_face(directory: Path, special: list[str], config: dict[str, Any] | None = None) -> Path:
    """A tokenizer.json of single bytes and these special tokens, with truncation, which must not cut."""
    from tokenizers import AddedToken, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HF

    directory.mkdir()
    one = HF(models.BPE())
    one.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    one.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False))
    one.add_special_tokens([AddedToken(name, special=True) for name in special])
    one.enable_truncation(2)
    one.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_tokenizer_of_hugging_face(tmp_path: Path) -> None:
    """Ends by the configuration beside it, in both of its forms, or by a usual name; without a BOS there is none."""
    usual = made(str(hugging_face(tmp_path / "a", ["<s>", "</s>"]) / "tokenizer.json"), tmp_path)
    assert (usual.n_tokens, usual.begin, usual.end) == (258, (256,), 257)
    (newline,) = usual.encode(["\n"])
    assert usual.separator == tuple(newline)
    assert len(usual.encode(["abcdef"])[0]) == 6
    assert 257 not in usual.encode(["a</s>"])[0]
    config = {"bos_token": None, "eos_token": {"content": "<end>"}}
    named = made(str(hugging_face(tmp_path / "b", ["<x>", "<end>", "</s>"], config)), tmp_path)
    assert (named.begin, named.end) == ((), 257)


def test_an_example_without_a_bos(tmp_path: Path) -> None:
    directory = hugging_face(tmp_path / "hf", ["</s>"])
    found = load(write(tmp_path / "x.jsonl"), replace(SPEC, tokenizer=str(directory)))
    one = found.tokenizer
    (a, c), end = one.encode(["c", "\n"]), one.end
    expected = [i + 1 for i in (*a, *c, *a, end)]
    domain = found.domains.index("copy")
    example = int(found.domain_examples[domain]) + 1
    assert found.tokens[found.example_tokens[example] : found.example_tokens[example + 1]].tolist() == expected


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.prompts.tokenizer: byte: no such tokenizer -- say bytes, bpe:N"):
        made("byte", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not readable as a tokenizer"):
        made(str(tmp_path), tmp_path)
    with pytest.raises(DataError, match="it has no token for the end of a text -- name eos_token"):
        made(str(hugging_face(tmp_path / "a", ["<x>"])), tmp_path)
    wrong = {"bos_token": "<nothing>", "eos_token": "</s>"}
    with pytest.raises(DataError, match="its bos_token is none of its tokens"):
        made(str(hugging_face(tmp_path / "b", ["</s>"], wrong)), tmp_path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        made("bpe:300", tmp_path)
    assert str(caught.value) == (
        "dataset.prompts.tokenizer: bpe:300: the package tokenizers is not installed -- "
        "pip install 'metarec[lm]', or use dataset.prompts.tokenizer=bytes"
    )
    assert made("bytes", tmp_path).n_tokens == 259
