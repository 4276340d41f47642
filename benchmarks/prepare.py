"""Claim: 50 million events are prepared in at most 150 s and 2.5 GB on two cores.

    python benchmarks/prepare.py                      # 50 M events; the log is generated first and not timed
    python benchmarks/prepare.py --events 2000000     # smaller

The log: 1 user for 50 events on the mean, 100,000 items of Zipf popularity, seconds, runs of clicks minutes apart with
hours or days between them, rows in no user order (they are sorted by time only, as a server writes them). Preparation
is the real `prepare` with its defaults (30-minute sessions, user_time split, guards, checksums) in a process of its
own, whose peak resident memory the system reports. Beside it, in the same run and on a smaller common size, the same
sequences made with pandas. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 5_000_000  # rows generated at a time
EVENTS_A_USER = 50
N_ITEMS = 100_000


def generate(path: Path, n_events: int, seed: int = 0) -> None:
    """Write a log of ``n_events`` rows (user_id, item_id, timestamp in seconds) to a Parquet file, chunk by chunk.

    Users come back in every chunk: a chunk is one period of time in which every user has a few bursts of clicks.
    """
    rng = np.random.default_rng(seed)
    n_users = max(n_events // EVENTS_A_USER, 1)
    popularity = 1.0 / np.arange(1, N_ITEMS + 1)
    cumulative = np.cumsum(popularity / popularity.sum())
    item_names = rng.permutation(10 * N_ITEMS)[:N_ITEMS].astype(np.int64)
    user_names = rng.permutation(10 * n_users)[:n_users].astype(np.int64)
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        period = 30 * 86_400
        for number, first in enumerate(range(0, n_events, CHUNK)):
            size = min(CHUNK, n_events - first)
            n_bursts = max(size // 5, 1)  # a burst = 5 clicks in the mean
            burst = np.sort(rng.integers(0, n_bursts, size))
            burst_user = rng.integers(0, n_users, n_bursts)
            burst_start = 1_500_000_000 + number * period + rng.integers(0, period - 86_400, n_bursts)
            place = np.arange(size) - np.searchsorted(burst, burst)  # place inside the burst
            clock = burst_start[burst] + place * 97 + rng.integers(0, 90, size)
            items = item_names[np.minimum(np.searchsorted(cumulative, rng.random(size)), N_ITEMS - 1)]
            order = np.argsort(clock, kind="stable")
            columns = [user_names[burst_user[burst]][order], items[order], clock[order]]
            writer.write_table(
                pa.table([pa.array(column) for column in columns], schema=schema), row_group_size=500_000
            )


def prepare_in_own_process(path: Path, cache: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of one process that prepares ``path``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(path), "--cache", str(cache)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    *said, last = done.stdout.strip().splitlines()
    for line in said:
        print(line)
    result: dict[str, float] = json.loads(last)
    return result


def worker(path: Path, cache: Path) -> None:
    """Prepare and print {seconds, peak_rss_bytes, sizes} as the last line."""
    from metarec.data.prepare import prepare
    from metarec.data.spec import DatasetSpec

    spec = DatasetSpec(name="events", path=str(path), time_unit="s", duplicates="drop")
    start = time.perf_counter()
    prepared = prepare(
        spec,
        data_dir=None,
        cache_dir=cache,
        report=lambda m: print(f"{time.perf_counter() - start:7.1f} s  {m}", flush=True),
    )
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = (
        usage.ru_utime + usage.ru_stime
    )  # far below cores x seconds: the machine had other work, and the time is not fair
    sizes = {"events": len(prepared.item), "users": prepared.n_users, "items": prepared.n_items,
             "sessions": len(prepared.session_offsets) - 1, "pairs": len(prepared.pair_event)}  # fmt: skip
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_rss_bytes": peak, "sizes": sizes}))


def pandas_sequences(path: Path) -> tuple[float, int]:
    """(seconds, events kept) of the same steps up to the sessions, in pandas: the usual notebook."""
    start = time.perf_counter()
    log = pd.read_parquet(path).drop_duplicates(["user_id", "item_id", "timestamp"])
    log = log.sort_values(["user_id", "timestamp", "item_id"], kind="stable")
    by_user = log.groupby("user_id", sort=False)
    opens = by_user["timestamp"].diff().isna() | (by_user["timestamp"].diff() > 1800)
    log = log.assign(session=opens.cumsum())
    log = log[opens | (log["item_id"] != log["item_id"].shift())]
    log = log[log.groupby("session")["item_id"].transform("size") >= 2]
    return time.perf_counter() - start, len(log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--common", type=int, default=2_000_000, help="events of the comparison with pandas")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary directory when left out")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker, options.cache)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        big, small = Path(folder) / "events.parquet", Path(folder) / "common.parquet"
        generate(big, options.events)
        generate(small, min(options.common, options.events))
        result = prepare_in_own_process(big, Path(folder) / "cache")
        common = prepare_in_own_process(small, Path(folder) / "cache_common")
        pandas_seconds, pandas_events = pandas_sequences(small)
    print(f"pandas, {pandas_events} events kept: {pandas_seconds:.2f} s; prepare: {common['seconds']:.2f} s")
    print(json.dumps({
        "benchmark": "prepare",
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"],
        "rows_per_s": options.events / result["seconds"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "sizes": {"rows": options.events, "common_rows": min(options.common, options.events), **result["sizes"]},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "duckdb": duckdb.__version__,
                    "platform": platform.platform(), "load_average": os.getloadavg()[0]},
        "ratios": {"pandas_sessions_seconds_over_prepare_seconds": pandas_seconds / common["seconds"]},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
