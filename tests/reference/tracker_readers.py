"""What a tracker holds, read back by the tracker's own reader: TensorBoard's EventAccumulator, MLflow's client, and for
wandb, whose Python package can no longer read its own log, the log's format with wandb's record definitions."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from metarec import trackers
from metarec.errors import EnvironmentFault
from metarec.trackers.tracker import STATE

NAMES = tuple(trackers.EXTRAS)


@dataclass
class Told:
    name: str | None
    group: str | None
    config: dict[str, Any]  # dotted key -> value
    rows: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))  # all values told
    figures: dict[str, float] = field(default_factory=dict)
    ended: bool = True


def needs(tracker: str) -> Any:
    """The name as a parameter that is skipped, with the reason, where the extra is not installed."""
    try:
        trackers.require(tracker)
    except EnvironmentFault as missing:
        return pytest.param(tracker, marks=pytest.mark.skip(reason=str(missing)))
    return tracker


def value_of(text: str) -> Any:
    """A parameter, which is text in a tracker, as the value it was."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(tracker: str, run: Path) -> Told:
    return {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}[tracker](run)


def read_tensorboard(run: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False
    )
    found.Reload()
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    info = HParamsPluginData.FromString(content).session_start_info
    config = {}
    for key, value in info.hparams.items():
        plain = getattr(value, value.WhichOneof("kind"))
        config[key] = value_of(plain) if isinstance(plain, str) else plain
    notes = json.loads(found.Tensors("notes/text_summary")[0].tensor_proto.string_val[0].decode())
    told = Told(info.group_name, notes["group"], config)
    for tag in found.Tags()["scalars"]:
        for event in found.Scalars(tag):
            _sort(told, tag, event.step, event.value)
    return told


def read_mlflow(run: Path) -> Told:
    from mlflow.tracking import MlflowClient

    state = json.loads((run / STATE).read_text())
    client = MlflowClient(tracking_uri=f"sqlite:///{state['store']}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(experiments, f"tags.`metarec.id` = '{state['id']}'")
    config = {key: value_of(value) for key, value in found.data.params.items()}
    told = Told(found.info.run_name, found.data.tags.get("metarec.group"), config)
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            _sort(told, name.replace("_at_", "@"), metric.step, metric.value)
    told.ended = found.info.status == "FINISHED"
    return told


def read_wandb(run: Path) -> Told:
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    records = wandb_records(path)
    kinds = [record.WhichOneof("record_type") for record in records]
    (head,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = flat_values({item.key: json.loads(item.value_json) for item in head.config.update})
    told = Told(head.display_name, head.run_group or None, config)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    told.rows[name, record.history.step.num].append(json.loads(item.value_json))
        elif record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith(("_", "train/", "val/")):
                    told.figures[name] = json.loads(item.value_json)
    told.ended = kinds[-1] == "exit"
    return told


def wandb_records(path: Path) -> list[Any]:
    """Every record of a .wandb file: blocks of 32 KiB with records in parts, each behind CRC, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, parts = [], b""
    for start in range(0, len(data), 32768):
        block = data[start : start + 32768]
        at = 7 if start == 0 else 0
        while at + 7 <= len(block):
            _, size, kind = struct.unpack("<IHB", block[at : at + 7])
            parts += block[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                record = Record()
                record.ParseFromString(parts)
                found.append(record)
                parts = b""
    return found


def _sort(told: Told, name: str, step: int, value: float) -> None:
    if name.startswith(("train/", "val/")):
        told.rows[name, step].append(value)
    else:
        assert name not in told.figures, f"{name} was told twice"
        told.figures[name] = value


def flat_values(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        out |= flat_values(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
