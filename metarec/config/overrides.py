"""The command line's ``key=value`` words, checked as a whole before Hydra runs anything.

Hydra stops at the first word that it cannot use, and several lines long. So the words are parsed by Hydra's own grammar
here, composed with the group choices alone, the values laid over, and everything wrong is reported at once. What passes
is handed to Hydra as it stands.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarec import parts
from metarec.config.check import check, raise_all
from metarec.config.compose import DEFAULTS, Composer, composer, from_hydra, plain, quoted
from metarec.config.fields import alternatives, explain_unknown, groups, keys
from metarec.config.hydra_words import check_hydra_word, check_joblib, search_directories
from metarec.config.own_files import check_directory
from metarec.config.paths import conf_dir
from metarec.config.schema import GROUPS, Config
from metarec.config.show import choose, show
from metarec.config.space import MOST_VALUES, endless
from metarec.errors import ConfigError, nearest

SWITCH = {"true": "on", "yes": "on", "on": "on", "false": "off", "no": "off", "off": "off"}
# Values of these keys may hold spaces, brackets, accents, a second "=": they are quoted for the grammar at need.
PATHS = {
    *("dataset.path", "dataset_path", "data_dir", "cache_dir", "output_dir"),
    *("warm_start", "resume", "ckpt", "users", "export", "to", "logger.store", "residual.adapter"),
    "algorithm.teacher.path",
}
SWEEPER = "hydra/sweeper"
MOST_JOBS = MOST_VALUES  # of a sweep: each is composed and checked before the first runs
FEWER = f"give at most {MOST_JOBS:,}, or search them: -m {SWEEPER}=optuna and interval(LOW,HIGH)"


@dataclass(frozen=True)
class Job:
    """One run that the words ask for: its overrides and its checked config."""

    overrides: tuple[str, ...]
    config: Config


@dataclass
class Checked:
    """What to hand to Hydra, and the jobs that it will run."""

    words: list[str]
    jobs: list[Job]
    hydra_keys: set[str] = field(default_factory=set)  # the hydra.* keys typed


def normalise(word: str) -> str:
    """``residual=yes,[memory,context]`` as ``residual=on,memory+context``; a path that the grammar cannot read, quoted;
    others unchanged."""
    key, equals, value = word.partition("=")
    if key.lstrip("+") == "residual" and equals and not value.startswith("glob("):
        joined = re.sub(r"\[([^\[\]]*)\]", lambda found: "+".join(_named(found.group(1), ",")), value)
        return f"{key}={','.join('+'.join(_named(part, '+')) for part in joined.split(','))}"
    if key.lstrip("+") in PATHS and _grammar_refuses(word):
        return f"{key}={quoted(value)}"
    return word


def _named(text: str, by: str) -> list[str]:
    """The names of residuals in a text, where YAML would read a boolean as the word that was meant."""
    names = text.split(by)
    return [SWITCH.get(name.strip().lower(), name.strip() if len(names) > 1 else name) for name in names]


def _grammar_refuses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return True
    return False


def given_keys(words: Sequence[str]) -> set[str]:
    """The keys and groups that override words set."""
    parser = OverridesParser.create()
    return {parser.parse_override(word).key_or_group for word in words}


def check_words(
    verb: str, raw: Sequence[str], *, multirun: bool = False, config_dir: Path | None = None, rules: bool = True
) -> Checked:
    """Check every word and every job; raises ConfigError with all that is wrong.

    `rules=False`: the config is only shown, so contradictions and missing paths do not matter.
    """
    words = [normalise(word) for word in raw]
    with checks(verb, words, config_dir, multirun=multirun, rules=rules) as (run, parsed):
        jobs = run.jobs(parsed)
    raise_all(run.errors)
    return Checked(words, jobs, {o.key_or_group for o in parsed if is_hydra(o)})


@contextlib.contextmanager
def checks(
    verb: str, words: Sequence[str], config_dir: Path | None, **options: bool
) -> Iterator[tuple[Checks, list[Override]]]:
    """What checks jobs of these normalised words, and the words parsed; the errors so far stand in its `errors`."""
    parsed, errors = _parse(words, verb)
    several = options.get("multirun", False) or not options.get("rules", True)
    raise_all(
        [error for o in parsed if is_hydra(o) for error in check_hydra_word(o)]
        + list(check_joblib(parsed, multirun=several))
    )
    search = [str(path) for path in search_directories(parsed)]
    for name, own in (("--config-dir", config_dir), *(("hydra.searchpath", Path(path)) for path in search)):
        if own is not None:
            _check_config_dir(name, own, verb)
    with composer(verb, config_dir, search) as found:
        found.compose(verb, [])  # reads the search path, which `choices` needs
        run = Checks(verb, found, **options)
        run.errors += errors
        yield run, parsed


def _parse(words: Sequence[str], verb: str) -> tuple[list[Override], list[ConfigError]]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    errors: list[ConfigError] = []
    for word in words:
        if "=" not in word and not word.startswith("~"):
            errors.append(_no_equals(word, verb))
            continue
        if not word.partition("=")[0].strip("+~ "):
            errors.append(ConfigError("command line", word, "no key before the =", f"see `metarec {verb} --help`"))
            continue
        try:
            parsed.append(parser.parse_override(word))
        except (HydraException, ValueError) as trouble:  # ValueError: a number of thousands of digits
            key, _, value = word.partition("=")
            reason = str(trouble).splitlines()[0]
            errors.append(ConfigError(key, value, f"not readable ({reason})", f"quote the value: \"{key}='...'\""))
    return parsed, errors


def _no_equals(word: str, verb: str) -> ConfigError:
    for group in groups(verb):
        if (conf_dir() / group / f"{word}.yaml").is_file():
            return ConfigError("command line", word, "not key=value", f"did you mean {group}={word}?")
    near = nearest(word, [*groups(verb), *keys(verb, {})])
    fix = f"did you mean {near}=...?" if near else f"see `metarec {verb} --help`"
    return ConfigError("command line", word, "not key=value", fix)


def _check_config_dir(name: str, config_dir: Path, verb: str) -> None:
    """A directory of the user's own files: none may be hidden by a shipped one (it would silently not be read), stand in
    for one, or hold what a file may not (`own_files`)."""
    if not config_dir.is_dir():
        raise ConfigError(name, config_dir, "no such directory", "give one with GROUP/NAME.yaml files")
    if config_dir.resolve() == conf_dir().resolve():
        return
    if (config_dir / "hydra").exists():
        raise ConfigError(name, config_dir / "hydra", "may not set up Hydra itself", "remove that directory")
    if (config_dir / f"{DEFAULTS}.yaml").exists():
        what = "would stand in for metarec's own defaults"
        raise ConfigError(name, config_dir / f"{DEFAULTS}.yaml", what, "rename it; options go into GROUP/NAME.yaml")
    own = groups(verb)
    paths = [*config_dir.glob("*.yaml"), *(path for group in own for path in (config_dir / group).rglob("*.yaml"))]
    hidden = [
        ConfigError(str(path), path.stem, "hidden by metarec's own file of that name", "rename it")
        for path in sorted(paths)
        if (conf_dir() / path.relative_to(config_dir)).is_file()
    ]
    raise_all(hidden + check_directory(config_dir, own))


def is_hydra(override: Override) -> bool:
    """Whether the word is for Hydra itself."""
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


class Checks:
    """Checks the parsed words job by job; errors gather in `errors`, each once."""

    def __init__(
        self, verb: str, found: Composer, *, multirun: bool = False, rules: bool = True, intervals: bool = False
    ) -> None:
        self.verb, self.found, self.multirun, self.rules, self.intervals = verb, found, multirun, rules, intervals
        self.groups = groups(verb)
        self.errors: list[ConfigError] = []
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def fail(self, where: str, value: object, what: str, fix: str) -> None:
        """Note an error and go on; the value is shown as it would be typed."""
        self.errors.append(ConfigError(where, show(value), what, fix))

    def jobs(self, parsed: list[Override]) -> list[Job]:
        """Every job of the sweep (one without -m)."""
        lists = []
        other_sweeper = any(o.key_or_group == SWEEPER for o in parsed)
        for override in parsed:
            if not self.form(override):
                continue
            if is_hydra(override) and "/" not in override.key_or_group:
                continue  # typed by the user, for Hydra alone
            if other_sweeper and override.is_sweep_override():
                continue  # only that sweeper knows which values it will draw; each job checks its own
            lists.append(self.elements(override))
        if (count := math.prod(map(len, lists))) > MOST_JOBS:
            self.fail("command line", "-m", f"asks for {count:,} jobs", FEWER)
            return []
        found = (self.job([o for o, _ in pairs], [word for _, word in pairs]) for pairs in itertools.product(*lists))
        return [job for job in found if job is not None]

    def form(self, o: Override) -> bool:
        """Whether the word has a form that is allowed at all."""
        key, text = o.key_or_group, o.get_value_string() if o.value_type is not None else ""
        before = len(self.errors)
        if o.is_delete():
            self.fail(f"~{key}", text, "nothing can be removed", "set the key to the value you want")
        elif is_hydra(o):
            return True  # `checks` has looked
        elif o.package is not None:
            self.fail(f"{key}@{o.package}", text, "a group has one place", f"write {key}={text}")
        elif o.type == OverrideType.ADD and (key in self.groups or self._known(key)):
            self.fail(f"+{key}", text, "exists already, there is nothing to add", f"write {key}={text}")
        elif o.value_type == ValueType.INTERVAL_SWEEP and not self.intervals:
            fix = "write 1,2,3 or range(1,4), or search it: add -m hydra/sweeper=optuna"
            self.fail(key, text, "an interval has no list of values to run", fix)
        elif o.is_sweep_override() and not self.multirun:
            self.fail(key, text, "several values for one run", f"add -m to run each, or quote it: \"{key}='{text}'\"")
        elif re.fullmatch(rf"({'|'.join(GROUPS)})\.name", key):
            group = key.partition(".")[0]
            self.fail(key, text, "chosen through the group", f"write {group}={text}")
        return len(self.errors) == before

    def _known(self, key: str) -> bool:
        """Whether some choice of alternatives has this key."""
        combined = set(keys(self.verb, {}))
        for group in GROUPS:
            for name in alternatives(group):
                combined |= set(keys(self.verb, {group: name}))
        return key in combined

    def elements(self, o: Override) -> list[tuple[Override, str]]:
        """The word itself, or one word for each value of a sweep."""
        if not o.is_sweep_override():
            return [(o, str(o.input_line))]
        key = o.get_key_element()
        if o.value_type == ValueType.GLOB_CHOICE_SWEEP:
            names = self.found.choices(o.key_or_group) if o.key_or_group in self.groups else []
            texts = cast(Glob, o.value()).filter(names)
            if not texts:
                self.fail(key, o.get_value_string(), "matches no alternative", "glob(...) takes names of a group")
        elif (trouble := endless(o)) is not None:
            self.fail(key, o.get_value_string(), trouble, FEWER)
            texts = []
        else:
            texts = [str(text) for text in o.sweep_string_iterator()]
        parser = OverridesParser.create()
        return [(parser.parse_override(f"{key}={text}"), f"{key}={text}") for text in texts]

    def parsed(self, word: str) -> tuple[Override, str]:
        """A word as `job` takes it."""
        return OverridesParser.create().parse_override(word), word

    def job(self, overrides: list[Override], words: list[str]) -> Job | None:
        """Compose with the group choices, lay the values over, check the whole."""
        before = len(self.errors)
        pairs = list(zip(overrides, words, strict=True))
        choices = [w for o, w in pairs if is_hydra(o) or (o.key_or_group in self.groups and self._choice(o))]
        try:
            config = self._compose(tuple(choices))
        except ConfigError as error:
            self.errors.append(error)
            return None
        nodes = {group: config.get(group) for group in GROUPS}
        chosen = {group: str(node.get("name")) for group, node in nodes.items() if isinstance(node, DictConfig)}
        known = keys(self.verb, chosen)
        for override in overrides:
            key = override.key_or_group
            if is_hydra(override) or key in self.groups:
                continue
            if key not in known:
                self.fail(key, override.value(), *explain_unknown(self.verb, key, chosen))
                continue
            self._lay(config, key, override.value())
        try:
            values = plain(config)
        except ConfigError as error:
            self.errors.append(error)
            return None
        given = {o.key_or_group for o in overrides if not is_hydra(o)}
        typed, errors = check(self.verb, values, given, rules=self.rules)
        self.errors += errors
        return Job(tuple(words), typed) if len(self.errors) == before else None

    def _compose(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self.composed:
            self.composed[choices] = self.found.compose(self.verb, choices)
        return self.composed[choices].copy()

    def _choice(self, o: Override) -> bool:
        """Whether the group has the alternative that the word chooses."""
        group, value = o.key_or_group, o.value()
        options = self.found.choices(group)
        if value is None and group == "experiment":
            return True
        if isinstance(value, str) and value in options:
            return True
        if isinstance(value, str) and parts.is_list(group, value):
            trouble = parts.list_trouble(value)
            if trouble is not None:
                self.fail(group, value, *trouble)
            return trouble is None
        if (group, value) == (parts.LISTED, "several"):
            self.fail(group, value, "is how a list is put together, and names none", f"write {group}=[memory,context]")
            return False
        self.fail(group, value, "no such alternative", choose(value, options))
        return False

    def _lay(self, config: DictConfig, key: str, value: Any) -> None:
        try:
            OmegaConf.update(config, key, value, merge=isinstance(value, dict), force_add=True)
        except OmegaConfBaseException as trouble:
            self.errors.append(from_hydra(trouble, key))
