"""TensorBoard: RUN/tensorboard holds one event file, written by TensorBoard's own record writer.

    tensorboard --logdir OUTPUT_DIR        every run below it, by its directory

The file is made anew when a run is carried on: it then holds the records of history.jsonl and nothing of the steps that
were lost, while a step keeps the wall time of its first telling. A value is a float32, as TensorBoard stores scalars.
Its name has no host name, unlike that of TensorBoard's own file writer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarec.options import flat
from metarec.trackers.card import Card, Closing, Row

Times = dict[tuple[str, int], float]  # tag, step -> seconds since the epoch


class TensorBoard:
    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        self.directory, self.where = directory, str(directory)
        self._writer: Any = None
        self._stream: Any = None

    def connect(self) -> None:
        """ImportError where the library is not there; nothing is written."""
        from tensorboard.summary.writer import record_writer  # noqa: F401

    def begin(self, card: Card, rows: list[Row]) -> None:
        """A new event file in place of any old one, with the wall times that the old one had."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.directory.mkdir(exist_ok=True)
        times = wall_times(self.directory)
        for old in self.directory.glob("*tfevents*"):
            old.unlink()
        now = time.time()
        self._stream = (self.directory / f"events.out.tfevents.{int(now):010d}.{card.id}").open("wb")
        self._writer = RecordWriter(self._stream)
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        parameters = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in flat(card.config).items()
        }
        self._write(0, hparams_pb(parameters, trial_id=card.name))
        self._write(0, _text("notes", {"name": card.name, "group": card.group, **card.notes}))
        for step, numbers in rows:
            self._scalars(step, numbers, next((times[name, step] for name in numbers if (name, step) in times), None))
        self._flush()

    def tell(self, rows: list[Row]) -> None:
        """The records as they come, flushed, so that a board can be watched."""
        for step, numbers in rows:
            self._scalars(step, numbers)
        self._flush()

    def finish(self, closing: Closing) -> None:
        """The figures at the last step; then the file is closed."""
        self._scalars(closing.step, dict(closing.figures))
        self._write(closing.step, _text("closing_notes", closing.notes))
        self._flush()
        self._stream.close()

    def close(self, ended: str | None) -> None:
        """Close the file, however the run ended: it holds no state of a run."""
        if self._stream is not None:
            self._stream.close()

    def _scalars(self, step: int, numbers: Mapping[str, float], wall_time: float | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step, Summary(value=values), wall_time)

    def _write(self, step: int, summary: Any, wall_time: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time() if wall_time is None else wall_time, step=step, summary=summary)
        self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())


def wall_times(directory: Path) -> Times:
    """When each scalar of the event files in `directory` was told; a torn end counts as not told."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Times = {}
    for path in sorted(directory.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found |= {(value.tag, event.step): event.wall_time for value in event.summary.value}
    return found


def _text(tag: str, content: Mapping[str, Any]) -> Any:
    """JSON in the form of TensorBoard's text dashboard, which shows Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData

    plugin = SummaryMetadata.PluginData(plugin_name="text", content=TextPluginData(version=0).SerializeToString())
    lines = json.dumps(content, indent=2, ensure_ascii=False).splitlines()
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=["\n".join(f"    {line}" for line in lines).encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)])
