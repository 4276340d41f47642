"""`metarec export` and residual.adapter: files against the checkpoint, against adaptation by hand, and back into a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, metrics, same_bits, state, tensors
from safetensors.torch import load_file
from torch import Tensor

from metarec import cli, durable
from metarec.config.schema import ExportConfig
from metarec.core.weights import Params
from metarec.errors import CheckpointError, ConfigError, DataError, EnvironmentFault
from metarec.runs import adapters
from metarec.runs.rundir import verify
from metarec.verbs import export, warm_start
from metarec.verbs.eval import opened

LORA = ("residual=lora", "residual.rank=3", "residual.alpha=5", "algorithm.inner.lr=0.4", "algorithm.inner.steps=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run of residual=lora in float64, not to be changed."""
    return Work(tmp_path_factory.mktemp("lora"), cache).train(*LORA, "hardware.precision=float64")


def exported(work: Work, ckpt: Path, to: str, *words: str) -> Path:
    return work._run("export", f"ckpt={ckpt}", f"to={work.root / to}", *words)


def users(run: Path, *rows: int) -> list[str]:
    ids = pq.read_table(run / "per_user.parquet")["user_id"].to_pylist()
    return [ids[row] for row in rows]


def factors(directory: Path) -> Params:
    """As a run names them: gru.weight_ih_l0.lora_a [r, in] and .lora_b [out, r]."""
    held = load_file(directory / adapters.WEIGHTS)
    ends = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}
    return {
        name.removeprefix("base_model.model.").removesuffix(end) + own: value
        for name, value in held.items()
        for end, own in ends.items()
        if name.endswith(end)
    }


def phi(run: Path, pointer: str = "best") -> Params:
    return {n.removeprefix("phi/"): v for n, v in tensors(run, pointer).items() if n.startswith("phi/")}


def test_the_start_is_the_checkpoints(work: Work, run: Path) -> None:
    made = exported(work, run, "a")
    assert made == work.root / "a"
    assert same_bits(factors(made), phi(run))
    assert verify(made) == []
    assert {path.name for path in made.iterdir()} == {
        adapters.WEIGHTS, adapters.CONFIG, "card.json", "config.yaml", "overrides.json", "environment.json", "manifest.json",
    }  # fmt: skip
    assert adapters.read_config(made) == adapters.Adapter(3, 5.0, False, False, ("gru.weight_ih_l0",))
    last = exported(work, run / "checkpoints" / "last.json", "last")
    assert same_bits(factors(last), phi(run, "last"))


def by_hand(run: Path, user: str, steps: int = 2, rate: float = 0.4) -> tuple[Params, Params]:
    """The factors of one user and his whole weights: base + s B A written out, gradients left to autograd."""
    config = ExportConfig(ckpt=str(run), cache_dir=str(metrics(run)["config"]["cache_dir"]))
    held = opened(config, ())
    row = held.bench.user_ids(held.bench.episodes("test").user).tolist().index(user)
    (batch,) = held.bench.episodes("test", rows=torch.tensor([row]).numpy()).batches()
    base = {n.removeprefix("base/"): v for n, v in held.tensors.items() if n.startswith("base/")}
    name = "gru.weight_ih_l0"
    a, b = (phi(run)[name + end].clone().requires_grad_() for end in (".lora_a", ".lora_b"))

    def whole() -> dict[str, Tensor]:
        return base | {name: base[name] + 5 / 3 * b @ a}

    loss: Any = held.bench.tasks().loss(batch.support)
    for _ in range(steps):
        own = torch.autograd.grad(loss(whole()).sum(), (a, b))
        a, b = ((value - rate * grad).detach().requires_grad_() for value, grad in zip((a, b), own, strict=True))
    return {f"{name}.lora_a": a.detach(), f"{name}.lora_b": b.detach()}, {n: v.detach() for n, v in whole().items()}


def test_users_are_adapted_as_by_hand(work: Work, run: Path) -> None:
    """One at a time, from the support as `metarec eval` reads it; more than one batch of users."""
    chosen = users(run, 5, 0, 9)
    (work.root / "users.txt").write_text("\n".join(chosen))
    made = exported(work, run, "a", f"users={work.root / 'users.txt'}", "evaluation.task_chunk=2")
    assert sorted(path.name for path in (made / "users").iterdir()) == sorted(chosen)
    assert verify(made) == []
    for user in chosen:
        own, _ = by_hand(run, user)
        found = factors(made / "users" / user)
        assert found.keys() == own.keys()
        for name, value in own.items():
            assert float((found[name] - value).abs().max()) < 1e-10
            assert float((found[name] - phi(run)[name]).abs().max()) > 1e-4  # it moved
    more = exported(work, run, "b", f"users=[{chosen[0]}]", "steps=1", "lr=0.1")
    own, _ = by_hand(run, chosen[0], steps=1, rate=0.1)
    assert all(float((value - own[n]).abs().max()) < 1e-10 for n, value in factors(more / "users" / chosen[0]).items())


