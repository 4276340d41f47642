"""Rows of items by their titles: tables of every kind, means by hand, items without one, the tokenizer made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from reference.small_lms import TOKENS, ours, saved, theirs
from tokenizers import Tokenizer, models, pre_tokenizers

from metarec.errors import ConfigError, DataError
from metarec.models import Catalogue, causal_lm, lm_titles
from metarec.models.causal_lm import ITEMS, Config

TITLES = {"10": "red fish", "20": "blue fish, two", "30": ""}
BY_WORDS = {"red": 4, "fish": 7, "blue": 2, ",": 5, "two": 9, "?": 0}


def frame() -> pd.DataFrame:
    return pd.DataFrame({"other": [1, 2, 3], "item_id": [10, 20, 30], "title": list(TITLES.values())})


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.parquet", "t.dat"])
def test_tables_of_every_kind(name: str, tmp_path: Path) -> None:
    path, table = tmp_path / name, frame()
    columns = ["item_id", "title"]
    if name == "t.parquet":
        table.to_parquet(path)
    elif name == "t.dat":  # as MovieLens has it: no headings, and bytes that are no UTF-8
        path.write_bytes("\n".join(f"{i}::{t}::caf\xe9" for i, t in TITLES.items()).encode("latin-1"))
        columns = ["1", "2"]
    else:
        table.to_csv(path, index=False, sep={"t.csv": ",", "t.tsv": "\t", "t.txt": "|"}[name])
    assert lm_titles.read_titles(path, columns) == {"10": "red fish", "20": "blue fish, two"}


def test_tables_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().to_csv(path, index=False)
    with pytest.raises(DataError, match=r"t\.csv: titel: the table has no such column -- did you mean title\?"):
        lm_titles.read_titles(path, ["item_id", "titel"])
    path.write_text("item_id,title\n1,a\n1,b\n")
    with pytest.raises(DataError, match="row 2: 1: a second title of this item"):
        lm_titles.read_titles(path, ["item_id", "title"])
    (tmp_path / "t.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a readable table"):
        lm_titles.read_titles(tmp_path / "t.parquet", ["item_id", "title"])
    with pytest.raises(ConfigError, match=r"there is no such file -- did you mean .*t\.csv\?"):
        lm_titles.locate("tt.csv", tmp_path)
    with pytest.raises(ConfigError, match="a relative path is looked up in the data directory, and none is set"):
        lm_titles.locate("t.csv", None)
    assert lm_titles.locate("t.csv", tmp_path) == lm_titles.locate(str(path), None) == path


def words() -> Any:
    made = Tokenizer(models.WordLevel(BY_WORDS, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_rows_are_means_of_tokens_of_the_directory(tmp_path: Path) -> None:
    directory = saved(theirs("llama", tied=False), tmp_path / "model")
    words().save(str(directory / "tokenizer.json"))
    frame().to_csv(tmp_path / "t.csv", index=False)
    told: list[str] = []
    config = Config(path=str(directory), titles="t.csv", max_len=20)
    catalogue = Catalogue(4, ids=lambda: ["20", "10", "30", "40"], data_dir=tmp_path, tell=told.append)
    model = causal_lm.build_of(config, catalogue)
    found = model.init(torch.Generator().manual_seed(0), torch.float64)[ITEMS]
    table = dict(theirs("llama", tied=False).named_parameters())["model.embed_tokens.weight"].detach()
    blue = (table[2] + table[7] + table[5] + table[9]) / 4
    red = (table[4] + table[7]) / 2
    mean = (blue + red) / 2
    torch.testing.assert_close(found, torch.stack([0 * red, blue, red, mean, mean]))
    assert told == ["titles: 2 of 4 items have one in t.csv; the other 2 start as the mean of all"]
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"titles are read by its tokenizer\.json, and it has none"):
        model.init(torch.Generator().manual_seed(0))


def test_titles_of_other_items_are_refused(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    made = causal_lm.build_of(Config(titles="t.csv"), Catalogue(2, ids=lambda: ["a", "b"], data_dir=tmp_path))
    line = r"t\.csv: item_id: no item of the data set \(such as a\) is among its ids \(such as 10\)"
    with pytest.raises(DataError, match=line):
        made.init(torch.Generator().manual_seed(0))


def test_a_tokenizer_beyond_the_table_is_refused(tmp_path: Path) -> None:
    directory = saved(theirs("llama"), tmp_path / "model")
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(TOKENS + 1)}, unk_token="w0")).save(
        str(directory / "tokenizer.json")
    )
    frame().to_csv(tmp_path / "t.csv", index=False)
    model = ours(directory, "items", 3)
    config = Config(path=str(directory), titles="t.csv", max_len=20)
    model = causal_lm.build_of(config, Catalogue(3, ids=lambda: list(TITLES), data_dir=tmp_path))
    with pytest.raises(ConfigError, match="its tokenizer has 24 tokens, its table 23 rows"):
        model.init(torch.Generator().manual_seed(0))


def test_of_a_new_model_titles_that_share_words_share_directions(tmp_path: Path) -> None:
    kinds, nouns = ("red", "green", "blue", "golden"), ("mountain", "harbour", "violin", "lantern")
    texts = [f"The {kind} {noun}" for kind in kinds for noun in nouns]
    frame = pd.DataFrame({"item_id": range(16), "title": texts})
    frame.to_csv(tmp_path / "t.csv", index=False)
    catalogue = Catalogue(16, ids=lambda: [str(i) for i in range(16)], data_dir=tmp_path)
    model = causal_lm.build_of(Config(titles="t.csv"), catalogue)
    rows = model.init(torch.Generator().manual_seed(0))[ITEMS][1:]
    rows = rows - rows.mean(0)
    like = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    shares = torch.tensor([[(i // 4 == j // 4) + (i % 4 == j % 4) for j in range(16)] for i in range(16)])
    assert float(like[shares == 1].mean()) > float(like[shares == 0].mean()) + 0.2
    again = model.init(torch.Generator().manual_seed(0))[ITEMS][1:]
    assert torch.equal(again - again.mean(0), rows)


def test_the_tokenizer_is_a_function_of_the_titles() -> None:
    """In processes of their own, whose hashing differs; titles full of pairs that are equally frequent."""
    code = (
        "import hashlib\nfrom metarec.models.lm_titles import trained_tokenizer\n"
        "made = trained_tokenizer([f'film {i * i} of the {i % 7} seas' for i in range(300)], 400)\n"
        "print(hashlib.sha256(made.to_str().encode()).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert len({run.stdout for run in runs}) == 1
    made = lm_titles.trained_tokenizer(["abc abd", "ab\u00e9"], 300)
    assert 256 <= made.get_vocab_size() <= 300
    assert made.encode("abc", add_special_tokens=False).tokens == ["\u0120abc"]  # the space ahead is one of its bytes
