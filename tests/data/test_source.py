"""Opening a log: the same events whatever the file format, ids untouched, fingerprints, and the named datasets."""

from __future__ import annotations

import gzip
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from metarec.data.prepare import prepare
from metarec.data.source import SourceInfo, open_log, source_fingerprint
from metarec.data.spec import Columns, DatasetSpec
from metarec.errors import DataError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
HEAD = "user_id,item_id,timestamp\n"

# rows counted in the public files (shared description of the data); a copy that lost rows must not pass
ROWS = {
    "mars": 3_659,
    "mars_implicit": 21_908,
    "mooccubex": 1_182_745,
    "xuetangx": 22_271,
    "ml1m": 999_611,
    "ml100k": 100_000,
    "ml_latest": 100_836,
    "grocery": 121_892,
    "foursquare": 147_938,
    "yoochoose100k": 83_846,
    "electronics": 41_357,
    "beauty": 198_502,
    "sports": 296_337,
    "yelp": 316_354,
    "lastfm": 52_551,
    "beauty_bert4rec": 353_962,
    "games": 287_107,
    "wikipedia": 157_474,
    "retail": 406_632,
    "diginetica": 982_961,
    "yoochoose64": 557_248,
    "tmall": 443_479,
    "nowplaying": 1_057_684,
}
CLOCK = {
    "mars",
    "mars_implicit",
    "ml1m",
    "ml100k",
    "ml_latest",
    "grocery",
    "foursquare",
    "yoochoose100k",
    "electronics",
}


def opened(path: Path, **options: Any) -> tuple[SourceInfo, list[tuple[Any, ...]]]:
    con = duckdb.connect()
    info = open_log(con, DatasetSpec(path=str(path), **options), None)
    return info, con.execute("SELECT user_id, item_id, t, row, ord, session FROM log ORDER BY row").fetchall()


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def spec_of(name: str) -> DatasetSpec:
    """The dataset group `name` laid over the defaults, without the configuration library."""

    def merge(target: Any, values: dict[str, Any]) -> Any:
        known = {f.name for f in fields(target)}
        for key, value in values.items():
            assert key in known, f"{name}.yaml: {key} is no key of {type(target).__name__}"
            inner = getattr(target, key)
            setattr(target, key, merge(inner, value) if is_dataclass(inner) else value)
        return target

    values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return merge(DatasetSpec(), values.get("dataset", values))  # omniglot chooses its model as well


def test_ids_survive_untouched(tmp_path: Path) -> None:
    ids = [
        "NA",
        "007",
        "1e5",
        str(2**60),
        str(2**63),
        "null",
        "None",
        "nan",
        "a,b",
        'say "x"',
        "é",
        "-0",
        "true",
        "0x10",
        "1_000",
    ]
    quoted = [f'"{i.replace(chr(34), chr(34) * 2)}"' if "," in i or '"' in i else i for i in ids]
    info, rows = opened(write(tmp_path / "log.csv", HEAD + "".join(f"{q},{q},{n}\n" for n, q in enumerate(quoted))))
    assert [r[0] for r in rows] == ids == [r[1] for r in rows]
    assert info.n_rows == len(ids)


def test_csv_gz_parquet_and_directory_agree(tmp_path: Path) -> None:
    users, items, times = ["3", "1", "2", "1"], ["9", "8", "9", "7"], [1600000003, 1600000001, 1600000002, 1600000001]
    text = HEAD + "".join(f"{u},{i},{t}\n" for u, i, t in zip(users, items, times, strict=True))
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
    pq.write_table(table, tmp_path / "log.parquet")
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(0, 3), tmp_path / "parts" / "a.parquet")
    pq.write_table(table.slice(3), tmp_path / "parts" / "b.parquet")
    (tmp_path / "parts" / "_SUCCESS").touch()
    crlf = tmp_path / "crlf.csv"
    crlf.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    expected = [(u, i, t * 10**6) for u, i, t in zip(users, items, times, strict=True)]
    for path in (
        write(tmp_path / "log.csv", text),
        write(tmp_path / "log.csv.gz", text),
        crlf,
        tmp_path / "log.parquet",
        tmp_path / "parts",
    ):
        info, rows = opened(path)
        assert [r[:3] for r in rows] == expected, path
        assert [r[3] for r in rows] == sorted({r[3] for r in rows}), "row orders the events as the files do"
        assert info.has_clock
        assert info.n_rows == 4


