"""Sequence models as pure functions over named weights. A model never hears of adaptation.

A model that is not among those of `metarec.config.schema` is the one file here by its name, which holds its options as the
dataclass `Config` and makes it by `build` (docs/new_model.md). Nothing outside this folder can be named, and a file is
imported only when it is chosen, so that help and refusals go without torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Own:
    """What the file of a model brings."""

    config: type  # a dataclass with `name`, `max_len` and the model's options, each with a default
    build: Callable[[Any, int], Any]  # an instance of it, n_items -> the model


def own(name: str) -> Own | None:
    """The model of the file of exactly this name; None where there is none, or it brings no `Config` and `build`."""
    if name not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return None
    found = importlib.import_module(f"{__name__}.{name}")
    config, build = getattr(found, "Config", None), getattr(found, "build", None)
    return None if config is None or build is None else Own(config, build)