def test_merged_is_what_a_plain_model_needs(work: Work, run: Path) -> None:
    (user,) = users(run, 4)
    made = exported(work, run, "m", "merge=true", f"users=[{user}]")
    base = {n.removeprefix("base/"): v for n, v in tensors(run, "best").items() if n.startswith("base/")}
    of_all, own = load_file(made / "model.safetensors"), load_file(made / "users" / user / "model.safetensors")
    start = phi(run)
    update = 5 / 3 * start["gru.weight_ih_l0.lora_b"] @ start["gru.weight_ih_l0.lora_a"]
    for found, expected in (
        (of_all, base["gru.weight_ih_l0"] + update),
        (own, by_hand(run, user)[1]["gru.weight_ih_l0"]),
    ):
        assert found.keys() == base.keys()
        assert float((found["gru.weight_ih_l0"] - expected).abs().max()) < 1e-10
        assert all(torch.equal(found[name], base[name]) for name in base if name != "gru.weight_ih_l0")
    assert not torch.equal(of_all["gru.weight_ih_l0"], own["gru.weight_ih_l0"])


@pytest.mark.parametrize("words", [
    ("residual=on",), ("residual=head",), ("residual=bias",), ("residual=off",), ("algorithm=supervised",),
    ("residual=off", "algorithm=meta_sgd"),
], ids=" ".join)  # fmt: skip
def test_other_residuals_are_merged(words: tuple[str, ...], work: Work) -> None:
    """As a warm start reads them, which is other code."""
    made = work.train(*words)
    found = load_file(exported(work, made, "m", "merge=true") / "model.safetensors")
    bench = opened(ExportConfig(ckpt=str(made), cache_dir=str(work.cache)), ()).bench
    expected = warm_start.theta(tensors(made, "best"), state(made, "best"), bench.model)
    assert same_bits(found, {name: value.detach() for name, value in expected.items()})


