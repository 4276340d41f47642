"""The published funnel of MARS (explicit, English), from the real file; left out where the file is not at hand.

Exact targets: 3,659 rows, 4 repeats, 30-minute gap, two events at least, users 40/20/40 by RandomState(20260107).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from metarec.data.prepare import prepare
from metarec.data.spec import DatasetSpec, EpisodeShape, Sessions, Split


@pytest.mark.parametrize("ties", ["item", "row"])
def test_published_funnel(ties: str, data_dir: Path, tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="mars", path="mars/explicit_en.parquet", in_data_dir=True, duplicates="drop", ties=ties,
        sessions=Sessions(by="gap", gap_minutes=30, min_events=2), episodes=EpisodeShape(5, 10),
        split=Split(by="user_disjoint", fractions=[0.4, 0.2, 0.4], seed=20260107),
    )  # fmt: skip
    mars = prepare(spec, data_dir=data_dir, cache_dir=tmp_path)
    rows = {step["step"]: step["rows"] for step in mars.funnel}
    assert (rows["input"], rows["duplicates"]) == (3_659, 3_655)
    assert mars.funnel[-1]["sessions"] == 561
    assert len(mars.pair_event) == 2_333
    assert mars.counts["users"] == {"train": 151, "val": 75, "test": 152}
    assert mars.counts["pairs"] == {"train": 693, "val": 545, "test": 1_095}
    assert mars.counts["episodes"] == {"train": 111, "val": 6, "test": 17}
    assert mars.leaky
