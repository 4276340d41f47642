"""Which tracker a run tells: the choice of the group `logger` as an object, and the sweep that the run is a job of."""

from __future__ import annotations

from pathlib import Path

from metarec.config.schema import MlflowConfig, TensorBoardConfig, TrainConfig, WandbConfig
from metarec.trackers.card import Backend
from metarec.trackers.mlflow import Mlflow
from metarec.trackers.tensorboard import TensorBoard
from metarec.trackers.tracker import state_of
from metarec.trackers.wandb import Wandb


def backend_of(config: TrainConfig, run_dir: Path) -> Backend | None:
    """The configured tracker; None with `logger=files`."""
    logger = config.logger
    if isinstance(logger, TensorBoardConfig):
        return TensorBoard(run_dir / "tensorboard")
    if isinstance(logger, MlflowConfig):
        store = Path(config.output_dir) / "mlflow.db" if logger.store is None else Path(logger.store)
        begun = state_of(run_dir)  # a relative path means another file where a run is carried on from elsewhere
        if begun is not None and Path(begun["store"]).exists():
            store = Path(begun["store"])
        return Mlflow(store, logger.experiment)
    if isinstance(logger, WandbConfig):
        return Wandb(run_dir, logger.project, logger.online)
    return None


def group_of(run_dir: Path, output_dir: Path) -> str | None:
    """The directory of the sweep or comparison that holds this run, by its name; None of a run that stands alone.

    OUTPUT_DIR/train/RUN stands alone; OUTPUT_DIR/train/SWEEP/JOB and OUTPUT_DIR/compare/COMPARISON/jobs/JOB do not.
    """
    try:
        below = run_dir.resolve().relative_to(output_dir.resolve()).parts
    except ValueError:  # moved since, or resumed from elsewhere
        return None
    return below[1] if len(below) > 2 else None