@pytest.mark.parametrize(
    ("words", "asked", "says"),
    [
        (
            ("residual=context", "algorithm=maml"),
            ["merge=true"],
            r"residual=context keeps context\.\w+ beside the weights",
        ),
        (("residual=ia3", "algorithm=maml"), ["merge=true"], r"residual=ia3 keeps scale\.\w+ beside the weights"),
        (("residual=on",), [], "merge: false: the run learned no low-rank factors, but residual=on -- add merge=true"),
        (("algorithm=supervised",), ["merge=true", "users=[x]"], "users: supervised: the run has no inner loop"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_no_file_can_hold_is_refused(words: tuple[str, ...], asked: list[str], says: str, work: Work) -> None:
    with pytest.raises(ConfigError, match=says):
        exported(work, work.train(*words), "a", *asked)
    assert not (work.root / "a").exists()


def test_a_place_that_is_taken_is_refused(work: Work, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work.root / "empty").mkdir()
    assert exported(work, run, "empty") == work.root / "empty"
    before = {path.name: path.read_bytes() for path in (work.root / "empty").iterdir()}
    (work.root / "file").write_text("")
    for name in ("empty", "file"):
        assert work.main("export", f"ckpt={run}", f"to={work.root / name}") == 5
        error = capsys.readouterr().err
        assert "give another directory, to=DIR" in error
        assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in (work.root / "empty").iterdir()} == before


def test_without_a_place_it_goes_to_its_own(work: Work, run: Path) -> None:
    assert work.main("export", f"ckpt={run}") == 0
    (made,) = work.directories("export")
    assert verify(made) == []
    assert same_bits(factors(made), phi(run))


@pytest.mark.parametrize("call", [0, 4, 8, 9, 11])
def test_a_write_that_fails_leaves_nothing(call: int, work: Work, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the n-th file, or the last rename does not happen."""
    real, count = durable.write_new, [0]

    def full(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] == call + 1:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(durable, "write_new", full)
    if call == 11:  # files are all there
        monkeypatch.setattr(export.os, "rename", lambda *ends: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    if call == 9:  # there are nine files
        assert exported(work, run, "a", f"users=[{users(run, 0)[0]}]").exists()
        assert count[0] == 9
        return
    with pytest.raises(EnvironmentFault):
        exported(work, run, "a", f"users=[{users(run, 0)[0]}]")
    assert [path.name for path in work.root.iterdir() if path.name != "outputs"] == []


def test_one_that_came_meanwhile_is_kept(work: Work, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def late(source: Path, target: Path) -> None:
        if target == work.root / "a":
            target.mkdir()
            (target / "other").write_text("mine")
        real(source, target)

    monkeypatch.setattr(export.os, "rename", late)
    with pytest.raises(EnvironmentFault, match="exists and is not empty"):
        exported(work, run, "a")
    assert [path.name for path in (work.root / "a").rglob("*")] == ["other"]


def test_ids_lead_nowhere_else() -> None:
    assert [export._folder(user) for user in ("u1", "..", "../x", "a/b", ".hidden", "%2E.")] == [
        "u1", "%2E.", "..%2Fx".replace("..", "%2E.", 1), "a%2Fb", "%2Ehidden", "%252E.",
    ]  # fmt: skip
    with pytest.raises(DataError, match="no name for a directory"):
        export._folder("é" * 50)
    with pytest.raises(DataError, match="no name for a directory"):
        export._folder("")


# Back into a run


def test_a_run_starts_from_the_factors_of_a_file(work: Work, run: Path) -> None:
    """Bit for bit; the file decides rank, alpha and targets, also where they are said again."""
    made = exported(work, run, "a")
    for words in ((), ("residual.rank=3", "residual.targets=[gru.weight_ih*]")):
        again = work.train("residual=lora", f"residual.adapter={made}", "hardware.precision=float64", *words)
        start = {n: v for n, v in adapters_at(again).items() if n.startswith("phi/")}
        assert same_bits({n.removeprefix("phi/"): v for n, v in start.items()}, phi(run))
        held = state(again, "best")["config"]["residual"]
        assert (held["rank"], held["alpha"], held["targets"]) == (3, 5.0, ["gru.weight_ih_l0"])
    shutil.rmtree(made)  # a checkpoint needs it no more
    assert metrics(work.evaluated(again))["metrics"] == metrics(again)["metrics"]
    assert same_bits(factors(exported(work, again, "b")), phi(again))


def adapters_at(run: Path, name: str = "step-000000") -> dict[str, Tensor]:
    path = run / "checkpoints" / name
    return load_file(path / "tensors.safetensors")


def test_a_resumed_run_needs_the_file_no_more(work: Work, run: Path) -> None:
    made = exported(work, run, "a")
    whole = work.train("residual=lora", f"residual.adapter={made}", "train.checkpoint_every=2", "train.patience=0")
    copy = Path(shutil.copytree(whole, work.root / "outputs" / "cut"))
    for name in ("manifest.json", "metrics.json", "per_user.parquet"):
        (copy / name).unlink()
    for path in (copy / "checkpoints").glob("step-00000[56]"):
        shutil.rmtree(path)
    shutil.rmtree(made)
    assert cli.main(["train", f"resume={copy}"]) == 0
    assert_same_run(copy, whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["residual.rank=8"], "residual.rank: 8: the adapter file says 3, and the file decides -- leave it out"),
        (["residual.alpha=16"], r"residual.alpha: 16.0: the adapter file says 5.0"),
        (["residual.scaling='alpha/sqrt(r)'"], r"residual.scaling: alpha/sqrt\(r\): the adapter file says alpha/r"),
        (["residual.targets=[fc.weight]"], r"residual.targets: \[fc.weight\]: the adapter file says \[gru.weight_ih_l0\]"),
    ],
)  # fmt: skip
def test_an_option_that_contradicts_the_file_is_refused(words: list[str], says: str, work: Work, run: Path) -> None:
    made = exported(work, run, "a")
    with pytest.raises(ConfigError, match=says):
        work.train("residual=lora", f"residual.adapter={made}", *words)


def test_a_file_that_does_not_fit_is_refused_before_pretraining(work: Work, run: Path) -> None:
    made, cold = exported(work, run, "a"), Work(work.root, work.root / "cold")
    with pytest.raises(CheckpointError, match=r"gru\.weight_ih_l0\.lora_B \[48, 3\]: \[96, 3\] is needed"):
        cold.train("residual=lora", f"residual.adapter={made}", "model.hidden_dim=32")
    assert not (work.root / "cold" / "pretrained").exists()
    data = bytearray((made / adapters.WEIGHTS).read_bytes())
    data[-9] ^= 4
    (made / adapters.WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: damaged: its SHA-256"):
        work.train("residual=lora", f"residual.adapter={made}")
