"""docs/new_model.md says what is so: its two files are taken out of the page and are all that a new model needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference.small_episodes import SmallLog, small_log
from reference.small_models import furthest, leaves
from reference.tiny_runs import Work, metrics, tiny
from torch import Tensor

import metarec.models
from metarec import build, cli, parts
from metarec.algorithms.inner import InnerLoop, adapt
from metarec.algorithms.maml import MAML
from metarec.config.check import check
from metarec.config.compose import config_from_yaml, config_to_yaml
from metarec.config.overrides import check_words
from metarec.config.schema import TrainConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.objectives.bce import BCE
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.scores import Scores
from metarec.residual.context import ContextResidual
from metarec.tasks import Model, Tasks
from metarec.verbs import run_verb
from metarec.verbs.measure import algorithm_of

ROOT = Path(__file__).parent.parent
FILES = re.compile(r"^<!-- (?P<path>\S+) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = {found["path"]: found["body"] for found in FILES.finditer((ROOT / "docs/new_model.md").read_text())}
N_ITEMS = 11


def bare() -> str:
    """The page's model without what is optional: contexts, dropout, and what its Config says beside its options."""
    text = PAGE["metarec/models/window.py"].replace("window", "bare").replace('{"context.shift": (self.dim,)}', "{}")
    assert 'context.shift": (' not in text
    text, n = re.subn(r"\n    dropout: float = (ranged\(.*|0\.1)", "", text.replace(", config.dropout", ""))
    text, m = re.subn(r"\n    \w+: ClassVar.*", "", text)
    assert (n, m) == (2, 3)
    return text.replace("self.dropout", "0.0")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, the first as if it lay in metarec/models, the second in a directory for --config-dir."""
    root = tmp_path_factory.mktemp("page")
    for path, body in PAGE.items():
        place = root / path
        place.parent.mkdir(parents=True)
        place.write_text(body)
    (root / "metarec/models/bare.py").write_text(bare())
    metarec.models.__path__.append(str(root / "metarec/models"))
    yield root
    metarec.models.__path__.remove(str(root / "metarec/models"))
    for name in ("window", "bare"):
        sys.modules.pop(f"metarec.models.{name}", None)


def model(**options: object) -> Model:
    """By the path that a run takes: values -> checked config -> object."""
    config, errors = check("train", {"model": {"name": "window", **options}}, rules=False)
    assert errors == []
    assert isinstance(config, TrainConfig)
    return build.model(config.model, N_ITEMS)


def test_the_page_has_two_files() -> None:
    assert list(PAGE) == ["metarec/models/window.py", "conf/model/window.yaml"]


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_the_page_keeps_to_the_style(folder: Path) -> None:
    path, options = str(folder / "metarec/models/window.py"), ["--config", str(ROOT / "pyproject.toml")]
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *words, *options, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# Configuration


def words_of(work: Work, *words: str) -> list[str]:
    here = [word for word in tiny(*words) if not word.startswith("model.")]
    return work.words("train", *here, "model=window", "model.dim=8", *words)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path, tmp_path / "cache")


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_words("train", ["model=window", *words], config_dir=folder / "conf")
    return str(caught.value)


def test_its_options_are_checked_like_all_others(folder: Path) -> None:
    (job,) = check_words("train", ["model=window", "model.width=5"], config_dir=folder / "conf").jobs
    config: Any = job.config
    assert (config.model.name, config.model.width, config.model.dim) == ("window", 5, 32)
    assert config_from_yaml(config_to_yaml(config), "train") == config
    assert "model.width: 0: out of range -- give a value >= 1" in refused(folder, "model.width=0")
    assert "did you mean model.width?" in refused(folder, "model.widht=4")
    assert "model=window has no such key" in refused(folder, "model.hidden_dim=4")
    assert "wrong type" in refused(folder, "model.dim=wide")
    looks = "model.width: 9: looks back further than model.max_len=4 events -- give 4 or less"
    assert looks in refused(folder, "model.width=9", "model.max_len=4")
    assert "model=window has none" in refused(folder, "hardware.compile=true")


def test_what_shows_only_when_it_is_built_is_told_in_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_(config: object, n_items: int) -> None:
        raise ValueError(f"{n_items} items are too few")

    monkeypatch.setattr(parts.load("model", "window"), "build", build_)
    line = f"model: window: {N_ITEMS} items are too few -- see metarec/models/window.py"
    with pytest.raises(ConfigError, match=re.escape(line)):
        model()


def test_contexts_take_the_step_that_the_model_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.options("model", "window"), "context_lr", 0.125)
    for words, lr in (
        (["model=window", "residual=context"], 0.125),
        (["model=window", "residual=context", "algorithm.inner.lr=0.5"], 0.5),
        (["model=window", "residual=off"], 0.7),
        (["model=gru4rec", "residual=context"], 3.0),
    ):
        (job,) = check_words("train", words, config_dir=folder / "conf").jobs
        config: Any = job.config
        bench: Any = SimpleNamespace(model=build.model(config.model, N_ITEMS), support_share=0.5)
        control = Control(0.7, 3, 0.0, [])
        assert algorithm_of(bench, config, config.algorithm, control).inner.lr == lr


def test_only_files_of_the_models_folder_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts.options("model", "window") is not None
    for name in ("os", "os.path", "metarec.models.window", "../window", "", "convert"):
        assert parts.options("model", name) is None
        _, (error,) = check("train", {"model": {"name": name}}, rules=False)
        assert "nothing by that name" in str(error)


# Runs


def test_a_whole_run_of_it(folder: Path, work: Work) -> None:
    words = words_of(work, "algorithm=maml", "residual=off", "train.steps=2", "train.eval_every=1")
    assert cli.main([*words, "--config-dir", str(folder / "conf")]) == 0
    (run,) = work.directories("train")
    found = metrics(run)
    assert found["model"] == "window"
    assert set(found["metrics"]) >= {"pretrained", "control", "zeroshot", "fewshot"}
    assert work.eval(run)["metrics"] == found["metrics"]  # by the stored configuration, without --config-dir


@pytest.mark.parametrize(
    ("algorithm", "residual", "objective"),
    [("meta_sgd", "context", "cross_entropy"), ("maml_pp", "on", "bce"), ("anil", "off", "sampled_softmax")],
)
def test_algorithms_residuals_and_objectives_know_it(
    algorithm: str, residual: str, objective: str, folder: Path, work: Work
) -> None:
    words = words_of(work, f"algorithm={algorithm}", f"residual={residual}", f"objective={objective}",
                     "train.steps=2", "train.eval_every=1")  # fmt: skip
    assert cli.main([*words, "--config-dir", str(folder / "conf")]) == 0


def test_what_is_optional_is_missed_in_words(folder: Path, work: Work) -> None:
    (folder / "conf/model/bare.yaml").write_text("name: bare\ndim: 8\nwidth: 3\nmax_len: 50\n")
    words = ["model=bare", "algorithm=maml", "residual=off", "train.steps=2", "train.eval_every=1"]
    words = work.words("train", *(word for word in tiny(*words) if not word.startswith("model.")), *words)
    (job,) = check_words("train", words[1:], config_dir=folder / "conf").jobs
    assert run_verb("train", job.config, work.root / "run", False, words[1:])["headline"]
    with pytest.raises(ConfigError, match=r"train\.dropout: 0\.2: model=bare has no dropout"):
        check_words("train", [*words[1:], "train.dropout=0.2"], config_dir=folder / "conf")
    for more, line in (
        ("residual=context", "residual: context: the model has nothing that it could adapt -- use residual=off"),
        ("algorithm=maml_pp algorithm.bnwb=true", "algorithm.bnwb: True: the model has no norms that adapt"),
    ):
        kept = [word for word in words[1:] if not word.startswith(more.partition("=")[0])]
        (job,) = check_words("train", [*kept, *more.split()], config_dir=folder / "conf").jobs
        with pytest.raises(ConfigError, match=line):
            run_verb("train", job.config, work.root / "run2", False, kept)


# Is it right?

LOG = small_log(3, unknown=0.0, max_len=5)


def weights(made: Model, seed: int = 1, contexts: bool = False) -> Params:
    params = made.init(torch.Generator().manual_seed(seed), torch.float64)
    if contexts:
        params |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in made.context_shapes().items()}
    return params


def scores(made: Model, params: Any, batch: EpisodeBatch, items: Tensor | None = None) -> Tensor:
    return made.score(params, batch.query.gather(made.encode(params, batch.query.inputs)), None, items)


def check_prefixes(made: Model, log: SmallLog) -> None:
    """Sessions of a batch share events and overlap; alone, a pair's prefix is all that there is."""
    params, found = weights(made), scores(made, weights(made), log.episodes(3, 5))
    for user, (_, query) in enumerate(log.plain_episodes(3, 5)):
        for number, (prefix, _) in enumerate(query):
            h = torch.zeros(made.dim, dtype=torch.float64)  # type: ignore[attr-defined]
            if prefix:
                h = params["bias"].clone()
                for k, item in enumerate(reversed(prefix[-made.width :])):  # type: ignore[attr-defined]
                    h += params[f"place{k}.weight"] @ params["embedding.weight"][item]
                h = h.tanh()
            wanted = params["fc.weight"] @ h + params["fc.bias"]
            torch.testing.assert_close(found[user, number], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_a_pair_in_a_batch_scores_as_its_prefix_alone(unknown: float) -> None:
    check_prefixes(model(dim=4, width=3), small_log(3, unknown=unknown, max_len=5))


def test_looking_back_into_another_session_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__ge__", lambda self, other: torch.ones_like(self, dtype=torch.bool))
    with pytest.raises(AssertionError):
        check_prefixes(model(dim=4, width=3), LOG)


def test_candidates_are_columns_and_zero_contexts_change_nothing() -> None:
    made, batch = model(dim=4), LOG.episodes(3, 5)
    full = scores(made, weights(made), batch)
    assert torch.equal(scores(made, weights(made, contexts=True), batch), full)
    items = torch.tensor([1, 4, 11])
    torch.testing.assert_close(scores(made, weights(made), batch, items), full[..., items - 1], rtol=0, atol=1e-12)
    own = batch.query.target
    wanted = full.gather(2, own[..., None] - 1)[..., 0]
    torch.testing.assert_close(scores(made, weights(made), batch, own), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", [CrossEntropy(), BCE(4)], ids=["cross_entropy", "bce"])
@pytest.mark.parametrize("contexts", [False, True], ids=["weights", "contexts"])
def test_the_meta_gradient_equals_central_differences(contexts: bool, objective: Any) -> None:
    made = model(dim=4)
    batch, size = LOG.episodes(4, 4), 1e-5
    tasks = Tasks(made, objective, ContextResidual(weights(made), made.context_shapes()).compose)
    names = frozenset(made.context_shapes() if contexts else made.shapes())
    algorithm = MAML(InnerLoop(0.5, 3, adapted=names))
    phi = leaves(weights(made, contexts=True))

    def losses(at: Params) -> Tensor:
        support, query = (
            tasks.loss(pairs, items=torch.Generator().manual_seed(7 + n))
            for n, pairs in enumerate((batch.support, batch.query))
        )
        return algorithm.meta_losses(at, support, query, batch.n_tasks).mean()

    grads = dict(zip(phi, torch.autograd.grad(losses(phi), list(phi.values())), strict=True))
    draw = torch.Generator().manual_seed(5)
    for name, value in phi.items():  # each weight along a direction of its own
        direction = torch.randn(value.shape, generator=draw, dtype=value.dtype)
        ahead, behind = (float(losses(phi | {name: value.detach() + s * size * direction}).detach()) for s in (1, -1))
        assert float((grads[name] * direction).sum()) == pytest.approx(
            (ahead - behind) / (2 * size), rel=1e-6, abs=1e-9
        )
    first = replace(algorithm, order="first").meta_losses(
        phi, tasks.loss(batch.support, items=draw), tasks.loss(batch.query, items=draw), batch.n_tasks
    )
    other = torch.autograd.grad(first.mean(), phi["embedding.weight"])[0]
    assert float((other - grads["embedding.weight"]).abs().max()) > 1e-4  # the second order is there


def test_a_step_equals_autograd_on_copies_of_the_weights() -> None:
    made, batch = model(dim=4), LOG.episodes(4, 4)
    loss = Tasks(made, CrossEntropy(), lambda phi: phi).loss(batch.support)
    start = weights(made)
    adapted = adapt(loss, start, batch.n_tasks, InnerLoop(0.5, 1))
    for task in range(batch.n_tasks):
        phi = leaves(start)
        grads = torch.autograd.grad(loss(phi)[task], list(phi.values()))
        wanted = {name: value - 0.5 * grad for (name, value), grad in zip(start.items(), grads, strict=True)}
        assert furthest({name: adapted[name].dense()[task] for name in start}, wanted) < 1e-12


def test_tasks_adapt_independently() -> None:
    """Alone, in company, and beside a task whose data has changed."""
    made = model(dim=4)
    tasks, loop = Tasks(made, CrossEntropy(), lambda phi: phi), InnerLoop(0.5, 3)

    def after(users: list[int], log: SmallLog = LOG) -> dict[str, Tensor]:
        batch = log.episodes(4, 4, users)
        found = adapt(tasks.loss(batch.support), weights(made), len(users), loop)
        return {name: weight.dense() for name, weight in found.items()}

    together = after([0, 1, 2, 3])
    for user in range(4):
        alone = after([user])
        assert furthest({n: v[user] for n, v in together.items()}, {n: v[0] for n, v in alone.items()}) < 1e-12
    other = small_log(3, unknown=0.0, max_len=5)
    first = int(other.batcher.pair_begin[3 * other.n_pairs])  # user 3's events begin here
    other.batcher.item[first:] = other.batcher.item[first:] % N_ITEMS + 1
    changed = after([0, 1, 2, 3], other)
    for user in range(4):
        apart = furthest({n: v[user] for n, v in together.items()}, {n: v[user] for n, v in changed.items()})
        assert apart < 1e-12 if user < 3 else apart > 1e-3


def test_dropout_is_a_generator_s_doing() -> None:
    made, batch = model(dim=4, dropout=0.5), LOG.episodes(3, 5)
    states = batch.query.gather(made.encode(weights(made), batch.query.inputs))
    once, again = (
        Scores.of_model(made, weights(made), states, torch.Generator().manual_seed(1)).all() for _ in range(2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, scores(made, weights(made), batch))
