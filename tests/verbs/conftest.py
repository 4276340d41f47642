"""One cache of prepared data and pretrained weights for all tests of the verbs, and one finished run to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference.composed_once import shipped_files_composed_once as shipped_files_composed_once
from reference.image_runs import archive as archive
from reference.image_runs import train as train
from reference.tiny_runs import Work
from reference.warm_jobs import warm

from metarec.core import fused


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def work(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """An empty working directory with the shared cache."""
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path, cache)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run with the default algorithm and residual; not to be changed."""
    return Work(tmp_path_factory.mktemp("finished"), cache).train("logger.plots=true")


@pytest.fixture(scope="module")
def warm_jobs() -> Iterator[None]:
    """Jobs of comparisons that cost no import."""
    with warm():
        yield


@pytest.fixture(autouse=True)
def no_closed_log() -> None:
    """Hydra's own screens (--hydra-help) leave a handler that writes to an earlier test's output, which is closed."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            root.removeHandler(handler)


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """A run sets threads, determinism and compilation of its process; the tests of other parts want their own."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)
    fused.switch(False, torch.device("cpu"), print)
