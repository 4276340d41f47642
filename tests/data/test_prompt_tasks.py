"""The embedded text tasks: every rule by hand, distinct prompts, ks divided among the splits, a function of the seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from metarec.data.prompt_file import Example
from metarec.data.prompt_tasks import FAMILIES, divided, embedded
from metarec.data.spec import PromptSpec

SPEC = PromptSpec(n_examples=20)


def by_domain(spec: PromptSpec = SPEC) -> dict[str, list[Example]]:
    found = defaultdict(list)
    for example in embedded(spec):
        found[example.domain].append(example)
    return dict(found)


@pytest.mark.parametrize(
    ("family", "text", "k", "response"),
    [
        ("copy", "abj", 0, "abj"), ("upper", "abj", 0, "ABJ"), ("shift", "abj", 3, "dec"), ("reverse", "abj", 0, "jba"),
        ("sort", "cab", 0, "abc"), ("add", "095", 7, "102"), ("add", "997", 4, "001"), ("upper-reverse", "abj", 0, "JBA"),
        ("reverse-shift", "abj", 1, "acb"), ("sort-shift", "jab", 1, "bca"), ("upper-shift", "abj", 1, "BCA"),
    ],
)  # fmt: skip
def test_rules_by_hand(family: str, text: str, k: int, response: str) -> None:
    """In an alphabet of ten letters: j is followed by a."""
    (found,) = (one for one in FAMILIES if one.name == family)
    assert found.of(text, k, 10) == response


def test_domains_and_lengths() -> None:
    found = by_domain()
    assert len(found) == 5 + 9 * 5
    for domain, examples in found.items():
        prompts = [example.prompt for example in examples]
        assert len(prompts) == len(set(prompts)) == 20
        hard = examples[0].difficulty == 2.0
        assert all(len(p) in ((5, 6, 7) if hard else (3, 4)) for p in prompts)
        assert set("".join(prompts)) <= set("0123456789" if domain.startswith("add") else "abcdefghij")
        assert len({(example.split, example.difficulty) for example in examples}) == 1


def test_every_keyed_family_is_in_every_split_and_the_others_are_for_training() -> None:
    splits = defaultdict(list)
    for domain, examples in by_domain().items():
        splits[domain.rstrip("0123456789")].append(examples[0].split)
    for family in FAMILIES:
        own = splits[family.name + "-" if family.keyed else family.name]
        counts = {name: own.count(name) for name in ("train", "val", "test")}
        assert counts == ({"train": 5, "val": 2, "test": 2} if family.keyed else {"train": 1, "val": 0, "test": 0})


def test_a_function_of_the_seed() -> None:
    assert embedded(SPEC) == embedded(replace(SPEC))
    other = by_domain(replace(SPEC, seed=1))
    same = [d for d, e in by_domain().items() if [x.prompt for x in e] == [x.prompt for x in other[d]]]
    assert same == []
    # more examples of a domain are more of the same
    more = by_domain(replace(SPEC, n_examples=30))
    assert all(more[domain][:20] == examples for domain, examples in by_domain().items())


@pytest.mark.parametrize("n", range(1, 12))
def test_divided(n: int) -> None:
    """At least one of each from three on, shares rounded, the same for the same key."""
    found = divided(n, [0.6, 0.2, 0.2], [1, 2, 3])
    if n < 3:
        assert found == ["train"] * n
        return
    share = max(1, round(0.2 * n))
    assert (found.count("val"), found.count("test")) == (share, share)
    assert found == divided(n, [0.6, 0.2, 0.2], [1, 2, 3])
    # shares that leave training nothing leave it one all the same
    greedy = divided(n, [0.02, 0.49, 0.49], [1, 2, 3])
    assert min(greedy.count(name) for name in ("train", "val", "test")) >= 1
