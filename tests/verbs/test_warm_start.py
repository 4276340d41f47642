"""Where the base weights come from: a cache, a run, a checkpoint, a legacy file; and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference.tiny_runs import Work, metrics, same_bits, tensors
from torch import nn

from metarec import build
from metarec.config.compose import config_from_yaml
from metarec.config.schema import TrainConfig
from metarec.errors import CheckpointError
from metarec.verbs import train  # before `no_pretraining`: what it imports while that is on, it would keep
from metarec.verbs import warm_start as ws


class Legacy(nn.Module):
    """The published model as it was saved: item ids from 0, padding with 0 as well."""

    def __init__(self, n_items: int, embedding_dim: int = 8, hidden_dim: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items, embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, n_items)

    def forward(self, prefix: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(self.embedding(prefix))[0][:, -1])  # type: ignore[no-any-return]


@pytest.fixture
def no_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("it pretrained")

    assert train.pretrain is ws.pretrain
    monkeypatch.setattr(ws, "pretrain", refuse)


@pytest.fixture
def legacy(tmp_path: Path) -> tuple[Path, Legacy]:
    torch.manual_seed(3)
    model = Legacy(30).double()
    torch.save(model.state_dict(), tmp_path / "global.pth")
    return tmp_path / "global.pth", model


def hit_rates(run: Path, model: Legacy) -> dict[str, float]:
    """HR@1 and HR@10 of the legacy model on the run's test pairs, one prefix at a time, ids shifted down by one."""
    config = config_from_yaml((run / "config.yaml").read_text(), "train")
    assert isinstance(config, TrainConfig)
    prepared = build.data(config, config.dataset, None)
    ranges = prepared.episodes("test")
    ranks = []
    for first in ranges.first_pair:
        for pair in range(first + ranges.n_support, first + ranges.n_support + ranges.n_query):
            event = int(prepared.pair_event[pair])
            prefix = np.asarray(prepared.item[int(prepared.pair_begin[pair]) : event], dtype=np.int64) - 1
            with torch.no_grad():
                scores = model(torch.from_numpy(prefix)[None])[0]
            ranks.append(int((scores >= scores[int(prepared.item[event]) - 1]).sum()))
    return {f"hr@{k}": float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}


@pytest.mark.parametrize("words", [("residual=on",), ("residual=off",)], ids=" ".join)
def test_a_legacy_file_scores_as_the_torch_model_does(
    words: tuple[str, ...], work: Work, legacy: tuple[Path, Legacy], no_pretraining: None
) -> None:
    path, model = legacy
    run = work.train(f"warm_start={path}", "hardware.precision=float64", *words)
    found = metrics(run)
    assert found["training"]["warm_start"] == {"kind": "path", "path": str(path)}
    expected = hit_rates(run, model)
    assert {k: found["metrics"]["pretrained"][k] for k in expected} == pytest.approx(expected, abs=1e-12)


