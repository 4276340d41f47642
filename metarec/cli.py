"""The `metarec` command: take the verb, check everything, hand over to Hydra, run, turn failures into exit codes.

    metarec train residual=off seed=3        one run in OUTPUT_DIR/train/<timestamp>_<random>/
    metarec train -m residual=off,on         a sweep: each job in a directory of its own below such a one; given again it
                                             goes on with the jobs that are missing
    metarec train -m hydra/sweeper=optuna    a search of validation figures, docs/search.md
    metarec train resume=RUN_DIR             carry on with a run or a search; nothing is composed for a run
    metarec compare RUN...                   finished runs side by side; metarec report RUN... makes a page of them

Exit codes: 0 ok; 2 usage or config; 3 data; 4 checkpoint; 5 environment; 6 diverged; 130, 143 signals; 1 is a bug.
Nothing heavy is imported before a run starts (help, completion and refusals need neither torch nor pandas).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from metarec.config.schema import VERBS
from metarec.errors import INTERRUPTED, TERMINATED, ConfigError, EnvironmentFault, MetarecError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from metarec.config.arguments import Arguments
    from metarec.config.overrides import Checked
    from metarec.config.schema import Config

# what a disk, an owner, a path of theirs or a limit does, wherever it happens; other OSErrors are bugs
ENVIRONMENT = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.ESTALE, errno.EMFILE, errno.ENFILE,
)  # fmt: skip
KNOWN = (*VERBS, "report")
RESUMABLE = ("train", "compare")


def run_verb(verb: str, config: Config, run_dir: Path, resume: bool, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Build and run what the words `overrides` ask for; torch is first imported here.

    Returns {"run_dir", "headline": {name: value}}.
    """
    from metarec.verbs import run_verb as build_and_run

    return build_and_run(verb, config, run_dir, resume, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return its exit code."""
    from metarec.runs.parent import watch

    watch()
    words = list(sys.argv[1:] if argv is None else argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return guarded(lambda: dispatch(words))
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`; what it raises is told on stderr, with a traceback only where it is a bug."""
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) left; nothing can be told to it any more
        sys.stderr.close()
        return 0
    except MetarecError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            return _bug()
        from metarec.runs.atomic import fault

        print(f"error: {fault(Path(error.filename or '.'), error)}", file=sys.stderr)
        return EnvironmentFault.exit_code
    except Exception:
        return _bug()


def _bug() -> int:
    traceback.print_exc()
    print("error: this is a bug in metarec; please report it with the lines above", file=sys.stderr)
    return 1


