"""The embedded text tasks: what to do with a short string is not said, the support shows it.

    easy   copy, upper, shift-k, add-k              short strings, one step
    hard   reverse, sort, upper-reverse, and reverse, sort or upper followed by shift-k      longer, most of two steps

shift-k moves every letter k places on in the alphabet of `n_letters`, round its end (Caesar); add-k adds k to the number
written in the prompt, modulo 10 to its length. Of each k there is a domain of its own, and the ks of a family are divided
among training, validation and test, so that a test domain is a k nobody has trained on; families without a k are for
training. Prompts of a domain are distinct. All is a function of the options: nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from metarec.data.prompt_file import LEVELS, Example
from metarec.data.spec import PromptSpec

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


def shifted(text: str, k: int, n_letters: int) -> str:
    """Every letter k places on, round the end of the first `n_letters`."""
    return "".join(LETTERS[(LETTERS.index(letter) + k) % n_letters] for letter in text)


def added(text: str, k: int) -> str:
    """The number that `text` writes plus k, in as many digits."""
    return f"{(int(text) + k) % 10 ** len(text):0{len(text)}d}"


@dataclass(frozen=True)
class Family:
    """`of`: (prompt, k, n_letters) -> response; `keyed`: there is a domain for every k."""

    name: str
    difficulty: str
    of: Callable[[str, int, int], str]
    keyed: bool = True
    digits: bool = False  # prompts are numbers, not letters


# a domain is numbered along this list, and its prompts follow from the number: put new families at the end
FAMILIES = (
    Family("copy", "easy", lambda text, k, n: text, keyed=False),
    Family("upper", "easy", lambda text, k, n: text.upper(), keyed=False),
    Family("shift", "easy", shifted),
    Family("add", "easy", lambda text, k, n: added(text, k), digits=True),
    Family("reverse", "hard", lambda text, k, n: text[::-1], keyed=False),
    Family("sort", "hard", lambda text, k, n: "".join(sorted(text)), keyed=False),
    Family("upper-reverse", "hard", lambda text, k, n: text.upper()[::-1], keyed=False),
    Family("reverse-shift", "hard", lambda text, k, n: shifted(text[::-1], k, n)),
    Family("sort-shift", "hard", lambda text, k, n: shifted("".join(sorted(text)), k, n)),
    Family("upper-shift", "hard", lambda text, k, n: shifted(text, k, n).upper()),
)


def embedded(spec: PromptSpec) -> list[Example]:
    """`n_examples` of every domain, domain behind domain, with difficulty and split."""
    return list(_examples(spec))


def lengths(spec: PromptSpec, difficulty: str) -> tuple[int, int]:
    """Fewest and most characters of a prompt."""
    low, high = spec.easy_length if difficulty == "easy" else spec.hard_length
    return low, high


def _examples(spec: PromptSpec) -> Iterator[Example]:
    number = 0
    for family in FAMILIES:
        ks = range(1, len(DIGITS) if family.digits else spec.n_letters) if family.keyed else range(1)
        split_of = dict(zip(ks, divided(len(ks), spec.splits, [spec.seed, 1, number]), strict=True))
        for k in ks:
            name = f"{family.name}-{k}" if family.keyed else family.name
            for prompt in _prompts(spec, family, number):
                response = family.of(prompt, k, spec.n_letters)
                yield Example(prompt, response, name, LEVELS[family.difficulty], split_of[k])
            number += 1


def divided(n: int, shares: Sequence[float], key: Sequence[int]) -> list[str]:
    """A split for each of n domains, shuffled by `key`; one at least for validation and test, all for training below 3."""
    if n < 3:
        return ["train"] * n
    n_val, n_test = (min(max(1, round(share * n)), n - 2) for share in shares[1:])
    n_val = min(n_val, n - 1 - n_test)
    if n_val < 1:
        n_val, n_test = 1, n - 2
    split = ["val"] * n_val + ["test"] * n_test + ["train"] * (n - n_val - n_test)
    order = np.argsort(_stream(key).random_raw(n), kind="stable")
    found = [""] * n
    for place, name in zip(order.tolist(), split, strict=True):
        found[place] = name
    return found


def _prompts(spec: PromptSpec, family: Family, number: int) -> list[str]:
    """`n_examples` distinct strings of the length of the difficulty, drawn evenly letter by letter."""
    alphabet = DIGITS if family.digits else LETTERS[: spec.n_letters]
    low, high = lengths(spec, family.difficulty)
    stream, found = _stream([spec.seed, 0, number]), dict[str, None]()
    while len(found) < spec.n_examples:
        length, *letters = stream.random_raw(high + 1).tolist()
        length = low + length % (high - low + 1)
        found["".join(alphabet[raw % len(alphabet)] for raw in letters[:length])] = None
    return list(found)


def _stream(key: Sequence[int]) -> np.random.Philox:
    """(seed, purpose, number) -> a stream of its own; the raw stream is what numpy keeps frozen."""
    seed, purpose, number = key
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, 0, 0, number], np.uint64))