def test_integer_ids_stay_integers_and_integral_floats_become_them(tmp_path: Path) -> None:
    for kind in (pa.int32(), pa.int64(), pa.uint32(), pa.float64()):
        table = pa.table(
            {"user_id": pa.array([3, 1], kind), "item_id": pa.array([2**31 - 1, 5], kind), "timestamp": [1, 2]}
        )
        pq.write_table(table, tmp_path / "log.parquet")
        assert [r[:2] for r in opened(tmp_path / "log.parquet")[1]] == [(3, 2**31 - 1), (1, 5)]
    wide = pa.table({"user_id": pa.array([2**64 - 1], pa.uint64()), "item_id": ["a"], "timestamp": [1]})
    pq.write_table(wide, tmp_path / "log.parquet")
    assert opened(tmp_path / "log.parquet")[1][0][0] == str(2**64 - 1)
    coded = pa.table({"user_id": pa.array(["a", "b"]).dictionary_encode(), "item_id": [1, 2], "timestamp": [1, 2]})
    pq.write_table(coded, tmp_path / "log.parquet")
    assert [r[0] for r in opened(tmp_path / "log.parquet")[1]] == ["a", "b"]


def test_files_of_other_width_are_widened(tmp_path: Path) -> None:
    for name, kind, value in (("a", pa.int32(), 1), ("b", pa.int64(), 2**40)):
        pq.write_table(
            pa.table({"user_id": pa.array([value], kind), "item_id": [1], "timestamp": [1]}),
            tmp_path / f"{name}.parquet",
        )
    assert [r[0] for r in opened(tmp_path)[1]] == [1, 2**40]


