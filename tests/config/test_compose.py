"""Configs to text and back, and the directory name made of overrides."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from metarec.config.compose import config_from_yaml, config_to_yaml, slug
from metarec.config.overrides import check_words
from metarec.config.schema import TrainConfig
from metarec.errors import ConfigError


def test_slug_needs_no_quotes_and_no_directory() -> None:
    assert slug("algorithm.inner.lr=0.1,dataset.path=/a/b c") == "lr-0.1_path-a-b-c"
    assert slug("") == "job"
    assert len(slug("seed=" + "1" * 300)) <= 80


@pytest.mark.parametrize(
    "words", [["train"], ["train", "algorithm=supervised"], ["eval", "ckpt=1", "users=[1]"], ["prepare"]]
)
def test_a_config_survives_as_text(words: list[str]) -> None:
    (job,) = check_words(words[0], words[1:]).jobs
    assert config_from_yaml(config_to_yaml(job.config), words[0]) == job.config


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda text: text.replace("seed: 1\n", "", 1), "seed: nothing: missing"),
        (lambda text: text + "extra: 1\n", "extra: 1: unknown key"),
        (lambda text: text.replace("steps: 1000", "steps: -4"), "train.steps: -4: out of range"),
        (
            lambda text: text.replace("name: meta_sgd", "name: os.system"),
            "algorithm.name: os.system: nothing by that name",
        ),
        (
            lambda text: text.replace("seed: 1", "seed: !!python/object/apply:os.getpid []", 1),
            "a YAML tag that stands for",
        ),
        (lambda text: text.replace("seed: 1", "seed: ${oc.env:HOME}", 1), "seed: ${oc.env:HOME}: wrong type"),
        (lambda text: text[: text.index("pretrain:")], "pretrain: nothing: missing"),
        (lambda text: "- 1\n", "not a mapping"),
        (lambda text: "a: &x [*x]\n", "an alias: stands inside of what it stands for"),
        (lambda text: "5", "config.yaml"),
        (lambda text: "", "missing"),
    ],
)
def test_a_stored_config_is_checked(change: Callable[[str], str], line: str) -> None:
    text = change(config_to_yaml(TrainConfig()).replace("source: log", "source: synthetic"))
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(text, "train")
    assert line in str(caught.value)


def test_dataclasses_of_a_config_are_plain() -> None:
    (job,) = check_words("train", []).jobs
    json.dumps(dataclasses.asdict(job.config), allow_nan=False)
