"""Tab completion: Hydra's own, with the verb taken out of the line before Hydra sees it.

eval "$(metarec -sc install=bash)"       zsh: the same line after `autoload -U bashcompinit && bashcompinit`
metarec -sc install=fish | source
"""

from __future__ import annotations

import dataclasses

from metarec import parts
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


def list_words(line: str) -> list[str] | None:
    """What can follow where a list of residuals is being typed, ``residual=memory+`` or ``residual=[memory,``; else None.

    >>> list_words("metarec train residual=[bias,hea")
    ['residual=[bias,head']
    """
    word = line.rpartition(" ")[2]
    typed = word.removeprefix(f"{parts.LISTED}=")
    opened = typed.startswith("[")
    mark = "," if opened else parts.JOINED
    if typed == word or not (opened or mark in typed):
        return None
    before, _, last = typed.removeprefix("[").rpartition(mark)
    own = before.split(mark) if before else []
    begin = f"{parts.LISTED}={'[' if opened else ''}{before}{mark if own else ''}"
    return [begin + name for name in parts.names(parts.LISTED) if name.startswith(last) and name not in own]


def reading_words(line: str) -> list[str]:
    """The keys that can stand where the last word of a `metarec report` line is being typed."""
    typed = line.rpartition(" ")[2]
    return [f"{spec.name}=" for spec in dataclasses.fields(READING["report"]) if spec.name.startswith(typed)]