def dispatch(words: list[str]) -> int:
    """One command line to its exit code; raises MetarecError."""
    from metarec.config import help
    from metarec.config.reading import reads_runs

    for word in words:
        refuse_bytes(word)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help.overview())
        return 0
    if "--version" in words:
        print(f"metarec {installed_version()}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return complete(words)
    verb, rest = words[0], words[1:]
    if verb not in KNOWN:
        near = nearest(verb, KNOWN)
        hint = f"did you mean `metarec {near}`?" if near else f"the verbs are {', '.join(KNOWN)}"
        raise ConfigError("command line", verb, "not a verb", f"{hint} `metarec --help` shows examples")
    if "-h" in rest or "--help" in rest:
        print(help.verb_help(verb))
        return 0
    return read(verb, rest) if reads_runs(verb, rest) else launch(verb, rest)


def refuse_bytes(word: str) -> None:
    """ConfigError for a word that is no text, which a run card in JSON cannot hold."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigError("command line", word, "its bytes are no UTF-8", "give names in UTF-8") from None


def read(verb: str, words: list[str]) -> int:
    """``metarec compare RUN...`` and ``metarec report RUN...``: nothing is composed or trained; raises MetarecError."""
    from metarec.config.reading import parse_reading

    runs, options = parse_reading(verb, words)
    from metarec.verbs import read_runs

    read_runs(runs, options, words)
    return 0


def launch(verb: str, words: list[str]) -> int:
    """Check the words after the verb and run what they ask for; raises MetarecError."""
    from metarec.config.arguments import new_directory, parse

    args = parse(verb, words)
    if verb in RESUMABLE and not args.show and any(word.startswith("resume=") for word in args.overrides):
        return resume(verb, args.overrides, multirun=args.multirun)
    from metarec.config.overrides import check_words
    from metarec.config.search import is_search
    from metarec.config.threads import asks_for_joblib

    if is_search(args.overrides):
        return search(verb, args)
    parallel = args.multirun and asks_for_joblib(args.overrides)
    checked = check_words(verb, args.overrides, multirun=args.multirun, config_dir=args.config_dir, rules=not args.show)
    if args.show:
        hydra_main(verb, [*args.flags, *checked.words])
        return 0
    for key, fix in (("run.dir", "use output_dir=DIR"), ("sweep.dir", "use output_dir=DIR"), ("mode", "use -m")):
        if f"hydra.{key}" in checked.hydra_keys:
            raise ConfigError(f"hydra.{key}", "set", "is set by metarec itself", fix)
    if not checked.jobs:
        raise ConfigError("command line", "-m", "no job to run", "give at least one value for each key")
    if args.multirun:
        return sweep(verb, args, checked, parallel=parallel)
    directory = new_directory(checked.jobs[0].config.output_dir, verb)
    _ended.clear()
    try:
        compose_and_run(verb, [*args.flags, *checked.words], "hydra.run.dir", directory)
    finally:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()  # refused before anything was written
    return _ended[-1]


def compose_and_run(verb: str, words: Sequence[str], key: str, directory: Path) -> None:
    """`hydra_main` with its directory; what it refuses to compose is a ConfigError."""
    from metarec.config.compose import from_hydra, is_composition_trouble, quoted

    try:
        hydra_main(verb, [*words, f"{key}={quoted(str(directory))}"])
    except Exception as trouble:
        if is_composition_trouble(trouble):
            raise from_hydra(trouble, verb) from trouble
        raise


def sweep(verb: str, args: Arguments, checked: Checked, *, parallel: bool) -> int:
    """The jobs that an earlier start of the same command has left, or all; raises MetarecError."""
    from metarec.config import command
    from metarec.config.arguments import new_directory
    from metarec.config.sweep import collect
    from metarec.config.threads import divided
    from metarec.runs import parent
    from metarec.runs.lock import hold

    output_dir, asked = checked.jobs[0].config.output_dir, command.asked(verb, args, checked)
    before = None if args.again else command.earlier(Path(output_dir), asked)
    if before is None:
        threads, note = divided(checked.words, checked.jobs) if parallel else (None, None)
        if note is not None:
            print(note, file=sys.stderr, flush=True)
        card = command.Command(asked, () if threads is None else (threads,))
        directory = new_directory(output_dir, verb)
    else:
        directory, card = before
    planned = [[*job.overrides, *card.added] for job in checked.jobs]
    with hold(directory, way_out="begin a new sweep by adding --again"):
        if before is not None:
            found = [record for record in collect(directory, planned)[: len(planned)] if record.directory]
            where = {directory / Path(str(record.directory)).name: record.overrides for record in found}
            ended = sum(command.done(verb, path, own) is not None for path, own in where.items())
            what = f"going on with {directory}, where {ended} of {len(planned)} jobs are done"
            print(f"the same command was given before: {what}; --again begins a new sweep", flush=True)
            if ended == len(planned):
                return _summarise(directory, planned)
        card.begin(directory)
        _ended.clear()
        os.environ[parent.PID] = str(os.getpid())
        try:
            while True:
                try:
                    compose_and_run(verb, [*args.flags, *checked.words, *card.added], "hydra.sweep.dir", directory)
                    break
                except Exception as trouble:
                    if not command.worker_killed(directory, trouble):
                        raise
        finally:
            os.environ.pop(parent.PID, None)
            command.left(directory, "interrupted", TERMINATED, "error: stopped with the sweep")
            code = _summarise(directory, planned)
        return code


def search(verb: str, args: Arguments) -> int:
    """``metarec train -m hydra/sweeper=optuna``: metarec's own search, to which Hydra lends the words."""
    from metarec.config.search import need_optuna, read_search

    if verb != "train":
        raise ConfigError("hydra/sweeper", "optuna", f"metarec {verb} has nothing to search by", "use metarec train")
    if not args.multirun:
        raise ConfigError("hydra/sweeper", "optuna", "a search runs several jobs", "add -m")
    if args.again:
        raise ConfigError("command line", "--again", "a search without a storage begins anew by itself", "leave it out")
    need_optuna()
    asked = read_search(args.overrides, args.config_dir)
    from metarec.verbs.search import run_search

    return run_search(asked)


def resume(verb: str, overrides: list[str], *, multirun: bool) -> int:
    """``metarec VERB resume=RUN_DIR`` (a search's directory, too), alone; raises MetarecError."""
    from metarec.config.arguments import SEARCH
    from metarec.contained import refuse_links

    word = next(word for word in overrides if word.startswith("resume="))
    run_dir = Path(word.partition("=")[2].strip("'\"")).expanduser()
    others = [word for word in overrides if not word.startswith("resume=")] + (["-m"] if multirun else [])
    if others:
        what = f"a run carries on with its own options, not with {' '.join(others)}"
        raise ConfigError("resume", run_dir, what, "give it alone")
    stored = run_dir / "config.yaml"
    if not run_dir.is_dir():
        raise ConfigError("resume", run_dir, "no such run directory", f"give OUTPUT_DIR/{verb}/RUN")
    refuse_links(run_dir)  # a resume writes to what is there: histories, locks
    if verb == "train" and (run_dir / SEARCH).is_file():
        from metarec.config.search import need_optuna

        need_optuna()
        from metarec.verbs.search import resume_search

        return resume_search(run_dir)
    if not stored.is_file():
        what = "not readable, so this is no run directory"
        raise ConfigError(stored, "no such file", what, f"give OUTPUT_DIR/{verb}/RUN")
    go_on(verb, run_dir)
    return 0


def go_on(verb: str, run_dir: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Carry on with the run in `run_dir` by the configuration that its card vouches for; raises MetarecError."""
    from metarec.runs.lock import hold

    with hold(run_dir):  # before anything heavy is imported: whoever comes second is told at once
        from metarec.config.compose import config_from_yaml
        from metarec.runs.rundir import check_card

        for line in check_card(run_dir):
            print(line, file=sys.stderr, flush=True)
        stored = run_dir / "config.yaml"
        try:
            text = stored.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise ConfigError(stored, reason, "not readable", "start a new run") from reason
        return run_verb(verb, config_from_yaml(text, verb), run_dir, True, words)


_ended: list[int] = []  # exit codes of the jobs that ran in this process; Hydra passes no result through


def job(composed: DictConfig) -> None:
    """One run, called by Hydra, here or in a launcher's worker; raises no Exception, for that would end a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from metarec.config import command
    from metarec.config.check import checked
    from metarec.config.compose import plain
    from metarec.config.overrides import given_keys
    from metarec.runs.parent import watch_launcher

    node = HydraConfig.get()
    verb, words, run_dir = str(node.job.config_name), list(node.overrides.task), Path(node.runtime.output_dir)

    def action() -> dict[str, Any]:
        return run_verb(verb, checked(verb, plain(composed), given_keys(words)), run_dir, False, words)

    def alone() -> int:
        action()
        return 0

    def rest() -> dict[str, Any]:
        return go_on(verb, run_dir, words)

    if node.mode == RunMode.MULTIRUN:
        place = command.Place(Path(node.sweep.dir), run_dir, int(node.job.num))
        watch_launcher(str(node.runtime.choices.get("hydra/launcher")) == "joblib")
        _ended.append(command.job(verb, words, place, action, rest))
    else:
        _ended.append(guarded(alone))


def _summarise(directory: Path, planned: Sequence[Sequence[str]]) -> int:
    """Write and print the summary of a sweep; the exit code of its first failure, or 0."""
    from metarec.config import sweep

    records = sweep.collect(directory, planned)
    sweep.write_summary(directory, records)
    sweep.print_summary(directory, records)
    return sweep.exit_code(records)


def hydra_main(verb: str, words: Sequence[str]) -> None:
    """`hydra.main` on ``conf/VERB.yaml`` with these words; Hydra's exceptions come through as they are."""
    import hydra

    from metarec.config.compose import VERSION_BASE
    from metarec.config.paths import conf_dir

    saved, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["metarec", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, rather than print several lines and sys.exit(1)
    try:
        hydra.main(config_path=str(conf_dir()), config_name=verb, **VERSION_BASE)(job)()
    finally:
        sys.argv = saved
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


def installed_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("metarec")
    except PackageNotFoundError:
        return "(not installed)"


def complete(words: list[str]) -> int:
    """``-sc install=bash`` and ``-sc query=bash``, the line being typed in COMP_LINE."""
    from metarec.config.completion import first_words, list_words, reading_words, split_line

    verb: str | None = "train"
    if any(word.startswith("query=") for word in words):
        line = os.environ.get("COMP_LINE", "")
        verb, without = split_line(line)
        if verb is None:
            print(" ".join(first_words(line)))
            return 0
        if verb == "report":
            print(" ".join(reading_words(line)))
            return 0
        if verb not in VERBS:
            return 0
        if (listed := list_words(line)) is not None:
            print(" ".join(listed))
            return 0
        os.environ["COMP_LINE"] = without
    hydra_main(str(verb), words)
    return 0
