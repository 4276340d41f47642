"""Tab completion: Hydra's own, with the verb taken out of the line before Hydra sees it.

eval "$(metarec -sc install=bash)"       zsh: the same line after `autoload -U bashcompinit && bashcompinit`
metarec -sc install=fish | source
"""

from __future__ import annotations

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
    return [word for word in (*VERBS, *OPTIONS) if word.startswith(typed)]
