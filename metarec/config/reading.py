"""The words of the verbs that read finished runs: RUN..., which hold no "=", and a few key=value options.

Nothing is composed, so Hydra has no part in it: `metarec compare RUN...` and `metarec report RUN...` answer at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metarec.config.check import Wrong, check_path, check_range, convert, raise_all
from metarec.config.fields import keys, type_hints
from metarec.config.show import show
from metarec.errors import ConfigError, nearest
from metarec.metrics import METRICS
from metarec.options import ranged


@dataclass
class CompareRuns:
    """`metarec compare RUN...`"""

    metric: str | None = ranged(None, choices=METRICS)  # None = what the runs were monitored by
    methods: list[str] | None = None  # rows of the table; None = all
    against: str | None = ranged(None, path=True)  # a method or a run
    output_dir: str = ranged("outputs", path=True)


@dataclass
class Report:
    """`metarec report RUN...`"""

    metric: str | None = ranged(None, choices=METRICS)
    methods: list[str] | None = None
    against: str | None = ranged(None, path=True)
    output: str | None = ranged(None, path=True)  # FILE.html; None = OUTPUT_DIR/report/STAMP/report.html
    formats: list[str] = ranged(["html", "md"], choices=("html", "md", "tex"))
    output_dir: str = ranged("outputs", path=True)


Reading = CompareRuns | Report
READING: dict[str, type] = {"compare": CompareRuns, "report": Report}
MEANING = {
    "metric": "of the table; null = what the runs were monitored by",
    "methods": "of several runs: rows of the table, such as [fewshot,control]; null = all",
    "against": "of several runs: a method or a run to take differences from; null = control, and the first run's few-shot",
    "output": "FILE.html; null = OUTPUT_DIR/report/<timestamp>_<random>/report.html",
    "formats": "of [html,md,tex], the tables beside the page",
    "output_dir": "the result goes to OUTPUT_DIR/{verb}/<timestamp>_<random>/",
}
EXAMPLES = {
    "compare": (
        "metarec compare outputs/train/RUN1 outputs/train/RUN2",
        "metarec compare outputs/train/SWEEP metric=hr@10 methods=[fewshot,control]",
        "metarec compare 'outputs/train/2026-01-*' against=pretrained",
    ),
    "report": (
        "metarec report outputs/train/RUN",
        "metarec report outputs/train/SWEEP output=report.html formats=[html,md,tex]",
    ),
}


def is_run(word: str) -> bool:
    """Whether a word names runs: no option, and no key=value (a key holds no "/"; Hydra's own groups aside)."""
    key, equals, _ = word.partition("=")
    if word.startswith(("-", "~", "+")):
        return False
    return not equals or ("/" in key and not key.startswith("hydra/"))


def reads_runs(verb: str, words: Sequence[str]) -> bool:
    """Whether this command line reads finished runs, rather than composing a configuration."""
    return verb == "report" or (verb == "compare" and any(is_run(word) for word in words))


def parse_reading(verb: str, words: Sequence[str]) -> tuple[list[str], Reading]:
    """The RUN words and the options of `verb`; raises ConfigError with all that is wrong."""
    schema = READING[verb]
    hints, specs = type_hints(schema), {spec.name: spec for spec in dataclasses.fields(schema)}
    runs, given, errors = list[str](), dict[str, Any](), list[ConfigError]()
    for word in words:
        key, equals, text = word.partition("=")
        if is_run(word):
            try:
                check_path(word)
            except Wrong as wrong:
                errors.append(ConfigError("RUN", show(word), *wrong.args))
            runs.append(word)
        elif not equals or word.startswith("-"):
            errors.append(ConfigError("command line", word, "not understood", f"see `metarec {verb} --help`"))
        elif key not in specs:
            errors.append(_unknown(verb, key, text, list(specs)))
        elif key in given:
            errors.append(ConfigError(key, text, "given twice", "give it once"))
        else:
            try:
                given[key] = convert(hints[key], _value(text))
                check_range(specs[key].metadata, given[key])
                if specs[key].metadata.get("path") and given[key] is not None:
                    given[key] = os.path.expanduser(given[key])
            except Wrong as wrong:
                errors.append(ConfigError(key, show(text), *wrong.args))
    if not runs:
        errors.insert(
            0, ConfigError("command line", "nothing", f"no run to {verb}", f"metarec {verb} OUTPUT_DIR/train/RUN")
        )
    if not errors and given.get("output") is not None:
        errors += _output(given["output"], given.get("formats", ["html"]))
    raise_all(errors)
    return runs, schema(**given)


def _value(text: str) -> object:
    """null, a list in brackets, or text; one pair of quotes around it is taken off."""
    bare = text.strip()
    if bare in ("null", "None"):
        return None
    if bare.startswith("[") and bare.endswith("]"):
        return [_unquoted(part) for part in bare[1:-1].split(",") if part.strip()]
    return _unquoted(bare)


def _unquoted(text: str) -> str:
    bare = text.strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"" else bare


def _unknown(verb: str, key: str, text: str, known: list[str]) -> ConfigError:
    """A key that does not go with runs: of a training comparison, or of nothing."""
    near = nearest(key, known)
    trains = verb == "compare" and (key in keys("compare", {}) or key.split(".")[0] in keys("compare", {}))
    if trains and key not in known:
        what = "trains algorithms, and does not go with runs that are there"
        return ConfigError(key, text, what, "leave the runs out, or the key")
    listed = f"the keys are {', '.join(known)}"
    return ConfigError(key, text, "unknown key", f"did you mean {near}?" if near else listed)


def _output(output: str, formats: Sequence[str]) -> list[ConfigError]:
    if not output.endswith((".html", ".htm")):
        return [ConfigError("output", output, "names the page, a file that ends in .html", "output=report.html")]
    if "html" not in formats:
        return [
            ConfigError("output", output, f"names the page, which formats={show(list(formats))} leaves out", "add html")
        ]
    return []
