"""Whole runs on a small archive of images: the fixtures `archive` and `train` (tests/verbs/conftest.py takes them from
here), and what a run left behind, read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import Work, metrics

from metarec import build
from metarec.benches import ImageBench
from metarec.config.compose import config_from_dict
from metarec.config.schema import TrainConfig
from metarec.core.weights import Params
from metarec.data.omniglot import Omniglot
from metarec.runs.checkpoint import load_checkpoint

K, FILTERS = 2, 3
NORMS = [f"norm{i}.{part}" for i in range(1, 5) for part in ("weight", "bias")]
STATISTICS = [f"norm{i}.{part}" for i in range(1, 5) for part in ("mean", "var")]
WORDS = (
    "dataset=omniglot", "dataset.images.n_way=3", "dataset.images.n_query=2", "dataset.images.n_val=3",
    "dataset.images.n_test=5", f"model.filters={FILTERS}", "hardware=cpu", "hardware.threads=1",
    "hardware.precision=float64", "evaluation.bootstrap=20", "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1]",
    "evaluation.control.users=2", "train.meta_batch_size=3", "logger.console=quiet", "logger.plots=false", "logger.every=1",
)  # fmt: skip
SHORT = ("train.steps=4", "train.eval_every=2", "train.patience=0", "train.checkpoint_every=1", "optimizer.lr=0.01")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 classes of 5 drawings: coarse random patterns and a little noise."""
    draw, directory = np.random.default_rng(5), tmp_path_factory.mktemp("images")
    pattern = np.kron(draw.random((14, 7, 7)) < 0.3, np.ones((4, 4))).astype(bool)
    images = pattern[:, None] ^ (draw.random((14, 5, 28, 28)) < 0.05)
    np.savez_compressed(
        directory / "omniglot28.npz",
        images_packed=np.packbits(images.reshape(70, 784), axis=1),
        class_id=np.arange(14, dtype=np.int16).repeat(5),
        drawer=np.tile(np.arange(1, 6, dtype=np.int8), 14),
    )
    split = ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    pq.write_table(pa.table({"class_id": range(14), "vinyals_split": split}), directory / "classes.parquet")
    return directory


Train = Callable[..., Path]


@pytest.fixture
def train(work: Work, archive: Path) -> Train:
    """A run on the small archive; MAML++ with two inner steps unless told otherwise."""

    def run(*words: str) -> Path:
        algorithm = () if any(word.startswith("algorithm=") for word in words) else ("algorithm=maml_pp",)
        steps = () if any("train.minutes" in word for word in words) else SHORT
        return work._run(
            "train", *WORDS, f"dataset.path={archive}", *algorithm, f"algorithm.inner.steps={K}", *steps, *words
        )

    return run


def at_step(run: Path, step: int) -> Params:
    return load_checkpoint(run / "checkpoints" / f"step-{step:06d}")[0]


def phi_of(found: Params) -> Params:
    return {name.removeprefix("phi/"): value for name, value in found.items() if name.startswith("phi/")}


def config_of(run: Path) -> TrainConfig:
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    return config


def bench_of(config: TrainConfig) -> ImageBench:
    prepared = build.data(config, config.dataset, lambda line: None)
    assert isinstance(prepared, Omniglot)
    bench = build.bench(config, config.evaluation, prepared, build.hardware(config.hardware))
    assert isinstance(bench, ImageBench)
    return bench