def test_mapped_columns_order_and_session(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who,what,when,place,visit\nu,a,5,12,s1\nu,b,5,3,s1\n")
    columns = Columns(user="who", item="what", time="when", order="place", session="visit")
    info, rows = opened(path, columns=columns, ties="order")
    assert [r[4:] for r in rows] == [(12, "s1"), (3, "s1")]
    assert not info.has_clock
    assert [r[4] for r in opened(path, columns=columns)[1]] == [None, None]


def test_odd_names_are_plain_names(tmp_path: Path) -> None:
    # the engine would take these for patterns, for partitions, or for the end of a string
    folder = tmp_path / "year=2020 [a]*?'"
    folder.mkdir()
    pq.write_table(pa.table({"user_id": [1], "item_id": [2], "timestamp": [3]}), folder / "it's [1].parquet")
    assert opened(folder)[1][0][:3] == (1, 2, 3)
    assert opened(write(folder / "x[0].csv", HEAD + "a,b,1\n"))[1][0][:3] == ("a", "b", 1)


def test_tab_separated_with_its_option(tmp_path: Path) -> None:
    path = write(tmp_path / "log.tsv", HEAD.replace(",", "\t") + "a\tb\t1\n")
    for delimiter in ("tab", "\\t", "\t"):
        assert opened(path, delimiter=delimiter)[1][0][:3] == ("a", "b", 1)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    a, b = write(one / "log.csv", HEAD + "a,b,1\n"), write(two / "log.csv", HEAD + "a,b,1\n")
    first = source_fingerprint(DatasetSpec(path=str(a)), None)
    assert first == source_fingerprint(DatasetSpec(path=str(b)), None)
    assert first["files"][0]["bytes"] == len(HEAD) + 6
    write(b, HEAD + "a,b,2\n")
    assert first != source_fingerprint(DatasetSpec(path=str(b)), None)


def test_nothing_is_copied(tmp_path: Path) -> None:
    n = 200_000
    rng = np.random.default_rng(0)
    pq.write_table(
        pa.table(
            {
                "user_id": rng.integers(0, 99, n),
                "item_id": rng.integers(0, 99, n),
                "timestamp": rng.integers(10**9, 2 * 10**9, n),
            }
        ),
        tmp_path / "log.parquet",
    )
    con = duckdb.connect()
    assert open_log(con, DatasetSpec(path=str(tmp_path / "log.parquet")), None).n_rows == n
    assert con.execute("SELECT count(*) FROM duckdb_tables()").fetchone() == (0,)
    assert con.execute("SELECT count(DISTINCT row), min(row), max(row) FROM log").fetchone() == (n, 0, n - 1)


def test_a_named_dataset_without_a_data_directory_says_how() -> None:
    with pytest.raises(DataError, match=r"data_dir=DIR or the METAREC_DATA variable"):
        open_log(duckdb.connect(), spec_of("ml1m"), None)


def test_every_dataset_file_is_counted_and_known() -> None:
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert {n for n in names if spec_of(n).in_data_dir} == set(ROWS) | {"omniglot", "wikitext2"}
    assert names - set(ROWS) >= {"events", "synthetic", "episode_tables"}
    for name in ROWS:
        text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
        assert spec_of(name).name == name
        assert f"metarec prepare dataset={name}" in text
        assert all(word in text for word in ("# Source", "terms", "# Knobs")), name


# users with an episode (train, validation, test), counted apart with pandas; the comments in the files quote them
EPISODE_USERS = {
    "mars": "9 / 6 / 17",
    "mars_implicit": "60 / 36 / 76",
    "ml100k": "239 / 56 / 97",
    "ml_latest": "159 / 31 / 41",
    "grocery": "351 / 35 / 72",
    "electronics": "24 / 12 / 28",
    "foursquare": "235 / 50 / 74",
    "xuetangx": "137 / 52 / 62",
    "yoochoose100k": "81 / 26 / 59",
    "wikipedia": "173 / 62 / 93",
    "lastfm": "426 / 62 / 127",
    "retail": "2,348 / 335 / 690",
    "beauty": "1,341 / 208 / 378",
    "beauty_bert4rec": "2,387 / 327 / 639",
    "sports": "1,759 / 283 / 505",
    "yelp": "2,963 / 427 / 864",
    "games": "2,072 / 298 / 594",
}
EPISODE_USERS_SLOW = {
    "ml1m": "1,988 / 279 / 440",
    "mooccubex": "11,444 / 1,637 / 3,279",
    "diginetica": "2,398 / 333 / 675",
    "yoochoose64": "1,825 / 260 / 487",
    "tmall": "3,441 / 516 / 977",
    "nowplaying": "6,872 / 1,026 / 1,925",
}


@pytest.mark.parametrize(
    ("name", "users"),
    [*EPISODE_USERS.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in EPISODE_USERS_SLOW.items())],
)
def test_named_dataset_has_the_episodes_that_its_file_says(
    name: str, users: str, data_dir: Path, tmp_path: Path
) -> None:
    prepared = prepare(spec_of(name), data_dir=data_dir, cache_dir=tmp_path)
    assert " / ".join(f"{len(prepared.episodes(split).user):,}" for split in ("train", "val", "test")) == users
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    assert users in text or name == "mars"  # mars quotes the published 111 windows


@pytest.mark.parametrize("name", sorted(ROWS))
def test_named_dataset_opens(name: str, data_dir: Path) -> None:
    info = open_log(duckdb.connect(), spec_of(name), data_dir)
    assert info.n_rows == ROWS[name]
    assert info.has_clock == (name in CLOCK)
