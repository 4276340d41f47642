"""Text tasks prepared: tokens, cuts, splits, episodes and their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference.small_prompts import ROWS, SPEC, SPLIT, bytes_of, line, load, write

from metarec.data.prompts import Drawn, Prompts
from metarec.data.spec import PromptSpec
from metarec.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return load(write(tmp_path_factory.mktemp("prompts") / "x.jsonl"))


@pytest.fixture(scope="module")
def world() -> Prompts:
    """The embedded tasks, of the default options."""
    return Prompts.load(PromptSpec(), None, Path())


def tokens_of(data: Prompts, example: int) -> tuple[list[int], list[int]]:
    first, middle, end = data.example_tokens[example], data.answer[example], data.example_tokens[example + 1]
    return data.tokens[first:middle].tolist(), data.tokens[middle:end].tolist()


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_tokens_of_every_example(small: Prompts) -> None:
    """Domain behind domain by name, the examples of each in the order of the file; layout byte by byte."""
    assert small.domains == ("back", "copy", "tail", "twice")
    assert small.split == ("test", "train", "val", "train")
    assert small.difficulty == (2.0, 0.0, 0.0, 2.0)
    expected = [
        bytes_of(row["prompt"], row["response"])
        for domain in small.domains
        for row in ROWS
        if row["metadata"]["domain"] == domain
    ]
    assert [tokens_of(small, example) for example in range(12)] == expected
    assert small.domain_examples.tolist() == [0, 3, 6, 9, 12]
    assert small.n_items == 259
    assert int(small.tokens.min()) >= 1


def test_a_pair_for_every_response_token_and_for_no_other(small: Prompts) -> None:
    pairs = list(zip(small.pair_begin.tolist(), small.pair_event.tolist(), strict=True))
    expected = [
        (int(small.example_tokens[e]), event)
        for e in range(12)
        for event in range(small.answer[e], small.example_tokens[e + 1])
    ]
    assert pairs == expected
    n_response = sum(len(row["response"].encode()) + 1 for row in ROWS)
    assert len(pairs) == n_response == small.example_pairs[-1]
    assert sum(small.counts["response_tokens"].values()) == n_response


def test_a_long_prompt_loses_its_beginning_and_a_long_response_the_example(tmp_path: Path) -> None:
    """BOS, prompt, SEP, response, EOS: of 8 tokens a response of 3 leaves room for 2 of the prompt."""
    rows = [
        *ROWS, line("pqrstu", "xyz", "copy"), line("a", "bcdef", "copy"), line("ab", "bcde", "copy"),
        line("", "abcdef", "copy"), line("", "abcde", "copy"),
    ]  # fmt: skip
    data = load(write(tmp_path / "x.jsonl", rows), replace(SPEC, max_tokens=8))
    copies = [tokens_of(data, e) for e in range(*data.domain_examples[1:3])]
    assert copies[3:] == [bytes_of("tu", "xyz"), bytes_of("b", "bcde"), bytes_of("", "abcde")]
    (step,) = (s for s in data.funnel if s["step"] == "long examples")
    # dropped: "a" -> "bcdef" has no room for its prompt, "abcdef" none at all; cut, beside two of these: "xyz" -> "xyz",
    # "abcd" -> "dcba" and "ab" -> "abab"
    assert step["dropped"] == 2
    assert step["why"] == "response alone fills 8 tokens; 5 prompts lost their beginning"
    assert max(np.diff(data.example_tokens)) == 8


def test_the_funnel_counts_every_step(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0], line("a", "a", "lonely", split="train"), line("a", "b" * 60, "copy")]
    data = load(write(tmp_path / "x.jsonl", rows))
    assert [(s["step"], s["examples"], s["domains"], s["dropped"]) for s in data.funnel] == [
        ("examples", 15, 5, 0), ("repeated examples", 14, 5, 1), ("small domains", 13, 4, 1), ("long examples", 12, 4, 1),
        ("small domains again", 12, 4, 0),
    ]  # fmt: skip
    assert data.funnel[-1]["tokens"] == len(data.tokens)
    assert data.counts["domains"] == {"train": 2, "val": 1, "test": 1}
    assert data.counts["examples"] == {"train": 6, "val": 3, "test": 3}
    assert data.counts["fixed_episodes"] == {"val": 2, "test": 2}


def test_a_domain_that_long_examples_make_too_small(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no train domain: no domain is left to train on; of 12 .* long examples dropped 3"
    ):
        load(write(tmp_path / "x.jsonl"), replace(SPEC, max_tokens=6))


def test_domains_are_divided_by_the_seed_where_the_file_does_not_say(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", split=None)
    splits = {load(path, replace(SPEC, seed=seed)).split for seed in range(12)}
    assert all(sorted(split) == ["test", "train", "train", "val"] for split in splits)
    assert len(splits) > 3
    assert load(path).split == load(path).split


# -- episodes -------------------------------------------------------------------------------------------------------


def check_episodes(data: Prompts, drawn: Drawn, split: str) -> None:
    """Of domains of the split; support and query are different examples of that domain."""
    assert drawn.example.shape == (len(drawn), data.spec.n_query + data.spec.n_support)
    for domain, examples in zip(drawn.domain.tolist(), drawn.example.tolist(), strict=True):
        assert data.split[domain] == split
        assert len(set(examples)) == len(examples)
        assert set(examples) <= set(range(data.domain_examples[domain], data.domain_examples[domain + 1]))


def test_support_and_query_share_nothing_and_splits_share_no_domain(world: Prompts) -> None:
    for step in range(30):
        check_episodes(world, world.training(1, step, 16, 30), "train")
    for split in ("val", "test"):
        drawn = world.episodes(split)
        check_episodes(world, drawn, split)
        assert np.unique(drawn.domain, return_counts=True)[1].tolist() == [8] * 10
    # nor does a text of the support stand in the query
    drawn = world.training(1, 0, 50, 30)
    for row in drawn.example.tolist():
        assert len({str(tokens_of(world, example)) for example in row}) == len(row)


@pytest.mark.parametrize("fault", ["with replacement", "of any domain", "of a test domain"])
def test_faults_of_the_drawing_are_seen(fault: str, world: Prompts) -> None:
    drawn = world.training(1, 0, 16, 30)
    domain, example = drawn.domain.copy(), drawn.example.copy()
    if fault == "with replacement":
        example[3, 5] = example[3, 1]
    elif fault == "of any domain":
        example[3, 5] = (example[3, 5] + 500) % len(world.answer)
    else:
        domain[3] = world.of("test")[0]
    with pytest.raises(AssertionError):
        check_episodes(world, Drawn(domain, example, drawn.n_query), "train")


def test_every_domain_and_example_is_drawn_alike(world: Prompts) -> None:
    """Within five standard deviations of an even draw."""
    drawn = world.training(1, 0, 6_000, 1)
    of_domain = np.bincount(drawn.domain, minlength=50)[world.of("train")]
    assert abs(of_domain - 200).max() < 5 * 200**0.5
    place = drawn.example - world.domain_examples[drawn.domain][:, None]
    for column in place.T:
        counts = np.bincount(column, minlength=64)
        assert abs(counts - 6_000 / 64).max() < 5 * (6_000 / 64) ** 0.5


def test_training_is_a_function_of_seed_and_step(world: Prompts) -> None:
    first = world.training(1, 3, 4, 100)
    world.training(9, 9, 9, 100)
    assert world.training(1, 3, 4, 100).sha256 == first.sha256 == world.training(1, 3, 4, 7).sha256
    assert len({world.training(seed, step, 4, 9).sha256 for seed in range(4) for step in range(25)}) == 100


def test_the_fixed_episodes_are_those_of_every_machine(world: Prompts) -> None:
    again = Prompts.load(PromptSpec(), None, Path())
    assert (again.fingerprint, again.contents) == (world.fingerprint, world.contents)
    for split in ("val", "test"):
        assert again.episodes(split).sha256 == world.episodes(split).sha256 == SHA256[split]
    assert Prompts.load(PromptSpec(seed=1), None, Path()).episodes("val").sha256 != SHA256["val"]


SHA256 = {
    "val": "35f2536f02abb545cf7101f2ec16d791688467b095819f81680d7c62ab2c3a8f",
    "test": "a59e7314a14a23a989509789acc673e898a1add5a8232852fe7df5d91b589ea0",
}


def test_more_support_leaves_the_query_and_the_first_of_the_support_as_they_are(world: Prompts) -> None:
    few, many = world.episodes("test"), world.episodes("test", 20)
    assert many.example.shape == (80, 24)
    assert np.array_equal(many.example[:, :8], few.example)
    assert np.array_equal(world.episodes("test", 0).example, few.example[:, :4])
    assert len(world.episodes("test", 61)) == 0


def test_a_small_domain_falls_out_of_larger_episodes_alone(tmp_path: Path) -> None:
    """The other domains keep theirs."""
    rows = [*ROWS, *(line("a" * n, "b", "long", split="test") for n in range(6))]
    data = load(write(tmp_path / "x.jsonl", rows))
    few, many = data.episodes("test"), data.episodes("test", 4)
    assert [data.domains[d] for d in few.domain] == ["back", "back", "long", "long"]
    assert [data.domains[d] for d in many.domain] == ["long", "long"]
    assert np.array_equal(many.example[:, :3], few.example[2:])


def test_what_a_hash_sees(world: Prompts, small: Prompts) -> None:
    """Fixed episodes and pretraining hang on the fingerprint; the order of outer steps does not change it."""
    spec = world.spec
    changed = [
        replace(spec, n_support=3), replace(spec, n_query=3), replace(spec, pretrain="easy"), replace(spec, n_episodes=3),
    ]  # fmt: skip
    assert len({replace(world, spec=s).fingerprint for s in (spec, *changed)}) == 5
    assert replace(world, spec=replace(spec, order="rising")).fingerprint == world.fingerprint
    assert len({replace(world, spec=s).contents for s in (spec, *changed)}) == 1
    tokens = small.tokens.copy()
    tokens[4] += 1
    assert replace(small, tokens=tokens).contents != small.contents
    assert replace(small, split=("val", "train", "test", "train")).contents != small.contents


# -- order ----------------------------------------------------------------------------------------------------------


def ordered(world: Prompts, order: str) -> Prompts:
    found = replace(world, spec=replace(world.spec, order=order))
    found.check()
    return found


def difficulties(data: Prompts, steps: int, seed: int = 1) -> list[set[float]]:
    return [{data.difficulty[d] for d in data.training(seed, s, 40, steps).domain} for s in range(steps)]  # type: ignore


@pytest.mark.parametrize("steps", [2, 7, 10])
def test_easy_then_hard(steps: int, world: Prompts) -> None:
    """Two difficulties: steps below half are easy, the others hard, with none in between."""
    found = difficulties(ordered(world, "easy_then_hard"), steps)
    assert found == [{0.0} if 2 * s < steps else {2.0} for s in range(steps)]


def test_rising(world: Prompts) -> None:
    """The easy ones stay; random has both from the first step on."""
    assert difficulties(ordered(world, "rising"), 6) == [{0.0}] * 3 + [{0.0, 2.0}] * 3
    assert difficulties(world, 6) == [{0.0, 2.0}] * 6


def test_three_levels(tmp_path: Path) -> None:
    """A third of the steps each; the last step of all is of the last level."""
    rows = [line("a" * n, "b", f"d{level}", level, split="train") for level in (1, 5, 2) for n in range(3)]
    data = load(
        write(tmp_path / "x.jsonl", [*rows, *ROWS[:9]], SPLIT | {"copy": "val"}), replace(SPEC, order="easy_then_hard")
    )
    level = {1.0: 1, 2.0: 2, 5.0: 3}
    found = [{level[d] for d in own} for own in difficulties(data, 9)]
    assert found == [{1}] * 3 + [{2}] * 3 + [{3}] * 3
    assert data.candidates(8, 9).tolist() == data.candidates(100, 9).tolist()


def test_an_order_is_a_function_of_seed_step_and_steps(world: Prompts) -> None:
    hard = ordered(world, "easy_then_hard")
    assert hard.training(1, 4, 8, 10).sha256 == hard.training(1, 4, 8, 10).sha256
    assert hard.training(1, 4, 8, 10).sha256 != hard.training(1, 4, 8, 6).sha256
    assert hard.training(1, 4, 8, 10).sha256 != hard.training(2, 4, 8, 10).sha256


@pytest.mark.parametrize("key", ["order", "pretrain"])
def test_difficulties_that_an_order_cannot_go_by(key: str, tmp_path: Path) -> None:
    spec = replace(SPEC, **{key: {"order": "rising", "pretrain": "easy"}[key]})
    load(write(tmp_path / "x.jsonl"), spec)
    rows = [*ROWS, line("zz", "z", "twice", None)]
    said = rf"dataset.prompts.{key}: \w+: domain twice has examples without a difficulty -- write metadata.difficulty"
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path / "y.jsonl", rows), spec)
    with pytest.raises(ConfigError, match=r"all training domains are of one difficulty \(0\) -- drop it"):
        load(write(tmp_path / "z.jsonl", split=SPLIT | {"twice": "test"}), spec)


def test_what_is_pretrained_on(world: Prompts) -> None:
    """Examples of training domains; with `easy` of the easy ones alone."""
    of_example = np.repeat(np.arange(50), np.diff(world.domain_examples))

    def domains(data: Prompts) -> set[int]:
        return set(of_example[data.pretraining].tolist())

    train = set(world.of("train").tolist())
    assert domains(world) == train
    easy = replace(world, spec=replace(world.spec, pretrain="easy"))
    assert domains(easy) == {d for d in train if world.difficulty[d] == 0.0}
