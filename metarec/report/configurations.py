"""Runs by configuration: those that differ in their seed only are one, named by what tells it from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarec.errors import ConfigError
from metarec.options import flat
from metarec.report.cells import plain
from metarec.report.finished import Run

# what moves no figure: places, what is shown, how much is held in memory at once, how intervals are drawn
NO_MATTER = (
    "seed", "data_dir", "cache_dir", "output_dir", "resume", "logger", "dataset.path", "dataset.in_data_dir",
    "dataset.memory_limit", "evaluation.task_chunk", "evaluation.bootstrap", "evaluation.confidence",
)  # fmt: skip
Defaults = Callable[[str, str], Mapping[str, Any]]  # (group, name of the alternative) -> its options as they come
Flat = dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """``runs`` by seed; ``differs``: the options in which the configurations differ, as this one has them."""

    name: str
    runs: tuple[Run, ...]
    differs: Flat

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the runs."""
        return tuple(run.seed for run in self.runs)


def configurations(runs: Sequence[Run], defaults: Defaults) -> list[Configuration]:
    """In the order of their first runs. Raises ConfigError where two runs have one configuration and one seed."""
    groups: dict[str, list[Run]] = {}
    options: dict[str, Flat] = {}
    for run in runs:
        own = {key: value for key, value in flat(run.config).items() if not _below(key, NO_MATTER)}
        identity = repr(sorted((key, plain(value)) for key, value in own.items()))
        groups.setdefault(identity, []).append(run)
        options[identity] = own
    for same in groups.values():
        _each_seed_once(same)
    keys = differing(list(options.values()))
    shown = [key for key in keys if _shown(key, list(options.values()), defaults)]
    found = []
    for identity, same in groups.items():
        own = options[identity]
        name = " ".join(f"{key.removesuffix('.name')}={plain(own[key])}" for key in shown if key in own)
        ordered = tuple(sorted(same, key=lambda run: run.seed))
        found.append(Configuration(name or _only(same[0]), ordered, {key: own[key] for key in keys if key in own}))
    return found


def differing(options: Sequence[Flat]) -> list[str]:
    """The keys whose values are not the same in all, or that some do not have."""
    keys = dict.fromkeys(key for one in options for key in one)
    return [key for key in keys if len({plain(one[key]) if key in one else None for one in options}) > 1]


def _shown(key: str, options: Sequence[Flat], defaults: Defaults) -> bool:
    """Whether a name needs the key. What comes with the choice of a group's alternative is said by its name, as long
    as it is as it comes: fomaml and meta_sgd differ in `inner.rates`, and `algorithm=...` says so."""
    group, _, rest = key.partition(".")
    name = f"{group}.name"
    if not rest or rest == "name" or len({one.get(name) for one in options}) == 1:
        return True
    of_name: dict[Any, set[str]] = {}
    for one in options:
        if key in one:
            of_name.setdefault(one.get(name), set()).add(plain(one[key]))
    if any(len(values) > 1 for values in of_name.values()):
        return True
    usual = {choice: flat(defaults(group, str(choice))) for choice in of_name}
    return any(values != {plain(usual[choice].get(rest))} for choice, values in of_name.items())


def _each_seed_once(runs: Sequence[Run]) -> None:
    seen: dict[int, Run] = {}
    for run in runs:
        if run.seed in seen:
            what = f"the same configuration and seed as {seen[run.seed].path}, which would count twice"
            raise ConfigError("RUN", run.path, what, "leave one of them out")
        seen[run.seed] = run


def _only(run: Run) -> str:
    """The name where nothing differs."""
    document = run.document
    return f"{document['model']}, {document['algorithm']}, residual {document['residual']}"


def _below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
