"""Composing the shipped files takes a third of a second and is asked for hundreds of times: done once a choice.

A conftest that imports the fixture has it for every test below.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omegaconf import DictConfig

from metarec.config.compose import Composer


@pytest.fixture(scope="session", autouse=True)
def shipped_files_composed_once() -> Iterator[None]:
    """Remember what `Composer` reads of the shipped files; a search path of a test's own is always read anew."""
    patch = pytest.MonkeyPatch()
    compose, seen = Composer._hydra, dict[tuple[str, ...], DictConfig]()

    def remembered(self: Composer, verb: str, words: tuple[str, ...]) -> DictConfig:
        if self._search:
            return compose(self, verb, words)
        key = (verb, *words)
        if key not in seen:
            seen[key] = compose(self, verb, words)
        return seen[key]

    patch.setattr(Composer, "_hydra", remembered)
    yield
    patch.undo()
