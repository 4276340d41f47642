"""What several tests share: the directory of public logs, which is not part of the project."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Tiny tensors: a second thread only spins, and pytest -n has the cores at work already. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# ranx, which metrics are compared with, is half a minute compiled and a moment interpreted. Before numba is imported.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory METAREC_DATA; without it the test is skipped, except in CI, where missing data must not pass
    unseen."""
    value = os.environ.get("METAREC_DATA")
    if value and Path(value).is_dir():
        return Path(value)
    reason = f"METAREC_DATA={value} is no directory" if value else "METAREC_DATA is not set: no public logs to read"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Hydra's --info, called in this process, leaves the root logger at DEBUG with the captured stderr of a test that is
    over, which a later test would find in its own."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked gpu is skipped where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow with its tables and nothing in them, to be copied."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
