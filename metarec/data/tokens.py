"""Text to tokens: bytes, a byte-level BPE trained on the spot, or a tokenizer.json of Hugging Face.

    [BOS] prompt, separator, response, [EOS]          ids from 0; `data.prompts` stores id + 1, since 0 is padding

bytes: 256 bytes, BOS 256, SEP 257, EOS 258. bpe:N: N tokens in all, the last three BOS, SEP, EOS (Sennrich et al. 2016,
arXiv:1508.07909; over bytes as in GPT-2). A tokenizer.json is read as data by the `tokenizers` library and runs no code; it
names its BOS and EOS in tokenizer_config.json beside it, or by a usual name; its separator is a line feed. What a text
contains is never read as a special token.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec import plain_files, strict_json
from metarec.durable import replace_file
from metarec.errors import ConfigError, DataError, EnvironmentFault

KEY = "dataset.prompts.tokenizer"
SPECIAL = 3  # BOS, SEP, EOS of bytes and bpe:N
LEAST = 256 + SPECIAL  # tokens of bpe:N: every byte is one
BEGINS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]", "<|endoftext|>")
ENDS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Tokenizer:
    """`encode`: texts -> ids of each, none of them special. `begin` and `separator` are short lists of ids."""

    name: str
    n_tokens: int  # every id is below
    sha256: str  # of what decides ids
    encode: Callable[[Sequence[str]], list[list[int]]]
    begin: tuple[int, ...]
    separator: tuple[int, ...]
    end: int


def tokenizer(name: str, training: Iterable[str], cache_dir: Path, tell: Callable[[str], None]) -> Tokenizer:
    """`bytes`, `bpe:N` trained on the texts `training` (once, then from the cache), or a path."""
    if name == "bytes":
        digest = hashlib.sha256(b"bytes, BOS, SEP, EOS").hexdigest()
        return Tokenizer(name, 259, digest, lambda texts: [list(text.encode()) for text in texts], (256,), (257,), 258)
    _require(name)
    if name.startswith("bpe:"):
        return _trained(name, int(name.removeprefix("bpe:")), sorted(set(training)), cache_dir, tell)
    return _given(name)


def _require(name: str) -> None:
    if importlib.util.find_spec("tokenizers") is None:
        what = "the package tokenizers is not installed"
        raise EnvironmentFault(KEY, name, what, f"pip install 'metarec[lm]', or use {KEY}=bytes")


def _trained(name: str, size: int, texts: list[str], cache_dir: Path, tell: Callable[[str], None]) -> Tokenizer:
    """The special tokens stand behind the trained ones and not among them, so that no text can spell one."""
    import tokenizers

    key = hashlib.sha256(json.dumps([size, tokenizers.__version__, texts]).encode()).hexdigest()[:32]
    path = cache_dir / "tokenizers" / f"{key}.json"
    try:
        kept = path.read_text(encoding="utf-8") if path.exists() else None
        made = None if kept is None else tokenizers.Tokenizer.from_str(_vouched(key, kept))
    except Exception as error:  # the library raises bare Exceptions
        tell(f"tokenizer in the cache is damaged and made again: {path}: {error}")
        made = None
    if made is None:
        made = _learn(size - SPECIAL, texts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = made.to_str()
            replace_file(path, f"{_digest(key, text)}\n{text}".encode())
        except OSError as error:
            what = "the tokenizer cannot be kept in the cache"
            raise EnvironmentFault(path, error.strerror or error, what, "free space or set cache_dir=DIR") from error
    n = made.get_vocab_size()
    if n < size - SPECIAL:
        tell(f"{name}: the training texts give {n + SPECIAL} tokens only")
    digest = hashlib.sha256(made.to_str().encode()).hexdigest()
    return Tokenizer(name, n + SPECIAL, digest, _encoder(made), (n,), (n + 1,), n + 2)


def _digest(key: str, text: str) -> str:
    """Of a tokenizer and of what it was made for: another one's file is a whole tokenizer too."""
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()


def _vouched(key: str, stored: str) -> str:
    """What stands behind its digest: a merge with one letter changed is a whole tokenizer too."""
    digest, _, text = stored.partition("\n")
    if _digest(key, text) != digest:
        raise ValueError("its SHA-256 is not the one in its first line")
    return text


def _learn(size: int, texts: list[str]) -> Any:
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _given(name: str) -> Tokenizer:
    import tokenizers

    path = Path(name).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(KEY, name, "no such tokenizer", f"say bytes, bpe:N, a {FILE} or a directory that holds one")
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(path, error, "not readable as a tokenizer", f"give a {FILE} of Hugging Face") from None
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # a text that spells a special token is text
    begin, end = _ends(path, made)
    # the whole file decides ids; what stands beside it decides the two ends
    digest = hashlib.sha256(f"{made.to_str()} {begin} {end}".encode()).hexdigest()
    encode = _encoder(made)
    (separator,) = encode(["\n"])
    if not separator:
        raise DataError(path, "no token for a line feed", "nothing could stand between prompt and response", FIX)
    n_tokens = 1 + max(made.get_vocab(with_added_tokens=True).values())
    return Tokenizer(str(path), n_tokens, digest, encode, begin, tuple(separator), end)


FIX = "give another tokenizer, or use bytes"


def _ends(path: Path, made: Any) -> tuple[tuple[int, ...], int]:
    """(BOS or nothing, EOS): as the configuration beside the file says; without one, the first usual name it has."""
    try:
        config = strict_json.lenient(plain_files.read_text(path.parent / CONFIG))
        names = [config.get(f"{which}_token") for which in ("bos", "eos")]
    except FileNotFoundError:
        names = [next((n for n in usual if made.token_to_id(n) is not None), None) for usual in (BEGINS, ENDS)]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(path.parent / CONFIG, error, "not readable as its configuration", FIX) from None
    names = [name.get("content") if isinstance(name, dict) else name for name in names]
    begin, end = (None if name is None else made.token_to_id(name) for name in names)
    if end is None:
        what = "it has no token for the end of a text"
        raise DataError(path, names[1] or "no EOS", what, f"name eos_token in {CONFIG} beside it")
    if begin is None and names[0] is not None:
        raise DataError(path, names[0], "its bos_token is none of its tokens", f"correct {CONFIG} beside it")
    return () if begin is None else (begin,), end


def _encoder(made: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in made.encode_batch(list(texts), add_special_tokens=False)]

    return encode
