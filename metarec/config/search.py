"""What ``metarec train -m hydra/sweeper=optuna ...`` asks for: how to search, what stays fixed, what is drawn.

The words are Hydra's (its sweepers are chosen and set in the same way), and metarec runs the search itself: only so does
a kill lose nothing, and nothing is a Hydra plugin that every other program of the environment would load.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from metarec import strict_json
from metarec.config.arguments import SEARCH
from metarec.config.check import Walk, raise_all
from metarec.config.fields import type_hints
from metarec.config.hydra_words import MOST_AT_A_TIME
from metarec.config.overrides import SWEEPER, Checks, checks, is_hydra, normalise
from metarec.config.schema import SEED_MAX, TrainConfig
from metarec.config.show import show
from metarec.config.space import Dimension, dimension, size
from metarec.config.sweep import write_json
from metarec.config.threads import threads_each
from metarec.errors import CheckpointError, ConfigError, EnvironmentFault, nearest
from metarec.options import ranged

FILE, FORMAT = SEARCH, 1
OPTIONS = "hydra.sweeper"
N_TRIALS = 20
# Not to be chosen by validation figures, or trials with different ones could not be compared.
FIXED = {
    "seed": "a seed is no setting, and the luckiest would win: give hydra.sweeper.seeds=[1,2,3] for a mean over seeds",
    "evaluation": "trials are compared by one figure", "dataset": "trials are compared on the same users",
    "resume": "a trial starts anew", "output_dir": "a search has one directory",
}  # fmt: skip
SETTINGS = ("evaluation.test_steps", "evaluation.control")  # of the run itself, though they stand there


@dataclass
class SearchOptions:
    """The keys ``hydra.sweeper.*``."""

    n_trials: int | None = ranged(None, min=1, max=10**6)  # None = 20, and with sampler=grid the whole grid
    n_jobs: int = ranged(1, min=1, max=MOST_AT_A_TIME)  # trials at a time, each in a process of its own
    sampler: str = ranged("tpe", choices=["tpe", "random", "grid"])
    pruner: str = ranged("none", choices=["none", "median", "hyperband"])
    startup_trials: int = ranged(10, min=0)  # drawn at random before tpe begins; finished before median prunes
    seed: int = ranged(1, min=0, max=SEED_MAX)  # of the sampler
    seeds: list[int] | None = ranged(None, min=0, max=SEED_MAX)  # runs of one setting; their mean counts
    study_name: str = "metarec"
    storage: str | None = ranged(None, path=True)  # an SQLite file; None = in the search's own directory


@dataclass(frozen=True)
class Search:
    """A checked search. `words` are fixed for all trials; `config` is that of its first setting."""

    options: SearchOptions
    words: tuple[str, ...]
    drawn: tuple[str, ...]  # the words that span `space`, as typed
    space: tuple[Dimension, ...]
    config_dir: Path | None
    config: TrainConfig

    @property
    def n_trials(self) -> int:
        """How many trials end the search: never more than there are settings."""
        wanted, there = self.options.n_trials, size(self.space)
        if wanted is None:
            wanted = int(there) if self.options.sampler == "grid" else N_TRIALS
        return int(min(wanted, there))


def is_search(words: Sequence[str]) -> bool:
    """Whether a word of ``train -m`` chooses the search, in quotes or not."""
    return any(word.replace("'", "").replace('"', "") == f"{SWEEPER}=optuna" for word in words)


def need_optuna() -> None:
    """EnvironmentFault where Optuna is not installed; it is not imported."""
    if importlib.util.find_spec("optuna") is None:
        raise EnvironmentFault(SWEEPER, "optuna", "is not installed", "pip install 'metarec[sweep]'")


def read_search(raw: Sequence[str], config_dir: Path | None) -> Search:
    """The search that the words ask for; every value of every list and both ends of all numbers are checked, each beside
    the first values of the other keys. Raises ConfigError with all that is wrong."""
    words = [normalise(word) for word in raw if not is_search([word])]
    with checks("train", words, config_dir, multirun=True, intervals=True) as (run, parsed):
        run_words = [o for o in parsed if run.form(o) and not is_hydra(o)]
        options = _options(run, [o for o in parsed if is_hydra(o)])
        open_words = [o for o in run_words if o.is_sweep_override()]
        space = _space(run, open_words)
        fixed = [(o, str(o.input_line)) for o in run_words if not o.is_sweep_override()]
        run.errors += _contradictions(options, space, {o.key_or_group for o, _ in fixed})
        fixed += _threads(run, options, space, fixed)
        config = _probe(run, space, fixed) if space else None
    raise_all(run.errors)
    assert isinstance(config, TrainConfig)
    if options.storage is not None:  # a resume may start elsewhere
        options.storage = str(Path(options.storage).resolve())
    config_dir = None if config_dir is None else config_dir.resolve()
    kept = [o for o in parsed if o.key_or_group == "hydra.searchpath"]
    every = (*(str(o.input_line) for o in kept), *(word for _, word in fixed))
    return Search(options, every, tuple(str(o.input_line) for o in open_words), tuple(space), config_dir, config)


def _options(run: Checks, words: Sequence[Override]) -> SearchOptions:
    values, names = {}, type_hints(SearchOptions)
    for o in words:
        section, _, name = o.key_or_group.rpartition(".")
        if o.key_or_group == "hydra.searchpath":
            continue
        if section != OPTIONS:
            run.fail(
                o.key_or_group,
                o.get_value_string(),
                "does nothing in a search",
                f"its options are {OPTIONS}.*, such as n_jobs",
            )
        elif name not in names:
            near = nearest(name, names)
            fix = f"did you mean {OPTIONS}.{near}?" if near else f"the options are {', '.join(names)}"
            run.fail(o.key_or_group, o.get_value_string(), "unknown option of a search", fix)
        else:
            values[name] = o.value()
    walk = Walk("train", {}, False)
    found: SearchOptions = walk.node(SearchOptions, values, OPTIONS)
    run.errors += walk.errors
    return found


def _space(run: Checks, words: Sequence[Override]) -> list[Dimension]:
    found: dict[str, Dimension] = {}
    for o in words:
        key = o.key_or_group
        reason = None if key.startswith(SETTINGS) else FIXED.get(key.partition(".")[0])
        if reason or key in found:
            run.fail(
                key, o.get_value_string(), reason or "given twice", "give one value" if reason else "give one list"
            )
            continue
        texts = [word.partition("=")[2] for _, word in run.elements(o)] if o.is_choice_sweep() or _is_glob(o) else []
        try:
            found[key] = dimension(o, texts)
        except ConfigError as error:
            run.errors.append(error)
    if not words:
        fix = "give a key several values: optimizer.lr=1e-3,1e-2"
        run.fail("command line", "hydra/sweeper=optuna", "nothing to search", fix)
    return list(found.values())


def _is_glob(o: Override) -> bool:
    return o.value_type is not None and o.value_type.name == "GLOB_CHOICE_SWEEP"


def _contradictions(options: SearchOptions, space: Sequence[Dimension], fixed: set[str]) -> list[ConfigError]:
    found = []
    if options.sampler == "grid":
        found += [
            ConfigError(one.key, f"{one.low} to {one.high}", "a grid has no end of it", "give a list, or range(...)")
            for one in space
            if one.values is None
        ]
    if options.seeds is not None and len(set(options.seeds)) < len(options.seeds):
        found.append(ConfigError(f"{OPTIONS}.seeds", show(options.seeds), "a seed stands twice", "give it once"))
    if options.seeds is not None and "seed" in fixed:
        found.append(ConfigError("seed", "given", f"does nothing: {OPTIONS}.seeds is set", "drop one of the two"))
    if "evaluation.split" in fixed:
        what = "is set by the search: val for its trials, test for the best setting at the end"
        found.append(ConfigError("evaluation.split", "given", what, "drop it"))
    methods = next((set(one.values or ()) for one in space if one.key == "algorithm"), set())
    if "supervised" in methods and len(methods) > 1:
        what = "supervised is validated without support, the others with it: their figures are not the same one"
        found.append(ConfigError("algorithm", ",".join(sorted(methods)), what, "leave supervised out"))
    return found


def _threads(
    run: Checks, options: SearchOptions, space: Sequence[Dimension], fixed: Sequence[tuple[Override, str]]
) -> list[tuple[Override, str]]:
    """The cores divided among trials that run at a time, where nobody said how many threads one may have."""
    given = {o.key_or_group for o, _ in fixed} | {one.key for one in space}
    if options.n_jobs == 1 or "hardware.threads" in given:
        return []
    return [run.parsed(f"hardware.threads={threads_each(options.n_jobs)}")]


def _probe(run: Checks, space: Sequence[Dimension], fixed: Sequence[tuple[Override, str]]) -> object:
    """Check a job for every probe of every dimension; the config of the first setting."""
    first = {one.key: one.probes()[0] for one in space}
    jobs = [list(first.values())]
    jobs += [list((first | {one.key: probe}).values()) for one in space for probe in one.probes()[1:]]
    found = []
    for words in jobs:
        pairs = [*fixed, *(run.parsed(word) for word in words)]
        found.append(run.job([o for o, _ in pairs], [word for _, word in pairs]))
    return None if found[0] is None else found[0].config


# The file


def write_search(directory: Path, search: Search) -> None:
    """search.json: what a resume needs."""
    write_json(directory / FILE, {"format": FORMAT, **document(search)})


def document(search: Search) -> dict[str, Any]:
    """The search as search.json keeps it: whatever could make a resume draw other trials."""
    return {
        "options": asdict(search.options),
        "words": list(search.words),
        "drawn": list(search.drawn),
        "config_dir": None if search.config_dir is None else str(search.config_dir),
    }


def stored_search(directory: Path) -> Search:
    """The search of a directory, checked anew. Raises CheckpointError for a file that is none of ours."""
    path = directory / FILE
    try:
        found = strict_json.loads(path.read_bytes())
        assert found["format"] == FORMAT
        options = {k: v for k, v in found["options"].items() if v != _default(k)}
        words = [*found["words"], *found["drawn"], *(f"{OPTIONS}.{k}={_typed(v)}" for k, v in options.items())]
        config_dir = None if found["config_dir"] is None else Path(found["config_dir"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as reason:
        what = f"not readable as the description of a search ({type(reason).__name__})"
        raise CheckpointError(path, "damaged", what, "start a new search") from reason
    return read_search(words, config_dir)


def _default(name: str) -> object:
    return next(spec.default for spec in dataclasses.fields(SearchOptions) if spec.name == name)


def _typed(value: object) -> str:
    from metarec.config.compose import quoted

    return quoted(value) if isinstance(value, str) else show(value)
