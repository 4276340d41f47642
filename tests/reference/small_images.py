"""A small archive in the form of Omniglot's, every image another one; parts of it can be replaced or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.data.spec import ImageSpec

SMALL = ImageSpec(n_way=3, n_shot=2, n_query=3, n_val=7, n_test=5, seed=11)
N_CLASSES, N_DRAWINGS = 14, 6
SPLIT = ["train"] * 6 + ["val"] * 4 + ["test"] * 4


def arrays() -> dict[str, Any]:
    """Every image is another one; classes and drawers stand in disorder."""
    order = np.random.default_rng(3).permutation(N_CLASSES * N_DRAWINGS)
    images = np.random.default_rng(4).random((N_CLASSES * N_DRAWINGS, 784)) < 0.2
    images[:, :10] = (order[:, None] >> np.arange(10)) & 1  # the number of class and drawing in the first pixels
    return {
        "images_packed": np.packbits(images, axis=1),
        "class_id": (order // N_DRAWINGS).astype(np.int16),
        "drawer": (order % N_DRAWINGS + 1).astype(np.int8),
    }


def table() -> dict[str, Any]:
    return {"class_id": list(range(N_CLASSES)), "vinyals_split": list(SPLIT)}


def write(directory: Path, *, held: dict[str, Any] | None = None, listed: dict[str, Any] | None = None) -> Path:
    """An archive in the form of the real one; `held`, `listed` replace arrays and columns, None leaves one out."""
    directory.mkdir(exist_ok=True)
    kept = {name: value for name, value in (arrays() | (held or {})).items() if value is not None}
    np.savez_compressed(directory / "omniglot28.npz", **kept)
    columns = {name: value for name, value in (table() | (listed or {})).items() if value is not None}
    pq.write_table(pa.table(columns), directory / "classes.parquet")
    return directory
