"""Experiment trackers beside the run directory: TensorBoard, MLflow, Weights & Biases. They are told, never asked.

`card` says what there is to tell, `tracker` guards the run against whatever a tracker does, and each of the other files
writes for one of them, through that tracker's own library, which is an extra and is loaded where it is used.
"""

from __future__ import annotations

import importlib.util

from metarec.errors import EnvironmentFault

# extra -> what must be importable; the store of mlflow needs more than mlflow itself brings
EXTRAS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def require(logger: str) -> None:
    """EnvironmentFault unless what `logger=LOGGER` needs is installed; a logger without a tracker needs nothing."""
    for module in EXTRAS.get(logger, ()):
        if importlib.util.find_spec(module) is None:
            raise EnvironmentFault(
                "logger", logger, f"the package {module} is not installed", f"pip install 'metarec[{logger}]'"
            )
