"""Tab completion: Hydra's own, with the verb taken out of the line before Hydra sees it.

eval "$(metarec -sc install=bash)"       zsh: the same line after `autoload -U bashcompinit && bashcompinit`
metarec -sc install=fish | source
"""

from __future__ import annotations

import dataclasses

from metarec.config.reading import READING
from metarec.config.schema import VERBS

OPTIONS = ("--help", "--version")


def split_line(line: str) -> tuple[str | None, str]:
    """(verb, line without it) of a command line being typed; (None, "") while the verb itself is being typed.

    >>> split_line("metarec train algor")
    ('train', 'metarec algor')
    """
    program, _, rest = line.lstrip().partition(" ")
    verb, space, rest = rest.lstrip().partition(" ")
    return (verb, f"{program} {rest.lstrip()}") if space else (None, "")


def first_words(line: str) -> list[str]:
    """What can stand where the verb stands."""
    typed = line.lstrip().partition(" ")[2].strip()
    return [word for word in (*VERBS, "report", *OPTIONS) if word.startswith(typed)]


def reading_words(line: str) -> list[str]:
    """The keys that can stand where the last word of a `metarec report` line is being typed."""
    typed = line.rpartition(" ")[2]
    return [f"{spec.name}=" for spec in dataclasses.fields(READING["report"]) if spec.name.startswith(typed)]
