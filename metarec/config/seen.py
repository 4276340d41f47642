"""What a rule looks at: the typed config of a verb and the keys that were given explicitly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metarec.config.schema import Config
from metarec.options import Refusal

__all__ = ["Refusal", "Seen"]


@dataclass(frozen=True)
class Seen:
    """What a rule looks at."""

    verb: str
    config: Config
    given: frozenset[str]

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, or `default` where this config has no such key."""
        node: Any = self.config
        for name in key.split("."):
            if not hasattr(node, name):
                return default
            node = getattr(node, name)
        return node

    def asked(self, prefix: str) -> list[str]:
        """The explicitly given keys at or below `prefix`."""
        return sorted(key for key in self.given if key == prefix or key.startswith(f"{prefix}."))

    @property
    def learns_rates(self) -> bool:
        """Whether the outer loop learns step sizes of the inner one."""
        if (learns := self.get("algorithm.learns_rates")) is not None:  # an algorithm that says so itself
            return bool(learns)
        return self.get("algorithm.inner.rates", "fixed") != "fixed" or bool(self.get("algorithm.lslr"))

    @property
    def supervised(self) -> bool:
        """Whether there is no outer loop and no adaptation (a verb without an algorithm: no)."""
        return bool(self.get("algorithm.name") == "supervised")
