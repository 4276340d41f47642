"""Text tasks: examples {prompt, response} as token sequences, one domain a task family, domains split, episodes drawn.

    example = [BOS] prompt, separator | response, [EOS]           one sequence of token ids + 1 (0 is padding)
    pairs   = (everything before a token -> that token), for the tokens behind the bar alone
    episode = n_query + n_support different examples of one domain; the query is drawn first, so that it is the same for
              any number of support examples

A pair is (first token of its example, its own token), so the batches of logs (`data.batches`) are the batches of text.
Domains are disjoint between the splits: the support must show the rule. Training episodes are a pure function of (seed,
step, steps); validation and test have `n_episodes` fixed ones a domain.

Order. Let d[1] < ... < d[L] be the difficulties of the training domains (a domain's is the mean of its examples'). Step s of
S (from 0) is at level l = floor(L s / S) + 1. `random`: any training domain, evenly. `easy_then_hard`: those of difficulty
d[l] alone; with easy and hard ones the first half of the steps is easy, the second hard. `rising`: those up to d[l].

Shapes: T episodes, D domains, n examples, P pairs, E tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarec.data.prompt_file import Example, distinct, read_examples
from metarec.data.prompt_tasks import divided, embedded
from metarec.data.spec import PromptSpec
from metarec.data.tokens import Tokenizer, tokenizer
from metarec.errors import ConfigError, DataError
from metarec.ragged import running

Ints = NDArray[np.int64]
SPLITS = ("train", "val", "test")
FIXED = {"val": 11, "test": 12}  # streams of the fixed episodes, beside those of the embedded tasks and the split
EMBEDDED = Path("embedded")  # stands where a file's path would


@dataclass(frozen=True)
class Drawn:
    """Episodes by number of domain [T] and of example [T, Q + K], the query first."""

    domain: Ints
    example: Ints
    n_query: int

    @cached_property
    def sha256(self) -> str:
        """Identity of the episodes, whatever the machine."""
        digest = hashlib.sha256(str(self.n_query).encode())
        for array in (self.domain, self.example):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.domain)


@dataclass(frozen=True)
class Prompts:
    """All that is kept of the examples: domain behind domain, example behind example, token behind token."""

    spec: PromptSpec
    tokenizer: Tokenizer
    domains: tuple[str, ...]  # [D], sorted
    split: tuple[str, ...]  # [D]
    difficulty: tuple[float | None, ...]  # [D]
    domain_examples: Ints  # [D+1] domain d = examples [d, d+1)
    example_tokens: Ints  # [n+1]
    answer: Ints  # [n] the first token of the response
    tokens: NDArray[np.int32]  # [E] id + 1
    funnel: list[dict[str, Any]]
    root: Path
    name: str = "prompts"
    running: bool = False  # examples are the blocks of running text (`data.characters`): each character a target once

    kind: ClassVar[str] = "tokens"  # what is scored (`models.Catalogue`)

    @staticmethod
    def load(
        spec: PromptSpec, path: Path | None, cache_dir: Path, name: str = "prompts",
        tell: Callable[[str], None] = lambda line: None,
    ) -> Prompts:  # fmt: skip
        """From the file at `path`, or embedded. Raises DataError for lines, tokenizers and splits that are not sound."""
        given = embedded(spec) if path is None else read_examples(path)
        root = EMBEDDED if path is None else path
        steps = [_step("examples", given, "one a line" if path else "made from their seed")]
        examples = list(distinct(given))
        steps.append(_step("repeated examples", examples, "the same domain, prompt and response", given))
        least = spec.n_support + spec.n_query
        kept = _large_enough(examples, least)
        steps.append(_step("small domains", kept, f"fewer than {least} examples", examples))
        split = _split(spec, kept, root, steps)
        made = tokenizer(
            spec.tokenizer, (text for e in kept if split[e.domain] == "train" for text in (e.prompt, e.response)),
            cache_dir, tell,
        )  # fmt: skip
        framed, n_cut = _framed(spec, made, kept)
        fitting = [example for example, tokens in zip(kept, framed, strict=True) if tokens is not None]
        why = f"response alone fills {spec.max_tokens} tokens; {n_cut:,} prompts lost their beginning"
        steps.append(_step("long examples", fitting, why, kept))
        left = _large_enough(fitting, least)
        steps.append(_step("small domains again", left, f"fewer than {least} examples", fitting))
        _require(split, left, root, steps, spec)
        found = _arrays(spec, made, left, {id(e): t for e, t in zip(kept, framed, strict=True)}, split, root, name)
        steps[-1] |= {"tokens": len(found.tokens)}
        found.funnel.extend(steps)
        found.check()
        return found

    def check(self) -> None:
        """ConfigError for an order by difficulty where there is none to go by."""
        if self.spec.order == "random" and self.spec.pretrain == "all":
            return
        key = "order" if self.spec.order != "random" else "pretrain"
        value, of = getattr(self.spec, key), [self.difficulty[d] for d in self.of("train")]
        if None in of:
            name = self.domains[self.of("train")[of.index(None)]]
            what, fix = f"domain {name} has examples without a difficulty", "write metadata.difficulty in every line"
            raise ConfigError(f"dataset.prompts.{key}", value, what, fix)
        if len(set(of)) < 2:
            what = f"all training domains are of one difficulty ({of[0]:g})"
            raise ConfigError(f"dataset.prompts.{key}", value, what, "drop it")

    # what a run asks of any prepared data

    @property
    def n_items(self) -> int:
        """Tokens of the tokenizer: what is scored."""
        return self.tokenizer.n_tokens

    @property
    def vocabulary_sha256(self) -> str:
        """What a model fits: the tokenizer."""
        return self.tokenizer.sha256

    @property
    def split_by(self) -> str:
        """What is disjoint between train, validation and test."""
        return "domains"

    @property
    def split_note(self) -> str:
        """A line for the table of a run."""
        return f"{self.tokenizer.name}, domains disjoint"

    @property
    def n_support(self) -> int:
        """Examples of the support."""
        return self.spec.n_support

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Domains, examples, tokens that are learned or judged, and fixed episodes of each split."""
        sizes, pairs = np.diff(self.domain_examples), np.diff(self.example_pairs[self.domain_examples])
        return {
            "domains": {split: len(self.of(split)) for split in SPLITS},
            "examples": {split: int(sizes[self.of(split)].sum()) for split in SPLITS},
            "response_tokens": {split: int(pairs[self.of(split)].sum()) for split in SPLITS},
            "fixed_episodes": {split: len(self.episodes(split)) for split in ("val", "test")},
        }

    @cached_property
    def contents(self) -> str:
        """SHA-256 of tokens, examples, domains and their splits, whatever is drawn from them."""
        digest = hashlib.sha256(json.dumps([self.domains, self.split, self.difficulty]).encode())
        for array in (self.domain_examples, self.example_tokens, self.answer, self.tokens):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Of the contents, and of all that decides pretraining and fixed episodes."""
        asked = {key: value for key, value in asdict(self.spec).items() if key != "order"}
        return hashlib.sha256(f"{self.contents} {json.dumps(asked, sort_keys=True)}".encode()).hexdigest()

    def of(self, split: str) -> Ints:
        """Numbers of the domains of a split, rising [n]."""
        return np.flatnonzero(np.array(self.split) == split)

    # pairs

    @cached_property
    def example_pairs(self) -> Ints:
        """int64 [n+1]: example e has the pairs [e, e+1)."""
        return running(self.example_tokens[1:] - self.answer)

    @cached_property
    def pair_event(self) -> Ints:
        """int64 [P]: the token that is the target."""
        return np.concatenate([np.arange(a, b) for a, b in zip(self.answer, self.example_tokens[1:], strict=True)])

    @cached_property
    def pair_begin(self) -> Ints:
        """int64 [P]: the first token of its example."""
        return np.repeat(self.example_tokens[:-1], np.diff(self.example_pairs))

    # episodes

    def episodes(self, split: str, n_support: int | None = None) -> Drawn:
        """The fixed episodes of a split; of training, those of the first step (their identity is the sampler's).

        With another `n_support`: of the domains that have so many examples, with the same queries.
        """
        if split == "train":
            return self.training(self.spec.seed, 0, len(self.of("train")), 1)
        domain = np.repeat(self.of(split), self.spec.n_episodes)
        stream = np.random.Philox(key=np.array([self.spec.seed, FIXED[split]], np.uint64))
        return self._draw(stream, domain, self.spec.n_support if n_support is None else n_support)

    def training(self, seed: int, step: int, n_tasks: int, steps: int) -> Drawn:
        """The episodes of an outer step; `steps`: how many there are, which only an order by difficulty reads."""
        stream = np.random.Philox(key=np.array([seed, step], np.uint64))
        own = self.candidates(step, steps)
        return self._draw(stream, own[(stream.random_raw(n_tasks) % len(own)).astype(np.int64)], self.spec.n_support)

    def candidates(self, step: int, steps: int) -> Ints:
        """The training domains that a step draws from, rising [n]; the law is in this module's first lines."""
        own = self.of("train")
        if self.running:  # a short document is learned from in pretraining, and has no episode
            own = own[np.diff(self.domain_examples)[own] >= self.spec.n_query + self.spec.n_support]
        if self.spec.order == "random":
            return own
        of = np.array([self.difficulty[d] for d in own], dtype=np.float64)
        levels = np.unique(of)
        level = levels[min(len(levels) * step // steps, len(levels) - 1)]
        chosen: Ints = own[of == level] if self.spec.order == "easy_then_hard" else own[of <= level]
        return chosen

    def _draw(self, stream: np.random.Philox, domain: Ints, n_support: int) -> Drawn:
        """Examples without replacement: a shuffle of Fisher and Yates that stops after Q + K."""
        n_each = self.spec.n_query + n_support
        raw = (
            stream.random_raw(n_each * len(domain)).reshape(n_each, len(domain)).T
        )  # more of them change no earlier one
        sizes = np.diff(self.domain_examples)[domain]
        enough = sizes >= n_each
        chosen = np.zeros((len(domain), n_each), dtype=np.int64)
        for row in np.flatnonzero(enough):
            moved, own = dict[int, int](), raw[row].tolist()
            for place in range(n_each):
                at = place + own[place] % (int(sizes[row]) - place)
                chosen[row, place] = moved.get(at, at)
                moved[at] = moved.get(place, place)
        return Drawn(domain[enough], (chosen + self.domain_examples[domain][:, None])[enough], self.spec.n_query)

    # pretraining

    @property
    def pretraining(self) -> Ints:
        """Examples that pretraining reads, rising [n]: of the training domains, all or the easiest ones."""
        own = self.of("train")
        if self.spec.pretrain == "easy":
            of = np.array([self.difficulty[d] for d in own], dtype=np.float64)
            own = own[of == of.min()]
        return self.examples_of(own)

    def examples_of(self, domains: Ints) -> Ints:
        """Numbers of the examples [n] of `domains` [D], domain behind domain."""
        return np.concatenate([np.arange(self.domain_examples[d], self.domain_examples[d + 1]) for d in domains])


# --- from texts to arrays ---------------------------------------------------------------------------------------------


def _step(name: str, kept: list[Example], why: str, before: list[Example] | None = None) -> dict[str, Any]:
    dropped = 0 if before is None else len(before) - len(kept)
    return {
        "step": name, "examples": len(kept), "domains": len({e.domain for e in kept}), "tokens": None,
        "dropped": dropped, "why": why,
    }  # fmt: skip


def _large_enough(examples: list[Example], least: int) -> list[Example]:
    count = Counter(example.domain for example in examples)
    return [example for example in examples if count[example.domain] >= least]


def _dropped(steps: list[dict[str, Any]]) -> str:
    dropped = [f"{s['step']} dropped {s['dropped']:,} examples ({s['why']})" for s in steps if s["dropped"]]
    return f"of {steps[0]['examples']:,} examples in {steps[0]['domains']:,} domains " + (
        ", ".join(dropped) or "none fell"
    )


def _split(spec: PromptSpec, examples: list[Example], root: Path, steps: list[dict[str, Any]]) -> dict[str, str]:
    """domain -> its split: as the examples say, else by `splits` over the sorted names, shuffled by the seed."""
    domains = sorted({example.domain for example in examples})
    given = {example.domain: example.split for example in examples if example.split is not None}
    if given:
        return given
    if len(domains) < 3:
        what = f"training, validation and test need a domain each; {_dropped(steps)}"
        fix = "give more domains, or lower dataset.prompts.n_support and n_query"
        raise DataError(root, f"{len(domains)} domains", what, fix)
    return dict(zip(domains, divided(len(domains), spec.splits, [spec.seed, 2, 0]), strict=True))


def _require(
    split: dict[str, str], left: list[Example], root: Path, steps: list[dict[str, Any]], spec: PromptSpec
) -> None:
    there = {split[example.domain] for example in left}
    for wanted in SPLITS:
        if wanted not in there:
            alone = "all domains are for training: " if there == {"train"} else ""
            what = f"{alone}no domain is left to {_FOR[wanted]}; {_dropped(steps)}"
            fix = (
                f"write metadata.split of other domains, or raise dataset.prompts.max_tokens={spec.max_tokens} "
                "and give domains more examples"
            )
            raise DataError(root, f"no {wanted} domain", what, fix)


_FOR = {"train": "train on", "val": "validate by", "test": "test on"}


def _framed(
    spec: PromptSpec, made: Tokenizer, examples: list[Example]
) -> tuple[list[tuple[list[int], list[int]] | None], int]:
    """For each example the ids ahead of the response and those from it on, None where it is too long; prompts cut."""
    prompts, responses = (made.encode([getattr(e, part) for e in examples]) for part in ("prompt", "response"))
    found, n_cut = list[tuple[list[int], list[int]] | None](), 0
    for prompt, response in zip(prompts, responses, strict=True):
        room = spec.max_tokens - len(made.begin) - len(made.separator) - len(response) - 1
        if room < min(len(prompt), 1):
            found.append(None)
            continue
        n_cut += len(prompt) > room
        own = prompt[max(len(prompt) - room, 0) :]
        found.append(([*made.begin, *own, *made.separator], [*response, made.end]))
    return found, n_cut


def _arrays(
    spec: PromptSpec, made: Tokenizer, left: list[Example], framed: dict[int, Any], split: dict[str, str], root: Path,
    name: str,
) -> Prompts:  # fmt: skip
    domains = tuple(sorted({example.domain for example in left}))
    by_domain: dict[str, list[Example]] = {domain: [] for domain in domains}
    for example in left:
        by_domain[example.domain].append(example)
    own = [framed[id(example)] for domain in domains for example in by_domain[domain]]
    lengths = np.array([[len(ahead), len(behind)] for ahead, behind in own], dtype=np.int64)
    example_tokens = running(lengths.sum(1))
    flat = np.fromiter(_flat(own), dtype=np.int32, count=int(example_tokens[-1])) + np.int32(1)
    return Prompts(
        spec, made, domains, tuple(split[domain] for domain in domains),
        tuple(_difficulty(by_domain[domain]) for domain in domains),
        running(np.array([len(by_domain[domain]) for domain in domains])),
        example_tokens, example_tokens[:-1] + lengths[:, 0], flat, [], root, name,
    )  # fmt: skip


def _flat(own: list[tuple[list[int], list[int]]]) -> Iterator[int]:
    for ahead, behind in own:
        yield from ahead
        yield from behind


def _difficulty(examples: list[Example]) -> float | None:
    found = [example.difficulty for example in examples]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else None
