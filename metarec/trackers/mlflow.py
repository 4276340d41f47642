"""MLflow on one SQLite file, which all runs of an output directory share; no server, no network.

    OUTPUT_DIR/mlflow.db              parameters, tags, metrics (`logger.store` names another file)
    OUTPUT_DIR/mlflow_artifacts/      copies of config.yaml, metrics.json and the pictures

The store only grows, so a run that is carried on finds its own entry by the tag metarec.id and tells what is not there
yet. A name of MLflow has no "@": ndcg@10 is ndcg_at_10 there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock

from metarec.options import flat
from metarec.trackers.card import Card, Closing, Row, text

ID = "metarec.id"
BUSY_S = 5.0  # seconds that another writer may hold the store; MLflow itself would wait 20 for every statement
OPENING_S = 120.0  # seconds that another run may take to make the tables
METRICS_AT_ONCE, PARAMS_AT_ONCE, LONGEST = 1000, 100, 6000  # limits of MLflow
ENDED = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
T = TypeVar("T")


class Mlflow:
    name = "mlflow"

    def __init__(self, store: Path, experiment: str) -> None:
        self.store, self.experiment, self.where = store.absolute(), experiment, str(store.absolute())
        self._client: Any = None
        self._run = ""
        self._held: dict[tuple[str, int], float] = {}
        self._differs = False

    def connect(self) -> None:
        """Make the store and the experiment where they are not there, one process at a time; raises where it is no store."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use over the network otherwise
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "alembic"):  # what fails is raised, and said in one line by the caller
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self.store.parent.mkdir(parents=True, exist_ok=True)
        # the runs of a sweep may start at once, and the tables can be made once only
        with filelock.FileLock(f"{self.store}.lock", timeout=OPENING_S):
            self._probe()
            self._client = MlflowClient(tracking_uri=f"sqlite:///{self.store}")
            if self._client.get_experiment_by_name(self.experiment) is None:
                artifacts = self.store.with_name(f"{self.store.stem}_artifacts")
                self._client.create_experiment(self.experiment, artifact_location=artifacts.as_uri())

    def begin(self, card: Card, rows: list[Row]) -> None:
        """The run whose tag is `card.id`, carried on or made; what it holds already is not told again."""
        self._probe()
        experiment = self._client.get_experiment_by_name(self.experiment).experiment_id
        found = self._client.search_runs([experiment], f"tags.`{ID}` = '{card.id}'")
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(experiment, run_name=card.name, tags={ID: card.id})
        self._run = run.info.run_id
        self._held = {
            (name, metric.step): metric.value
            for name in run.data.metrics
            for metric in self._client.get_metric_history(self._run, name)
        }
        known = run.data.params
        self._params({key: value for key, value in flat(card.config).items() if key not in known})
        self._tags({"group": card.group, **card.notes} if card.group else card.notes)
        self.tell(rows)

    def tell(self, rows: list[Row]) -> None:
        """The numbers that the run does not have, in batches, with the time of now."""
        from mlflow.entities import Metric

        self._probe()
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, numbers in rows
            for name, value in ((legal(name), value) for name, value in numbers.items())
            if not self._known(name, step, value)
        ]
        for some in _pieces(metrics, METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=some)

    def finish(self, closing: Closing) -> None:
        """Figures, tags and copies of the files; the run then stands as FINISHED."""
        self.tell([(closing.step, dict(closing.figures))])
        self._tags(closing.notes)
        for path in closing.files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, ENDED["finished"])

    def close(self, ended: str | None) -> None:
        """The run's status by how it ended; None touches nothing."""
        if ended is not None:
            self._probe()
            self._client.set_terminated(self._run, ENDED[ended])

    def _known(self, name: str, step: int, value: float) -> bool:
        """Whether the store has a value there, which cannot be taken back; that of a record it is another is said once."""
        held = self._held.get((name, step))
        if held is not None and held != value and name.startswith(("train/", "val/")) and not self._differs:
            self._differs = True
            print(
                f"logger=mlflow: {name} of step {step}: {held:g} was told before the run was carried on, which found "
                f"{value:g} there -- history.jsonl is right; this machine computes otherwise than the first",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return held is not None

    def _params(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        for some in _pieces([Param(key, text(value)[:LONGEST]) for key, value in values.items()], PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=some)

    def _tags(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(f"metarec.{key}", text(value)[:LONGEST]) for key, value in flat(values).items()]
        for some in _pieces(tags, PARAMS_AT_ONCE):
            self._client.log_batch(self._run, tags=some)

    def _probe(self) -> None:
        """sqlite3.OperationalError after BUSY_S where another writer holds the store: a stop must not wait for it."""
        with contextlib.closing(sqlite3.connect(self.store, timeout=BUSY_S, isolation_level=None)) as direct:
            direct.execute("BEGIN IMMEDIATE")
            direct.execute("ROLLBACK")


def legal(name: str) -> str:
    """A name that MLflow takes."""
    return name.replace("@", "_at_")


def _pieces(values: Sequence[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(values), size):
        yield list(values[first : first + size])