def test_a_legacy_file_that_has_a_padding_row_already(work: Work, legacy: tuple[Path, Legacy]) -> None:
    path, model = legacy
    padded = {name: value.clone() for name, value in model.state_dict().items()}
    padded["embedding.weight"] = torch.cat([torch.zeros(1, 8), padded["embedding.weight"]])
    torch.save({"model_state_dict": padded}, work.root / "padded.pt")
    runs = [work.train(f"warm_start={name}", "residual=off") for name in (path, work.root / "padded.pt")]
    assert same_bits(tensors(runs[0], "last"), tensors(runs[1], "last"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d | {n: t[:29] for n, t in d.items() if n[:2] in ("em", "fc")}, "made for 29 items, the dataset has 30"),
        (lambda d: {n: t for n, t in d.items() if n != "gru.bias_hh_l0"}, "gru.bias_hh_l0"),
        (lambda d: d | {"gru.weight_ih_l1": torch.zeros(2)}, "gru.weight_ih_l1"),
        (lambda d: d | {"gru.weight_hh_l0": torch.zeros(48, 17)}, "gru.weight_hh_l0"),
        (lambda d: {"embedding.weight": "text"}, "not a dense tensor"),
    ],
)  # fmt: skip
def test_a_legacy_file_that_does_not_fit_is_refused(
    change: object, says: str, work: Work, legacy: tuple[Path, Legacy], capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = legacy
    torch.save(change(dict(model.state_dict())), path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says):
        work.train(f"warm_start={path}")
    (run,) = work.directories("train")
    assert list(run.iterdir()) == []  # the command line removes an empty directory


def test_a_run_passes_on_its_weights_without_adaptation(work: Work, no_pretraining: None, finished: Path) -> None:
    """base + alpha * delta of the best checkpoint, by the run or by the checkpoint's own directory."""
    best = tensors(finished, "best")
    runs = [
        work.train(f"warm_start={path}", "residual=on")
        for path in (finished, finished / metrics(finished)["checkpoint"])
    ]
    assert same_bits(tensors(runs[0], "last"), tensors(runs[1], "last"))
    start = tensors(runs[0], "last")
    for name, value in best.items():
        if name.startswith("phi/"):
            stem = name.removeprefix("phi/")
            assert torch.equal(start[f"base/{stem}"], best[f"base/{stem}"] + value)
    found, before = metrics(runs[0])["metrics"], metrics(finished)["metrics"]
    assert found["pretrained"] == before["zeroshot"]


@pytest.mark.parametrize(
    "words", [("residual=lora", "residual.targets=[gru.*,fc.*]"), ("residual=head",), ("residual=bias",)]
)
def test_a_run_of_a_part_passes_on_the_whole_model(words: tuple[str, ...], work: Work) -> None:
    """Factors merged into their matrices, and the base where nothing was learned."""
    first = work.train("algorithm=maml", *words, "train.steps=2", "train.eval_every=1")
    short = ("residual=off", "algorithm=fomaml", "train.steps=1", "train.eval_every=1")
    again = work.train(f"warm_start={first}", *short)
    assert metrics(again)["metrics"]["pretrained"] == metrics(first)["metrics"]["zeroshot"]
    last, start = (
        tensors(first, "last"),
        tensors(work.train(f"warm_start={first}/checkpoints/step-000002", *short), "last"),
    )
    moved = set()
    for name, base in last.items():
        if not name.startswith("base/"):
            continue
        learned, wanted = name.replace("base/", "phi/"), base
        if learned in last:
            wanted = base + last[learned]
        if f"{learned}.lora_a" in last:
            wanted = base + 16 / 8 * last[f"{learned}.lora_b"] @ last[f"{learned}.lora_a"]
        torch.testing.assert_close(start[name], wanted)
        moved |= {name} if not torch.equal(start[name], base) else set()
    assert len(moved) == len(
        {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in last if name[:4] == "phi/"}
    )


def test_a_run_of_another_vocabulary_or_width_is_refused(work: Work, finished: Path) -> None:
    with pytest.raises(CheckpointError, match="vocabulary"):
        work.train(f"warm_start={finished}", "dataset.world.n_items=29")
    with pytest.raises(CheckpointError, match="is needed"):
        work.train(f"warm_start={finished}", "model.hidden_dim=17")


def test_a_path_that_is_not_there_is_refused(work: Work) -> None:
    for name in ("missing.pth", "missing"):
        with pytest.raises(CheckpointError, match="missing"):
            work.train(f"warm_start={name}")


def test_pretraining_happens_once(
    work: Work, finished: Path, no_pretraining: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = work.train(
        "residual=off", "train.meta_batch_size=3", "logger.console=plain"
    )  # what pretraining does not depend on
    assert "pretrained weights from the cache" in capsys.readouterr().out
    kept = [metrics(path)["training"]["warm_start"] for path in (run, finished)]
    assert kept[0] == kept[1]
    assert kept[0]["kind"] == "auto"
    names = [path / "pretrain_history.jsonl" for path in (run, finished)]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("seed=3",), ("pretrain.lr=0.01",), ("model.dropout=0.2",), ("hardware.precision=float64",),
        ("objective.label_smoothing=0.1",), ("evaluation.monitor=mrr",), ("dataset.world.seed=8",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_pretraining_depends_on_is_not_taken_from_the_cache(
    words: tuple[str, ...], work: Work, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pretrains(Exception):
        pass

    def pretrains(*args: object, **options: object) -> None:
        raise Pretrains

    monkeypatch.setattr(ws, "pretrain", pretrains)
    if words == ("hardware.precision=float64",):
        words = (*words, "seed=77")  # other tests share the cache and have float64 weights in it
    with pytest.raises(Pretrains):
        work.train(*words)


@pytest.mark.parametrize(
    "name",
    [
        "tensors.safetensors", None,
        pytest.param("state.json", marks=pytest.mark.slow), pytest.param("manifest.json", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_damaged_cache_entry_is_made_again(name: str | None, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    own = Work(work.root, work.root / "cache")
    before = tensors(own.train(), "last")
    (entry,) = [path for path in (own.cache / "pretrained").iterdir() if path.is_dir()]
    if name is None:
        (entry / "state.json").unlink()
    else:
        data = bytearray((entry / name).read_bytes())
        data[-9] ^= 1
        (entry / name).write_bytes(data)
    capsys.readouterr()
    assert same_bits(tensors(own.train(), "last"), before)
    assert "damaged and made again" in capsys.readouterr().out
    own.train("logger.console=plain")
    assert "from the cache" in capsys.readouterr().out
