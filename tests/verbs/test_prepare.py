"""`metarec prepare`: its record, its cache, and the published tables as a way in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference.tiny_runs import WORLD, Work, metrics, tensors

from metarec.runs.rundir import verify

LOG = ("dataset=events", "dataset.sessions.by=user", "dataset.split.by=user_disjoint")


@pytest.fixture
def log(work: Work) -> Path:
    rows = [f"u{u},i{(u + 3 * t) % 20},{1_600_000_000 + 90_000 * t + u}" for u in range(60) for t in range(24)]
    (work.root / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return work.root / "log.csv"


def prepared(work: Work, *words: str) -> dict:
    """funnel.json of a preparation that must succeed."""
    before = set(work.directories("prepare"))
    assert work.main("prepare", *words) == 0
    (run,) = set(work.directories("prepare")) - before
    assert verify(run) == []
    found = json.loads((run / "funnel.json").read_text())
    assert Path(found["data"]).is_dir()
    return found  # type: ignore[no-any-return]


def test_a_log_without_any_mapping(work: Work, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = prepared(work, "dataset=events", f"dataset.path={log}", *LOG[1:])
    assert found["steps"][0]["rows"] == 60 * 24
    assert found["counts"]["users"] == {"train": 42, "val": 6, "test": 12}
    assert found["counts"]["episodes"]["test"] == 12
    out = capsys.readouterr().out
    assert "1,440" in out
    assert str(found["data"]) in out
    assert {path.name for path in work.directories("prepare")[0].iterdir()} >= {
        "config.yaml", "overrides.json", "environment.json", "card.json", "funnel.json", "manifest.json",
    }  # fmt: skip


def test_the_second_time_it_is_there_already(work: Work, log: Path) -> None:
    first = prepared(work, *LOG, f"dataset.path={log}")
    before = Path(first["data"]).stat().st_mtime_ns
    second = prepared(work, *LOG, f"dataset.path={log}")
    assert first == second
    assert Path(second["data"]).stat().st_mtime_ns == before
    assert prepared(work, *LOG, f"dataset.path={log}", "dataset.episodes.stride=2")["data"] != first["data"]


def test_the_published_tables_give_the_same_episodes_and_figures(work: Work, log: Path) -> None:
    """Out as tables and in again: same users, targets and episodes, so untrained weights score the same."""
    tables = work.root / "tables"
    whole = prepared(work, *LOG, f"dataset.path={log}", f"export={tables}")
    assert {path.name for path in tables.iterdir()} >= {
        "pairs_train.parquet", "pairs_val.parquet", "pairs_test.parquet", "course2id.json",
        "episodes_train_K5_Q10.parquet", "episodes_val_K5_Q10.parquet", "episodes_test_K5_Q10.parquet",
    }  # fmt: skip
    again = prepared(work, "dataset=episode_tables", f"dataset.path={tables}")
    assert again["counts"]["episodes"] == whole["counts"]["episodes"]
    assert again["vocabulary_sha256"] == whole["vocabulary_sha256"]

    words = ("warm_start=none", "residual=off", "hardware.precision=float64")
    from_log = work.train(*LOG, f"dataset.path={log}", *words)
    from_tables = work.train("dataset=episode_tables", f"dataset.path={tables}", *words)
    left, right = metrics(from_log), metrics(from_tables)
    for key in ("users", "episodes", "targets"):
        assert left["counts"][key] == right["counts"][key]
    for method, row in left["metrics"].items():
        assert right["metrics"][method] == pytest.approx(row, abs=1e-9), method
    for name, value in tensors(from_log, "last").items():
        assert (value - tensors(from_tables, "last")[name]).abs().max() < 1e-9, name


def test_an_export_of_the_world(work: Work) -> None:
    tables = work.root / "tables"
    whole = prepared(work, *WORLD, f"export={tables}")
    again = prepared(work, "dataset=episode_tables", f"dataset.path={tables}")
    assert again["counts"]["episodes"] == whole["counts"]["episodes"]
