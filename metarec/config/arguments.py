"""The words after the verb, divided into Hydra's options and ``key=value`` words; and the directory a run gets."""

from __future__ import annotations

import argparse
import datetime
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from metarec.durable import make_directory, sync
from metarec.errors import ConfigError, EnvironmentFault

SEARCH = "search.json"  # of a search's directory: what `resume` tells it by


@dataclass(frozen=True)
class Arguments:
    overrides: list[str]
    multirun: bool
    config_dir: Path | None
    show: bool  # only print (--cfg, --info, --hydra-help): nothing runs
    flags: list[str]  # all options, as Hydra reads them
    again: bool = False  # a sweep begins anew, whatever the same command has left


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError("command line", message, "not understood", "write key=value; see `metarec --help`")


def parser_of(prog: str) -> argparse.ArgumentParser:
    """What may stand on the line beside key=value."""
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser


def parse(verb: str, words: Sequence[str]) -> Arguments:
    """Divide the words; raises ConfigError.

    Of Hydra's options three are left out: --config-path and --config-name, because a file of the user's must not be the
    one that sets up Hydra itself, and --experimental-rerun, because it unpickles a file.
    """
    found = parser_of(f"metarec {verb}").parse_intermixed_args(list(words))
    flags = [f"--{name}" for name in ("multirun", "run", "resolve") if getattr(found, name)]
    flags += ["--hydra-help"] if found.hydra_help else []
    for name in ("cfg", "info", "package"):
        if (value := getattr(found, name)) is not None:
            flags += [f"--{name}", value]
    config_dir = None if found.config_dir is None else Path(found.config_dir).expanduser()
    if config_dir is not None:
        flags += ["--config-dir", str(config_dir)]
    show = found.cfg is not None or found.info is not None or found.hydra_help
    if found.multirun and (show or found.run):
        raise ConfigError("command line", "-m", "does not go with --run, --cfg or --info", "leave one of them out")
    if found.again and not found.multirun:
        raise ConfigError("command line", "--again", "every run but a sweep begins anew by itself", "leave it out")
    return Arguments(found.overrides, found.multirun, config_dir, show, flags, found.again)


def new_directory(output_dir: str, verb: str) -> Path:
    """Make OUTPUT_DIR/VERB/<timestamp>_<random>, which no other process can have made; raises EnvironmentFault."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path = Path(output_dir) / verb / f"{stamp}_{secrets.token_hex(4)}"
    try:
        make_directory(path.parent)
        path.mkdir()  # fails if it exists: made by this process or not at all
        sync(path.parent)
    except OSError as reason:
        found = reason.strerror or type(reason).__name__
        raise EnvironmentFault(path, found, "cannot make the run directory", "give output_dir=DIR") from reason
    return path
