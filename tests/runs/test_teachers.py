"""Teachers on disk: exact round trips, a stop at any shard, every kind of damage and of misfit in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from metarec.core.weights import Params
from metarec.errors import CheckpointError, DivergedError, EnvironmentFault
from metarec.runs.manifest import digest, sealed_bytes
from metarec.runs.teachers import KIND, Teachers, Writer
from metarec.runs.teachers_terms import Terms, different, weights_sha256

RANK, SCALE, N, SIZE = 2, 1.5, 7, 3
A, B, BIAS = "w.lora_a", "w.lora_b", "bias"
NAMES = {A: [RANK, 4], B: [5, RANK], BIAS: [3]}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


START = {A: drawn(RANK, 4, seed=1), B: torch.zeros(5, RANK), BIAS: drawn(3, seed=2)}
TERMS = Terms(
    vocabulary_sha256="v" * 64, data_fingerprint="d" * 32, base_sha256="b" * 64, start_sha256=weights_sha256(START),
    residual={"name": "lora", "rank": RANK, "alpha": 3.0, "scaling": "alpha/r", "targets": None}, names=NAMES,
    products={"w": [A, B, SCALE]}, steps=5, lr=0.3, pairs=64, n_query=2, n_users=N, shard_users=SIZE,
    others={"seed": 1, "chunk": 3},
).tidy()  # fmt: skip
# users in another order than that of their rows
EVERY: Params = {
    **{name: drawn(N, *shape, seed=10 + n) for n, (name, shape) in enumerate(NAMES.items())},
    "user": torch.tensor([4, 9, 2, 30, 7, 11, 5]), "pairs": torch.arange(1, N + 1),
    "loss_before": torch.linspace(2, 3, N), "loss_after": torch.linspace(1.5, 3.3, N),
}  # fmt: skip


def shard(number: int) -> Params:
    return {name: value[number * SIZE : (number + 1) * SIZE] for name, value in EVERY.items()}


def made(path: Path, terms: Terms = TERMS, numbers: tuple[int, ...] = (0, 1, 2)) -> Writer:
    path.mkdir(exist_ok=True)
    writer = Writer(path, terms, START)
    for number in numbers:
        writer.add(number, shard(number))
    return writer


@pytest.fixture
def there(tmp_path: Path) -> Path:
    made(tmp_path / "t").finish()
    return tmp_path / "t"


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_what_was_put_in_comes_out_bit_for_bit(there: Path) -> None:
    found = Teachers.open(there)
    assert len(found) == N
    assert found.users.tolist() == [2, 4, 5, 7, 9, 11, 30]
    asked = np.array([30, 4, 4, 11])
    place = [3, 0, 0, 5]
    for given in (asked, torch.from_numpy(asked)):
        for name, value in found.of(given).items():
            assert torch.equal(value, EVERY[name][place]), name
    assert found.names == {name: tuple(shape) for name, shape in NAMES.items()}
    assert found.pairs.tolist() == [3, 1, 7, 5, 2, 6, 4]
    assert torch.equal(found.losses[1], EVERY["loss_after"][[2, 0, 6, 4, 1, 5, 3]])
    assert all(torch.equal(found.start[name], START[name]) for name in START)
    assert found.terms == TERMS
    assert found.has(np.array([30, 3, 2])).tolist() == [True, False, True]
    with pytest.raises(
        CheckpointError, match="user row 3: has no teacher: there are 7, of other users -- make teachers"
    ):
        found.of(np.array([30, 3]))


def test_the_manifest_is_strict_json_and_says_what_it_should(there: Path) -> None:
    text = (there / "manifest.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert found["complete"] is True
    assert (found["n_users"], found["steps"], found["lr"], found["pairs"], found["n_query"]) == (N, 5, 0.3, 64, 2)
    assert [part["users"] for part in found["shards"]] == [3, 3, 1]
    assert found["loss_before"] == pytest.approx(2.5)
    assert found["loss_after"] == pytest.approx(float(EVERY["loss_after"].double().mean()))
    assert sum(part["fell"] for part in found["shards"]) == int((EVERY["loss_after"] < EVERY["loss_before"]).sum())
    assert (there / "shard-00002.safetensors").stat().st_size == found["shards"][2]["size"]


def test_sizes_and_means_are_those_of_the_products_written_out(there: Path) -> None:
    found = Teachers.open(there)
    product = SCALE * EVERY[B].double() @ EVERY[A].double()
    away = EVERY[BIAS].double() - START[BIAS].double()
    assert found.modules == ("w", BIAS)
    assert found.scales == {"w": SCALE}
    assert found.sizes["w"] == pytest.approx(float(product.square().sum((1, 2)).mean()), rel=1e-12)
    assert found.sizes[BIAS] == pytest.approx(float(away.square().sum(1).mean()), rel=1e-12)
    assert torch.allclose(found.mean("w"), product.mean(0).float(), rtol=1e-6, atol=1e-7)
    assert torch.allclose(found.mean(BIAS), away.mean(0).float(), rtol=1e-6, atol=1e-7)
    with pytest.raises(KeyError, match="the modules are w, bias"):
        found.mean(A)


def test_sizes_do_not_see_which_factors_a_product_has(tmp_path: Path) -> None:
    turn = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    sizes = []
    for number, r in enumerate((torch.eye(2, dtype=torch.float64), turn)):
        path = tmp_path / str(number)
        path.mkdir()
        writer = Writer(path, TERMS, START)
        for i in range(3):
            own = shard(i)
            writer.add(i, own | {A: r @ own[A].double(), B: own[B].double() @ torch.linalg.inv(r)})
        sizes.append((writer.finish().sizes["w"], writer.finish().mean("w")))
    assert sizes[0][0] == pytest.approx(sizes[1][0], rel=1e-10)
    assert torch.allclose(sizes[0][1], sizes[1][1])


@pytest.mark.parametrize("numbers", [(), (0,), (0, 1), (2, 0)])
def test_after_a_stop_what_is_whole_is_kept_and_the_end_is_the_same(
    numbers: tuple[int, ...], there: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stopped"
    made(path, numbers=numbers)
    with pytest.raises(CheckpointError) as caught:
        Teachers.open(path)
    assert f"{sum(len(shard(n)['user']) for n in numbers)} of 7 users: its making was interrupted" in str(caught.value)
    assert f"run `metarec teachers` with the same words and to={path} again" in str(caught.value)
    assert caught.value.exit_code == 4
    writer = Writer(path, TERMS, START)
    assert writer.missing == [n for n in (0, 1, 2) if n not in numbers]
    for number in writer.missing:
        writer.add(number, shard(number))
    writer.finish()
    assert contents(path) == contents(there)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_harmed_shard_alone_is_made_again(harm: Callable[[Path], None], there: Path) -> None:
    before = contents(there)
    harm(there / "shard-00001.safetensors")
    writer = Writer(there, TERMS, START)
    assert writer.missing == [1]
    assert not writer.was_finished
    writer.add(1, shard(1))
    writer.finish()
    assert contents(there) == before
    assert Writer(there, TERMS, START).was_finished


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (replace(TERMS, lr=0.1), "lr is 0.3 there, and 0.1 here"),
        (replace(TERMS, steps=9), "steps is 5 there, and 9 here"),
        (replace(TERMS, base_sha256="c" * 64), "base_sha256 is bbbbbbbbbbbb... there, and cccccccccccc... here"),
        (replace(TERMS, others={"seed": 2, "chunk": 3}), "others.seed is 1 there, and 2 here"),
        (replace(TERMS, others={"seed": 1}), "others.chunk is 3 there, and None here"),
    ],
)
def test_another_runs_teachers_are_not_gone_on_with(other: Terms, text: str, there: Path) -> None:
    before = contents(there)
    with pytest.raises(CheckpointError, match="another run's teachers") as caught:
        Writer(there, other, START)
    assert text in str(caught.value)
    assert str(caught.value).endswith("give another directory, to=DIR, or the words of that run")
    assert contents(there) == before
    assert different(TERMS, TERMS) is None
    assert other.key() != TERMS.key()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EnvironmentFault, match=r"thesis\.tex: the directory is not empty, and holds no teachers"):
        Writer(tmp_path, TERMS, START)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    writer = made(tmp_path / "t", numbers=(0,))
    bad = {name: value.clone() for name, value in shard(1).items()}
    bad[B][1, 2, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"w\.lora_b: user row 7: not finite.* -- lower algorithm\.teacher\.lr"):
        writer.add(1, bad)
    assert not (tmp_path / "t" / "shard-00001.safetensors").exists()


# --- damage: what is done to a finished directory, and words of the one line that tells it ---


def rewritten(path: Path, **changes: Any) -> None:
    """The manifest with other content, sealed as if it were meant so."""
    content = json.loads((path / "manifest.json").read_text())
    content.pop("sha256")
    (path / "manifest.json").write_bytes(sealed_bytes(content | changes, "manifest.json"))


def reshaped(path: Path, change: Callable[[Params], Params]) -> None:
    """A shard with other tensors, and a manifest that vouches for it."""
    data = save(change(load_file(path / "shard-00001.safetensors")))
    (path / "shard-00001.safetensors").write_bytes(data)
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    shards[1] |= digest(data)
    rewritten(path, shards=shards)


def as_text(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "missing: no directory of teachers -- make it by `metarec teachers to=DIR`"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json: no directory of teachers"),
    "no JSON": (lambda p: as_text(p, "{"), "manifest.json: damaged: no JSON"),
    "a run's manifest": (lambda p: as_text(p, '{"kind": "metarec-run"}'), f"manifest.json: damaged: not a {KIND}"),
    "a changed manifest": (
        lambda p: as_text(p, (p / "manifest.json").read_text().replace('"steps": 5', '"steps": 6')),
        "manifest.json: damaged: its content does not match its own SHA-256",
    ),
    "a later format": (lambda p: rewritten(p, format=2), "format 2: this metarec reads formats up to 1 -- update"),
    "no shapes": (lambda p: rewritten(p, names=[3]), "it does not say what teachers are"),
    "another product": (lambda p: rewritten(p, products={"w": [A, "x", 1]}), "what teachers are (products of x)"),
    "no steps": (lambda p: rewritten(p, steps=None), "it does not say what teachers are (steps None)"),
    "a path as a shard": (
        lambda p: rewritten(p, shards=[{"file": "../x", "users": 7, "size": 1, "sha256": ""}]),
        "it does not say what teachers are (shards or start are not described)",
    ),
    "not finished": (lambda p: rewritten(p, complete=False), "7 of 7 users: its making was interrupted"),
    "missing shard": (
        lambda p: (p / "shard-00002.safetensors").unlink(),
        "shard-00002.safetensors: missing: a shard of the teachers is not there",
    ),
    "truncated shard": (
        lambda p: cut(p / "shard-00001.safetensors"),
        "shard-00001.safetensors: damaged: 773 bytes where 780 are expected",
    ),
    "changed byte": (
        lambda p: flip(p / "shard-00001.safetensors"),
        "shard-00001.safetensors: damaged: its SHA-256 is not the one in its manifest",
    ),
    "changed start": (lambda p: flip(p / "start.safetensors"), "start.safetensors: damaged: its SHA-256 is not"),
    "no tensors": (
        lambda p: reshaped(p, lambda own: {}),
        "shard-00001.safetensors: bias: is not in the file, and the manifest names it",
    ),
    "another rank": (
        lambda p: reshaped(p, lambda own: own | {A: torch.zeros(3, 4, 4)}),
        "shard-00001.safetensors: w.lora_a [3, 4, 4]: the manifest says [3, 2, 4]",
    ),
    "an additional tensor": (
        lambda p: reshaped(p, lambda own: own | {"v.lora_a": torch.zeros(3, 2, 4)}),
        "shard-00001.safetensors: v.lora_a: is in the file, and the manifest does not name it",
    ),
    "not finite": (
        lambda p: reshaped(p, lambda own: own | {BIAS: torch.full((3, 3), torch.inf)}),
        "shard-00001.safetensors: bias: holds numbers that are not finite",
    ),
    "a user twice": (
        lambda p: reshaped(p, lambda own: own | {"user": torch.tensor([4, 31, 32])}),
        "user row 4: has two teachers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_with_file_value_reason_and_way_out(name: str, there: Path) -> None:
    harm, text = DAMAGE[name]
    harm(there)

    def used() -> None:
        found = Teachers.open(there)
        assert found.of(np.array([4]))
        assert found.sizes

    with pytest.raises(CheckpointError) as caught:
        used()
    line = str(caught.value)
    assert text in line
    assert str(there) in line
    assert " -- " in line
    assert "\n" not in line
    assert caught.value.exit_code == 4
    assert "use another checkpoint" not in line


OTHER = {name: value + 1 for name, value in START.items()}
MISFITS: dict[str, tuple[Terms, str]] = {
    "vocabulary": (replace(TERMS, vocabulary_sha256="x" * 64), "vocabulary vvvvvvvvvvvv: the dataset has another"),
    "data": (replace(TERMS, data_fingerprint="x" * 32), "data_fingerprint dddddddddddd: rows of users mean others"),
    "model": (
        replace(TERMS, base_sha256="x" * 64, names={**NAMES, A: [9, 9]}),
        "base bbbbbbbbbbbb: the run's frozen weights are xxxxxxxxxxxx: another model, or another seed of pretraining",
    ),
    "residual": (
        replace(TERMS, residual={"name": "context"}), "residual lora: the run has residual=context -- use residual=lora"
    ),
    "rank": (
        replace(TERMS, residual={**TERMS.residual, "rank": 4}),
        "rank 2: teachers have rank 2, residual.rank is 4 -- give residual.rank=2, or make teachers anew",
    ),
    "alpha": (
        replace(TERMS, residual={**TERMS.residual, "alpha": 16.0}),
        "alpha 3: teachers have alpha 3, residual.alpha is 16 -- give residual.alpha=3, or make",
    ),
    "scaling": (
        replace(TERMS, residual={**TERMS.residual, "scaling": "alpha/sqrt(r)"}),
        "teachers have scaling alpha/r, residual.scaling is alpha/sqrt(r) -- give residual.scaling=alpha/r",
    ),
    "missing": (
        replace(TERMS, names={**NAMES, "v.lora_a": [2, 4]}),
        "v.lora_a missing: teachers cover 3 of the 4 numbers that adapt in the run -- give the residual.targets",
    ),
    "unexpected": (
        replace(TERMS, names={A: NAMES[A], B: NAMES[B]}), "bias unexpected: nothing of that name adapts in the run"
    ),
    "shape": (replace(TERMS, names={**NAMES, BIAS: [4]}), "bias [3]: the run has [4]"),
    "scale": (replace(TERMS, products={"w": [A, B, 2.0]}), "w s 1.5: the run adds 2 B A to it"),
    "start": (replace(TERMS, start_sha256=weights_sha256(OTHER)), "start seed 1: users start from other numbers"),
    "query": (replace(TERMS, n_query=3), "n_query 2: the run has 3 query pairs a user -- give dataset.episodes.n_query=2"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_a_run_is_told_before_a_shard_is_read(name: str, there: Path) -> None:
    for entry in there.glob("shard-*"):
        entry.write_bytes(b"")
    wanted, text = MISFITS[name]
    with pytest.raises(CheckpointError) as caught:
        Teachers.open(there).check(wanted.tidy())
    line = str(caught.value)
    assert text in line
    assert str(there / "manifest.json") in line
    assert " -- " in line
    assert caught.value.exit_code == 4


def test_how_they_were_made_is_theirs_and_all_modules_are_covered(there: Path) -> None:
    other = replace(TERMS, steps=99, lr=9.0, pairs=3, n_users=4, others={})
    assert Teachers.open(there).check(other) == f"teachers of 7 users in {there}: 2 of 2 modules (100 %), 5 steps"


def test_a_digest_sees_names_types_shapes_and_every_bit() -> None:
    found = weights_sha256(START)
    assert weights_sha256(dict(reversed(START.items()))) == found
    other = {
        "bit": START | {BIAS: torch.nextafter(START[BIAS], torch.tensor(9.0))},
        "shape": START | {A: START[A].reshape(4, RANK)},
        "type": START | {B: START[B].double()},
        "name": {("x" if name == A else name): value for name, value in START.items()},
    }
    assert len({found, *(weights_sha256(value) for value in other.values())}) == 5
