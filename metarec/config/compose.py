"""Composition: YAML files, group choices and overrides to plain values, through Hydra; and configs to and from text.

Hydra composes and nothing else: no value names a class to call, and of its own node only what cannot run code may come
from a file (`guard`). The schema is applied afterwards, by `metarec.config.check`, to all values at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarec import parts
from metarec.config.check import checked
from metarec.config.own_files import check_text
from metarec.config.paths import conf_dir
from metarec.config.schema import Config
from metarec.data.spec import DatasetSpec
from metarec.errors import ConfigError

# From 1.4 on Hydra has no compatibility levels to choose from.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
DEFAULTS = "dataset_defaults"  # as conf/*.yaml call all options of the group dataset; no file has that name
# Parts of Hydra's node that record the composition itself, and so differ with every choice.
RECORDS = ("overrides", "runtime", "job.override_dirname", "job.config_name")


def slug(overrides: str) -> str:
    """A short directory name, ``b-1_c-x-y`` from ``a.b=1,c=x/y``, that the command line takes without quotes."""
    pairs = [pair.rpartition("=") for pair in overrides.split(",")]
    text = "_".join(f"{key.rpartition('.')[2]}-{value}" if key else value for key, _, value in pairs)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "job"


def register() -> None:
    """What the YAML files refer to; called when this module is imported, in a launcher's worker process too."""
    OmegaConf.register_new_resolver("metarec_slug", lambda *parts: slug(",".join(map(str, parts))), replace=True)
    ConfigStore.instance().store(DEFAULTS, {"dataset": dataclasses.asdict(DatasetSpec())})


register()


def register_list(name: str) -> None:
    """Make residual=NAME of several composable: to Hydra it is one more alternative, the options of all parts at their
    defaults."""
    schema = parts.options(parts.LISTED, name)
    assert schema is not None  # `parts.list_trouble` has looked
    ConfigStore.instance().store(name, dataclasses.asdict(schema()), group=parts.LISTED)


class Composer:
    """Hydra set up on `conf/` and, after it, on further directories; use `composer`."""

    def __init__(self, searchpath: Sequence[str]) -> None:
        self._searched = list(searchpath)
        self._search = [f"hydra.searchpath=[{','.join(quoted(path) for path in searchpath)}]"] if searchpath else []
        self._done: dict[tuple[str, ...], DictConfig] = {}
        # without the search path: metarec's own files, and what the installed launchers bring
        self._shipped = Composer(()) if self._search else self

    def choices(self, group: str) -> list[str]:
        """The alternatives of a group, from every directory searched."""
        loader = GlobalHydra.instance().config_loader()
        found = loader.get_group_options(group, ObjectType.CONFIG, config_name=None, overrides=self._search)
        return sorted(name for name in found if not parts.is_list(group, name))

    def compose(self, verb: str, choices: Sequence[str]) -> DictConfig:
        """The config under these group choices, Hydra's own node `guard`ed and taken out; raises ConfigError."""
        composed = self._hydra(verb, tuple(choices))
        shipped = self._shipped._hydra(verb, tuple(word for word in choices if word.startswith("hydra/"))).hydra
        guard(composed.hydra, shipped, self._searched)
        config = composed.copy()
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return config

    def _hydra(self, verb: str, words: tuple[str, ...]) -> DictConfig:
        if words not in self._done:
            try:
                self._done[words] = self._with_lists(verb, words)
            except ConfigError:
                raise
            except Exception as trouble:
                # Hydra's, OmegaConf's and PyYAML's errors have no common base class; all mean bad input here
                raise from_hydra(trouble, " ".join(words) or verb) from trouble
        return self._done[words]

    def _with_lists(self, verb: str, words: tuple[str, ...]) -> DictConfig:
        """Composed, a list of residuals made known to Hydra where words or a file ask for it by name."""
        try:
            config = hydra.compose(verb, [*self._search, *words], return_hydra_config=True)
        except MissingConfigException as missing:
            group, _, name = str(missing.missing_cfg_file).rpartition("/")
            if not parts.is_list(group, name):
                raise
            if trouble := parts.list_trouble(name):
                raise ConfigError(group, name, *trouble) from missing
            register_list(name)
            config = hydra.compose(verb, [*self._search, *words], return_hydra_config=True)
        if parts.LISTED in config and parts.LISTED not in config.hydra.runtime.choices:
            # a list in a file: Hydra lays one alternative over the other
            loader = GlobalHydra.instance().config_loader()
            laid = loader.compute_defaults_list(verb, [*self._search, *words], RunMode.RUN).defaults
            paths = (str(one.config_path) for one in laid)
            own = [path.rpartition("/")[2] for path in paths if path.startswith(f"{parts.LISTED}/")]
            fix = f"write {parts.JOINED.join(own)}"
            raise ConfigError(parts.LISTED, f"[{','.join(own)}]", "a file names a list in one word", fix)
        return config


