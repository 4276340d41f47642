"""What each tracker does of its own: wall times and torn files, a store that only grows, a log that was cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reference.tracker_readers import needs, read_mlflow, read_tensorboard, wandb_records

from metarec.config.overrides import check_words
from metarec.config.schema import TrainConfig
from metarec.trackers.card import Card, Closing
from metarec.trackers.mlflow import Mlflow
from metarec.trackers.tensorboard import TensorBoard, wall_times
from metarec.trackers.wandb import Wandb, check_whole
from metarec.verbs.tracking import backend_of

CARD = Card(
    "0123456789abcdef", "run", "sweep", {"seed": 1, "train": {"minutes": None, "lrs": [1, 2]}}, {"dataset": "d"}
)
TENSORBOARD = pytest.mark.parametrize("tracker", [needs("tensorboard")])
MLFLOW = pytest.mark.parametrize("tracker", [needs("mlflow")])
WANDB = pytest.mark.parametrize("tracker", [needs("wandb")])


def row(step: int) -> tuple[int, dict[str, float]]:
    return step, {"train/loss": 1 / (step + 1), "train/lr": 0.5}


@TENSORBOARD
def test_a_step_keeps_its_wall_time_and_a_lost_one_goes(tracker: str, tmp_path: Path) -> None:
    first = TensorBoard(tmp_path / "tensorboard")
    first.begin(CARD, [])
    first.tell([row(1), row(2), row(3)])
    (path,) = first.directory.iterdir()
    before = wall_times(first.directory)
    with path.open("ab") as file:
        file.write(path.read_bytes()[-40:-3])  # a record that a kill tore
    second = TensorBoard(first.directory)
    second.begin(CARD, [row(1), row(2)])
    assert read_tensorboard(tmp_path).rows.keys() == {
        (f"train/{key}", step) for key in ("loss", "lr") for step in (1, 2)
    }
    assert wall_times(first.directory)["train/loss", 2] == before["train/loss", 2]
    second.tell([row(3)])
    second.finish(Closing(3, {"metrics/fewshot/mrr": 0.25}, {}, ()))
    told = read_tensorboard(tmp_path)
    assert told.rows["train/lr", 3] == [0.5]
    assert told.figures == {"metrics/fewshot/mrr": 0.25}
    assert (told.name, told.group, told.config) == (
        "run",
        "sweep",
        {"seed": 1.0, "train.minutes": None, "train.lrs": [1, 2]},
    )


@TENSORBOARD
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_seen_when_it_is_told(tracker: str, tmp_path: Path) -> None:
    backend = TensorBoard(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").mkdir()
    backend.begin(CARD, [])
    from tensorboard.summary.writer.record_writer import RecordWriter

    backend.close(None)
    with Path("/dev/full").open("wb", buffering=0) as full:
        backend._stream, backend._writer = full, RecordWriter(full)
        with pytest.raises(OSError, match="No space left"):
            backend.tell([row(1)])


@MLFLOW
def test_the_store_is_told_what_it_lacks_and_a_difference_is_said_once(
    tracker: str, tmp_path: Path, mlflow_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than MLflow takes at once, twice; the second time with other values in two steps and one step more."""
    store = tmp_path / "mlflow.db"
    shutil.copy(mlflow_tables, store)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "tracker.json").write_text(json.dumps({"id": CARD.id, "store": str(store)}))
    for steps, off in ((600, 0.0), (601, 1.0)):
        backend = Mlflow(store, "metarec")
        backend.connect()
        backend.begin(CARD, [(s, {"train/loss": s + off * (s in (7, 8)), "val/x/hr@10": 0.5}) for s in range(steps)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train/loss of step 7: 7 was told before the run was carried on, which found 8 there" in said
    backend.finish(
        Closing(600, {"metrics/fewshot/hr@10": 0.25}, {"protocol": {"split": "test"}}, (tmp_path / "metrics.json",))
    )
    told = read_mlflow(tmp_path)
    assert len(told.rows) == 2 * 601
    assert told.rows["train/loss", 7] == [7.0]
    assert told.rows["val/x/hr@10", 600] == [0.5]
    assert (told.figures, told.ended) == ({"metrics/fewshot/hr@10": 0.25}, True)
    assert told.config == {"seed": 1, "train.minutes": None, "train.lrs": [1, 2]}
    assert [path.name for path in (tmp_path / "mlflow_artifacts").rglob("*") if path.is_file()] == ["metrics.json"]


@WANDB
def test_a_log_that_was_cut_or_changed_is_seen(tracker: str, tmp_path: Path) -> None:
    """wandb says nothing when its disk is full: its log is read to the end. More than two blocks of 32 KiB here."""
    backend = Wandb(tmp_path, "metarec", online=False)
    backend.connect()
    backend.begin(CARD, [])
    backend.tell([row(step) for step in range(300)])
    backend.finish(Closing(299, {"metrics/fewshot/mrr": 0.25}, {}, ()))
    (path,) = (tmp_path / "wandb").rglob("*.wandb")
    whole = path.read_bytes()
    assert len(whole) > 2 * 32768
    assert sum(record.WhichOneof("record_type") == "history" for record in wandb_records(path)) == 300
    check_whole(path)
    for size in (0, 7, 1000, 32768, 65536, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(OSError, match="without the end of the run: is the disk full"):
            check_whole(path)
    for at in (20, 32768 + 100, len(whole) // 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(OSError, match="without the end"):
            check_whole(path)


def test_a_store_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """output_dir is relative to where the command was typed, and a run may be carried on from another place."""
    (job,) = check_words("train", ["logger=mlflow"]).jobs
    config = job.config
    assert isinstance(config, TrainConfig)
    monkeypatch.chdir(tmp_path)
    backend = backend_of(config, tmp_path)
    assert isinstance(backend, Mlflow)
    assert backend.store == tmp_path / "outputs" / "mlflow.db"
    (tmp_path / "outputs").mkdir()
    backend.store.touch()
    (tmp_path / "tracker.json").write_text(json.dumps({"id": "1", "group": None, "store": backend.where}))
    monkeypatch.chdir("/")
    again = backend_of(config, tmp_path)
    assert isinstance(again, Mlflow)
    assert again.store == backend.store
