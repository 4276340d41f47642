"""Titles of items, as where their rows of a language model's table start.

    row of item i = mean of E[token] over the tokens of its title; of an item without a title, the mean of all such rows

E is the language model's own table of tokens. Its tokenizer is the directory's tokenizer.json; a model without a
directory gets a byte-level BPE of the titles (Sennrich et al. 2016, arXiv:1508.07909; bytes: Radford et al. 2019), made
on the spot: its table is random, but titles that share words share directions.

The file: Parquet, or text whose separator (:: tab ; | ,) is told from its first line. A column is named by its heading, or
by its number from 1 in a file without headings, such as MovieLens' movies.dat: title_columns=[1,2].

Shapes: V items, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec import plain_files
from metarec.errors import ConfigError, DataError, nearest

SEPARATORS = ("::", "\t", ";", "|", ",")
KEY = "model.titles"


def locate(titles: str, data_dir: Path | None) -> Path:
    """The file that `model.titles` means; ConfigError where it is not there."""
    path = Path(titles).expanduser()
    if not path.is_absolute():
        if data_dir is None:
            what = "a relative path is looked up in the data directory, and none is set"
            raise ConfigError(KEY, titles, what, "say data_dir=DIR or the METAREC_DATA variable, or give a whole path")
        path = data_dir / path
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        fix = f"did you mean {path.parent / near}?" if near else "check the path"
        raise ConfigError(KEY, path, "there is no such file", fix)
    return path


def read_titles(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Item id -> title, both text; items whose title is empty are left out. DataError for a column or file that is wrong."""
    table = _table(path, columns)
    ids, texts = (table[name] for name in columns)
    found: dict[str, str] = {}
    for number, (item, text) in enumerate(zip(ids.tolist(), texts.tolist(), strict=True)):
        if not _there(item):
            continue
        name = str(int(item)) if isinstance(item, float) and item == int(item) else str(item)
        if name in found:
            raise DataError(f"{path}: row {number + 1}", name, "a second title of this item", "give one row an item")
        found[name] = str(text).strip() if _there(text) else ""
    return {name: text for name, text in found.items() if text}


def _there(value: Any) -> bool:
    return value is not None and value == value and value != ""  # NaN is unlike itself


def _table(path: Path, columns: Sequence[str]) -> Any:
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(plain_files.require_plain(path))
        else:
            try:
                raw, encoding = plain_files.read_text(path), "utf-8"
            except UnicodeDecodeError:  # MovieLens' own files; of no byte does it say that it is none
                raw, encoding = path.read_text(encoding="latin-1"), "latin-1"
            first = raw.split("\n", 1)[0]
            separator = next((one for one in SEPARATORS if one in first), ",")
            numbered = all(name.isdigit() for name in columns)
            table = pd.read_csv(
                path, sep=separator, engine="python" if separator == "::" else "c", dtype=str, encoding=encoding,
                header=None if numbered else "infer", keep_default_na=False,
            )  # fmt: skip
            if numbered:
                table.columns = [str(number + 1) for number in range(table.shape[1])]
    except (OSError, ValueError, pd.errors.ParserError) as reason:
        raise DataError(
            path, type(reason).__name__, f"not a readable table ({reason})", "give CSV, TSV or Parquet"
        ) from reason
    for name in columns:
        if name not in table.columns:
            names = [str(one) for one in table.columns]
            near = nearest(name, names)
            fix = f"did you mean {near}?" if near else f"model.title_columns=[ID,TITLE]; it has {', '.join(names)}"
            raise DataError(path, name, "the table has no such column", fix)
    return table


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer of a Hugging Face directory; ConfigError where it has no tokenizer.json."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        fix = "save it with a fast tokenizer's save_pretrained, or drop model.titles"
        raise ConfigError("model.path", directory, "titles are read by its tokenizer.json, and it has none", fix)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as reason:  # the library raises nothing narrower
        raise ConfigError("model.path", path, f"not a tokenizer ({reason})", "save it again") from reason


def trained_tokenizer(titles: Sequence[str], size: int) -> Any:
    """A byte-level BPE of at most `size` tokens, a function of the titles and their order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        titles, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def rows_of(titles: Sequence[str], tokenizer: Any, table: Tensor, given: Tensor) -> tuple[Tensor, int]:
    """Rows [V, H] by titles (V of them, "" where there is none), and how many have none.

    table [tokens, H], the language model's; given [V, H], what is returned where no item has a title.
    """
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids if text else [] for text in titles]
    counts = torch.tensor([len(own) for own in tokens], dtype=torch.int64)
    if not int(counts.sum()):
        return given, len(titles)
    flat = torch.tensor([token for own in tokens for token in own], dtype=torch.int64)
    rows = F.embedding_bag(flat, table, counts.cumsum(0) - counts, mode="mean")
    has = counts > 0
    rows[~has] = rows[has].mean(0)
    return rows, int((~has).sum())