@contextlib.contextmanager
def composer(verb: str, config_dir: Path | None = None, searchpath: Sequence[str] = ()) -> Iterator[Composer]:
    """Hydra initialised for composing only; nothing it is given runs. Inside a job of Hydra's, that one waits."""
    extra = [*([f"file://{config_dir.resolve()}"] if config_dir else []), *searchpath]
    own = GlobalHydra.instance()
    running, own.hydra = own.hydra, None
    try:
        with hydra.initialize_config_dir(str(conf_dir()), job_name=verb, **VERSION_BASE):
            found = Composer(extra)
            yield found
    finally:
        own.hydra = running


def quoted(text: str) -> str:
    """`text` as a quoted value of the override grammar."""
    escaped = re.sub(r"(\\*)'", lambda found: found.group(1) * 2 + r"\'", text)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - tail :]}'"


def from_hydra(trouble: BaseException, value: str) -> ConfigError:
    """One line from an exception of Hydra, OmegaConf or the YAML reader."""
    reasons = [_reason(trouble)]
    if trouble.__cause__ is not None and _reason(trouble.__cause__) not in reasons[0]:
        reasons.append(_reason(trouble.__cause__))
    message = "; ".join(reason for reason in reasons if reason != "ConfigCompositionException")
    if group := re.search(r"Could not override '(\w+)'\.? No match in the defaults list", message):
        what = f"chooses a {group[1]} too, and this command has none"
        return ConfigError("configuration", value, what, "it is for metarec train, or mend the file if it is yours")
    return ConfigError("configuration", value, message, "`metarec --help` shows what can be composed")


def is_composition_trouble(trouble: BaseException) -> bool:
    """Whether Hydra or OmegaConf refused something, as opposed to a bug of ours."""
    return isinstance(trouble, HydraException | OmegaConfBaseException)


def _reason(trouble: BaseException) -> str:
    """The message in one line, without the lines that OmegaConf adds about its internals."""
    lines = (str(trouble) or type(trouble).__name__).splitlines()
    internal = r"\s*(full_key:|object_type=|reference_type=|See https)"
    kept = (line.strip() for line in lines if not re.match(internal, line))
    return " ".join(kept)[:400]


def guard(node: DictConfig, shipped: DictConfig, searched: Sequence[str] = ()) -> None:
    """Refuse a configuration *file* that sets anything of Hydra's own node; raises ConfigError.

    Hydra calls `hydra.callbacks.*`, launchers, sweepers and logging handlers by the names in that node, and sets
    `hydra.job.env_set`, before any of our code runs; whoever types the command may choose them, a file may not.
    `node` is composed from all files without the ``hydra.*`` values typed, `shipped` from metarec's own files alone;
    `searched` are the directories that were typed.
    """
    found, expected = _leaves(node), _leaves(shipped)
    if searched:
        expected["searchpath"] = list(searched)
    for key in (*found, *expected):
        if found.get(key) != expected.get(key) and not key.startswith(RECORDS):
            fix = "remove it from the file; it can be typed on the command line"
            raise ConfigError(f"hydra.{key}", found.get(key), "may not be set by a configuration file", fix)


def _leaves(node: DictConfig) -> dict[str, object]:
    """Dotted key -> value of everything below a node, interpolations as they are written."""

    def walk(value: object, prefix: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, Mapping) and value:
            for key, below in value.items():
                yield from walk(below, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    return dict(walk(OmegaConf.to_container(node, resolve=False), ""))


def plain(config: DictConfig) -> dict[str, Any]:
    """Plain nested values, interpolations resolved; raises ConfigError."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as trouble:
        raise from_hydra(trouble, getattr(trouble, "full_key", None) or "interpolation") from trouble
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def config_to_yaml(config: Config) -> str:
    """The whole config, every key with its value, as YAML; `config_from_yaml` reads it back equal."""
    return values_to_yaml(dataclasses.asdict(config))


def values_to_yaml(values: dict[str, Any]) -> str:
    """Plain nested values as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(values), resolve=False)


def config_from_yaml(text: str, verb: str) -> Config:
    """The config of a stored run; raises ConfigError naming each key that is missing, unknown or has a wrong value.

    Nothing in the text is looked up or called: interpolations stay the text they are, and YAML tags are refused.
    """
    wrong = check_text("config.yaml", text)
    if wrong:
        raise wrong[0]
    try:
        loaded = OmegaConf.create(text)
        values = OmegaConf.to_container(loaded, resolve=False)
    except Exception as trouble:  # the YAML reader has no common base class for what bad text makes it raise
        what = f"not readable as YAML: {_reason(trouble)}"
        raise ConfigError("config.yaml", "text", what, "take it from the run that wrote it") from trouble
    if not isinstance(values, dict):
        raise ConfigError("config.yaml", type(values).__name__, "not a mapping", "take it from the run that wrote it")
    return checked(verb, {str(key): value for key, value in values.items()}, complete=True)


def config_from_dict(values: dict[str, Any], verb: str) -> Config:
    """The config that a checkpoint carries (`dataclasses.asdict` of one), checked like a stored file."""
    return checked(verb, values, complete=True)
