"""The schema against the YAML files: every alternative composes, and its YAML lists exactly its dataclass's fields."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metarec.config.check import DATASET_RANGES, check
from metarec.config.fields import alternatives, group_schema, walk
from metarec.config.help import examples, header
from metarec.config.overrides import check_words
from metarec.config.paths import conf_dir
from metarec.config.schema import GROUPS, VERBS, CompareConfig, TrainConfig
from metarec.data.spec import DatasetSpec
from metarec.verbs.cells import cells

YAMLS = sorted(conf_dir().glob("*/*.yaml"))
SHIPPED = {
    "algorithm": 10,
    "dataset": 29,
    "evaluation": 3,
    "experiment": 26,
    "guard": 2,
    "hardware": 4,
    "logger": 4,
    "model": 6,
    "objective": 6,
    "optimizer": 6,
    "residual": 9,
    "schedule": 4,
}


def test_how_many_yaml_files_there_are() -> None:
    found: dict[str, int] = {}
    for path in YAMLS:
        found[path.parent.name] = found.get(path.parent.name, 0) + 1
    assert found == SHIPPED


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_yaml_composes_to_a_checked_config(path: Path) -> None:
    words = [f"{path.parent.name}={path.stem}", "data_dir=/data"]
    if path.stem == "conv4":
        words.append("dataset=omniglot")
    comparison = any(line.split()[:3] == ["metarec", "compare", f"experiment={path.stem}"] for line in examples(path))
    if comparison:
        (job,) = check_words("compare", words).jobs
        assert isinstance(job.config, CompareConfig)
        assert cells(job.config)  # every variant among them
        return
    if path.parent.name == "dataset" and OmegaConf.load(path).get("path") is None and path.stem != "synthetic":
        words.append("dataset.path=/data/file.csv")
    (job,) = check_words("train", words).jobs
    assert isinstance(job.config, TrainConfig)
    node = getattr(job.config, path.parent.name, None)
    if node is not None and hasattr(node, "name"):
        assert node.name == path.stem


@pytest.mark.parametrize("path", [p for p in YAMLS if p.parent.name not in ("dataset", "experiment")], ids=str)
def test_yaml_lists_every_field_with_the_default_of_the_schema(path: Path) -> None:
    group = path.parent.name
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    node.pop("defaults", None)
    node = node.get(group, node)
    schema = group_schema(group, node.get("name"))
    assert schema is not None
    expected = dataclasses.asdict(schema())
    if group == "hardware":  # alternatives of one schema differ in this one value
        expected["device"] = node["device"]
    if path.stem in ("k_curve", "full"):  # differences from evaluation=standard
        assert set(node) <= set(expected)
        return
    assert node == expected


@pytest.mark.parametrize("verb", VERBS)
def test_verb_yaml_has_the_defaults_of_the_schema(verb: str) -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    environment = {"data_dir", "cache_dir"}
    for name, value in dataclasses.asdict(VERBS[verb]()).items():
        if name not in GROUPS and name not in environment:
            assert node[name] == value, name
    assert set(node) - {"defaults", "hydra"} == {n for n in dataclasses.asdict(VERBS[verb]()) if n not in GROUPS}


@pytest.mark.parametrize("path", [*YAMLS, *sorted(conf_dir().glob("*.yaml"))], ids=str)
def test_every_yaml_opens_with_what_it_is_and_a_command(path: Path) -> None:
    assert header(path)[0]
    assert examples(path), f"no `Try` line in {path}"
    for code in re.findall(r"Code\s+(\S+)", "\n".join(header(path))):
        assert (conf_dir().parent / code).exists(), f"{path} points to {code}"


def test_dataset_ranges_name_existing_keys_and_cover_every_choice() -> None:
    known = {key for key, is_section in walk(DatasetSpec, "dataset.") if not is_section}
    assert set(DATASET_RANGES) <= known
    free = {"dataset.name", "dataset.in_data_dir", "dataset.sessions.drop_repeats", "dataset.images.rotations"}
    assert known - set(DATASET_RANGES) == free


def test_every_alternative_is_reachable_by_its_own_name() -> None:
    for group in GROUPS:
        for name, schema in alternatives(group).items():
            assert schema().name == name


def test_published_mars_protocol() -> None:
    (job,) = check_words("train", ["experiment=mars_published", "data_dir=/data"]).jobs
    config: Any = job.config
    assert (config.dataset.name, config.dataset.split.by, config.dataset.split.seed) == (
        "mars",
        "user_disjoint",
        20260107,
    )
    assert config.dataset.split.fractions == [0.4, 0.2, 0.4]
    assert (config.dataset.episodes.n_support, config.dataset.episodes.n_query) == (5, 10)
    assert (config.train.steps, config.train.meta_batch_size) == (3000, 32)
    assert (config.train.eval_every, config.train.checkpoint_every) == (100, 500)
    assert (config.algorithm.inner.lr, config.algorithm.inner.steps, config.residual.name) == (0.01, 3, "on")
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.clip_norm) == ("adam", 1e-4, 10.0)


def test_defaults_pass_their_own_check() -> None:
    for verb, schema in VERBS.items():
        _, errors = check(verb, dataclasses.asdict(schema()), rules=False, complete=True)
        assert errors == []
