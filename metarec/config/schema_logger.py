"""The alternatives of the group `logger` (`metarec.config.schema`)."""

from __future__ import annotations

from dataclasses import dataclass

from metarec.options import ranged


@dataclass
class FilesConfig:
    """What every logger has; the other ones tell a tracker as well."""

    name: str = "files"
    console: str = ranged("auto", choices=["auto", "plain", "quiet"])
    plots: bool = True
    every: int = ranged(10, min=1)


@dataclass
class TensorBoardConfig(FilesConfig):
    name: str = "tensorboard"


@dataclass
class MlflowConfig(FilesConfig):
    name: str = "mlflow"
    store: str | None = ranged(None, path=True)  # None = OUTPUT_DIR/mlflow.db
    experiment: str = ranged("metarec", filled=True)


@dataclass
class WandbConfig(FilesConfig):
    name: str = "wandb"
    project: str = ranged("metarec", filled=True)
    online: bool = False
