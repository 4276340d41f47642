"""Hostile checkpoints, runs, adapters, teachers and models as a table: how each is made, and the command that meets it.

`make(run, folder)` changes a copy of a finished run, or makes something beside it, and returns the words of the command;
`folder / "MARK"` is what a success would make, and `folder / "outside"` what no path may lead to. All are refused in one
line with one of `codes`, and nothing runs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from reliability import hostile_making as h

from metarec.runs.checkpoint import MANIFEST, STATE, TENSORS
from metarec.runs.manifest import digest_file, sealed_bytes

Make = Callable[[Path, Path], list[str]]


@dataclass(frozen=True)
class Hostile:
    """A hostile file, the words that meet it, and the exit codes of its refusal."""

    name: str
    make: Make
    codes: tuple[int, ...] = (4,)
    parts: tuple[str, ...] = ()


def of_run(change: Callable[[Path, Path], Any], verb: str = "eval") -> Make:
    """A changed run, met by `metarec eval ckpt=RUN` or another verb."""
    words = {
        "eval": "ckpt={}", "train": "resume={}", "warm": "warm_start={}", "compare": "{}", "report": "{}", "export": "ckpt={}",
    }  # fmt: skip

    def make(run: Path, folder: Path) -> list[str]:
        change(run, folder)
        return ["train" if verb == "warm" else verb, words[verb].format(run)]

    return make


def state(change: Callable[[dict[str, Any]], Any]) -> Make:
    """A changed state of the best checkpoint."""
    return of_run(lambda run, folder: h.state(run, change))


def put(keys: str, value: Any) -> Make:
    """A value put into the state at dotted keys."""

    def change(found: dict[str, Any]) -> None:
        *path, last = keys.split(".")
        for key in path:
            found = found[key]
        found[last] = value

    return state(change)


def legacy(content: Callable[[Path], bytes], name: str = "m.pt") -> Make:
    """A PyTorch file of these bytes, met by `metarec train warm_start=FILE`."""

    def make(run: Path, folder: Path) -> list[str]:
        (folder / name).write_bytes(content(folder / "MARK"))
        return ["train", f"warm_start={folder / name}"]

    return make


def special(kind: str) -> Make:
    """A PyTorch file that is a FIFO, a link to a device, a directory."""

    def make(run: Path, folder: Path) -> list[str]:
        path = folder / "m.pt"
        {"fifo": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "directory": Path.mkdir}[kind](path)
        return ["train", f"warm_start={path}"]

    return make


def pointer(name: str) -> Make:
    """best.json names this."""
    return of_run(lambda run, folder: h.sealed(run / "checkpoints/best.json", lambda c: c | {"checkpoint": name}))


def moved_out(inside: str, verb: str = "eval") -> Make:
    """A file or directory of the run put outside, and a link in its place."""

    def change(run: Path, folder: Path) -> None:
        path = h.best(run) / inside if inside in (TENSORS, STATE, MANIFEST) else run / inside
        target = folder / "outside" / "moved"
        shutil.move(path, target)
        path.symlink_to(target)

    return of_run(change, verb)


def link(name: str, target: str, verb: str = "train") -> Make:
    """A link in an unfinished run, of this name."""

    def change(run: Path, folder: Path) -> None:
        (run / "manifest.json").unlink()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target.replace("OUTSIDE", str(folder / "outside")))

    return of_run(change, verb)


def pipe(name: str) -> Make:
    """A FIFO in an unfinished run."""

    def change(run: Path, folder: Path) -> None:
        (run / "manifest.json").unlink()
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return of_run(change, "train")


def listed(name: str) -> Make:
    """The manifest of a finished run lists this file as well."""

    def change(run: Path, folder: Path) -> None:
        h.sealed(run / "manifest.json", lambda c: c | {"files": c["files"] | {name: {"size": 1, "sha256": "0" * 64}}})

    return of_run(change, "report")


def config_yaml(change: Callable[[str], str]) -> Make:
    """The stored configuration of an unfinished run changed, met by resume."""

    def make(run: Path, folder: Path) -> None:
        (run / "manifest.json").unlink()
        path = run / "config.yaml"
        path.write_text(change(path.read_text()).replace("MARK", str(folder / "MARK")))
        h.sealed(run / "card.json", lambda c: c | {"files": c["files"] | {path.name: digest_file(path)}})

    return of_run(make, "train")


LORA = ["algorithm=fomaml", "residual=lora"]


def adapter(change: Callable[[Path, Path], Any]) -> Make:
    """A directory of an adapter, met by residual.adapter."""

    def make(run: Path, folder: Path) -> list[str]:
        at = folder / "adapter"
        at.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"], "bias": "none"}
        (at / "adapter_config.json").write_text(json.dumps(config))
        (at / "adapter_model.safetensors").write_bytes(h.safetensors({}))
        change(at, folder)
        return ["train", *LORA, f"residual.adapter={at}"]

    return make


def teachers(change: Callable[[dict[str, Any], Path], dict[str, Any]], link_to: str | None = None) -> Make:
    """A directory of teachers whose sealed manifest is changed, met by a generator."""

    def make(run: Path, folder: Path) -> list[str]:
        at = folder / "teachers"
        at.mkdir()
        empty = {"size": 8, "sha256": "0" * 64}
        content = {
            "kind": "metarec-teachers", "format": 1, "metarec": "0.1.0", "vocabulary_sha256": "0", "data_fingerprint": "0",
            "base_sha256": "0", "start_sha256": "0", "residual": {"name": "lora"}, "names": {"a": [2, 2]}, "products": {},
            "steps": 1, "lr": 0.1, "pairs": 5, "n_query": 1, "n_users": 2, "shard_users": 2, "others": {}, "start": empty,
            "shards": [{"file": "shard-00000.safetensors", "users": 2, **empty}], "complete": True,
        }  # fmt: skip
        (at / "manifest.json").write_bytes(sealed_bytes(change(content, folder), "x"))
        if link_to is not None:
            (at / "shard-00000.safetensors").symlink_to(link_to)
        return [
            "train",
            "algorithm=generator",
            "residual=lora",
            "schedule=constant",
            "algorithm.loss.delta_w=1",
            f"algorithm.teacher.path={at}",
        ]

    return make


def search(change: Callable[[dict[str, Any], Path], Any]) -> Make:
    """A directory of a search, met by resume."""

    def make(run: Path, folder: Path) -> list[str]:
        at = folder / "search"
        at.mkdir()
        content = {"format": 1, "options": {}, "words": [], "drawn": ["optimizer.lr=1e-3,1e-2"], "config_dir": None}
        change(content, folder)
        (at / "search.json").write_text(json.dumps(content))
        return ["train", f"resume={at}"]

    return make


def causal_lm(change: Callable[[Path, Path], Any]) -> Make:
    """A directory of a language model."""

    def make(run: Path, folder: Path) -> list[str]:
        at = folder / "lm"
        at.mkdir()
        config = {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 1,
            "vocab_size": 30, "n_positions": 64,
        }  # fmt: skip
        (at / "config.json").write_text(json.dumps(config))
        change(at, folder)
        return ["train", "model=causal_lm", f"model.path={at}", "algorithm=fomaml", "residual=lora"]

    return make


def edited(at: Path, **keys: Any) -> None:
    """config.json of a language model with further keys."""
    (at / "config.json").write_text(json.dumps(json.loads((at / "config.json").read_text()) | keys))


def _omniglot(run: Path, folder: Path) -> list[str]:
    at = folder / "omniglot"
    at.mkdir()
    held = np.empty(2, object)
    held[:] = [h.Runs(folder / "MARK"), 1]
    np.savez(at / "omniglot28.npz", images_packed=held, class_id=held, drawer=held)
    pq.write_table(pa.table({"class_id": [0], "vinyals_split": ["train"]}), at / "classes.parquet")
    return ["train", "dataset=omniglot", "model=conv4", f"dataset.path={at}"]


def _extension(run: Path, folder: Path) -> list[str]:
    evil = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": h.evil(folder / "MARK")}
    field = pa.field("user_id", pa.int64(), metadata=evil)
    schema = pa.schema([field, pa.field("item_id", pa.int64()), pa.field("timestamp", pa.int64())])
    pq.write_table(pa.table([[1, 2], [1, 2], [-1, 2]], schema=schema), folder / "log.parquet")
    return ["prepare", "dataset=events", f"dataset.path={folder / 'log.parquet'}"]


def _object_array(mark: Path) -> bytes:
    held = np.empty(1, object)
    held[0] = h.Runs(mark)
    return h.saved({"w": held})


def _script(mark: Path) -> bytes:
    import io

    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


DEEP = b"[" * 200_000
NESTED = b"[" * 600 + b"]" * 600  # read by Python, and too deep for whatever walks it
FORMS = (2, 3, 4)
LEGACY = [
    Hostile("a .pt that runs", legacy(lambda mark: h.saved({"w": h.Runs(mark)}))),
    Hostile("a .pth that runs, in state_dict", legacy(lambda mark: h.saved({"state_dict": {"w": h.Runs(mark)}}), "m.pth")),
    Hostile("a bare pickle called .pt", legacy(h.evil)),
    Hostile("a .pt of the first format that runs",
            legacy(lambda mark: h.saved({"w": h.Runs(mark)}, _use_new_zipfile_serialization=False))),
    Hostile("a .pt whose data.pkl is any pickle", legacy(lambda mark: h.archive({"m/data.pkl": h.evil(mark), "m/version": b"3"}))),
    Hostile("a .pt of pickled numpy objects", legacy(_object_array)),
    Hostile("a .pt of TorchScript", legacy(_script)),
    Hostile("a whole module", legacy(lambda mark: h.saved(torch.nn.Linear(2, 2)))),
    Hostile("a .pt of ten compressed gigabytes", legacy(lambda mark: h.archive({"m/data/0": bytes(20_000_000)}, 8)),
            parts=("compressed",)),
    Hostile("a .pt of overlapping entries", legacy(lambda mark: h.overlapping(h.saved({"w": torch.ones(10, 10)})))),
    Hostile("a .pt that claims 2^40 numbers", legacy(lambda mark: h.huge(h.saved({"w": torch.ones(10, 10)})))),
    Hostile("a .pt of a stride of 0", legacy(lambda mark: h.saved({"w": torch.ones(1).expand(2**40)})), parts=("larger than",)),
    Hostile("a .pt of deep nesting", legacy(lambda mark: h.archive({"m/data.pkl": b"]" * 1 + b"(" * 500_000 + b".", "m/version": b"3"}))),
    Hostile("a .pt of another model", legacy(lambda mark: h.saved({"w": torch.ones(3)})), parts=("no such tensor",)),
    Hostile("a .pt that is a FIFO", special("fifo"), FORMS),
    Hostile("a .pt that is a device", special("device"), FORMS),
    Hostile("a .pt that is a directory", special("directory"), FORMS),
]  # fmt: skip
CHECKPOINTS = [
    Hostile("tensors that are a pickle", of_run(lambda r, f: h.replaced(r, TENSORS, h.evil(f / "MARK")))),
    Hostile("a state that is a pickle", of_run(lambda r, f: h.replaced(r, STATE, h.evil(f / "MARK")))),
    Hostile("tensors that torch.save wrote", of_run(lambda r, f: h.replaced(r, TENSORS, h.saved({"w": h.Runs(f / "MARK")})))),
    Hostile("a manifest that is a pickle", of_run(lambda r, f: (h.best(r) / MANIFEST).write_bytes(h.evil(f / "MARK")))),
    Hostile("a pointer that is a pickle", of_run(lambda r, f: (r / "checkpoints/best.json").write_bytes(h.evil(f / "MARK")))),
    Hostile("a header of 2^60 bytes", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors({}, length=2**60)))),
    Hostile("a shape of 2^40 numbers", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors(
        {"base/fc.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}})))),
    Hostile("a shape beyond 64 bits", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors(
        {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"1234")))),
    Hostile("offsets that overlap", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"1234")))),
    Hostile("a header without end", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors(DEEP)))),
    Hostile("no tensor at all", of_run(lambda r, f: h.replaced(r, TENSORS, h.safetensors({})))),
    Hostile("JSON without end", of_run(lambda r, f: h.replaced(r, STATE, DEEP))),
    Hostile("a state of lists within lists", of_run(lambda r, f: h.replaced(r, STATE, b'{"config": ' + NESTED + b"}")), parts=("nested",)),
    Hostile("a list for a state", of_run(lambda r, f: h.replaced(r, STATE, b"[1]"))),
    Hostile("NaN for a figure", of_run(lambda r, f: h.replaced(r, STATE, (h.best(r) / STATE).read_bytes().replace(
        b'"best_value": ', b'"best_value": NaN, "x": ')))),
    Hostile("a model that names a class", put("config.model.name", "os.system"), FORMS),
    Hostile("a residual by a path", put("config.residual.name", "../../evil"), FORMS),
    Hostile("an algorithm by a module", put("config.algorithm.name", "metarec.cli"), FORMS),
    Hostile("_target_ in a model", put("config.model._target_", "os.mkdir"), FORMS),
    Hostile("an environment variable for a seed", put("config.seed", "${oc.env:HOME}"), FORMS),
    Hostile("a width beyond memory", put("config.model.hidden_dim", 2**40), FORMS),
    Hostile("no control", state(lambda found: found.pop("control") and None)),
    Hostile("a control of other keys", put("control", {"__class__": "os.system"})),
    Hostile("text for progress", put("progress", "os.system"), parts=("progress",)),
    Hostile("a class for a step", put("progress.step", {"_target_": "os.mkdir"}), parts=("progress.step",)),
    Hostile("no configuration", put("config", None)),
    Hostile("a pointer that leads up", pointer("../../outside")),
    Hostile("a pointer to the root", pointer("/etc/passwd")),
    Hostile("a pointer to a hidden name", pointer("..")),
    Hostile("a pointer that is no text", pointer({"_target_": "os.mkdir"})),  # type: ignore[arg-type]
    Hostile("tensors outside, behind a link", moved_out(TENSORS)),
    Hostile("a state outside, behind a link", moved_out(STATE)),
    Hostile("a manifest outside, behind a link", moved_out(MANIFEST)),
    Hostile("checkpoints outside, behind a link", moved_out("checkpoints")),
    Hostile("a warm start from such a run", of_run(lambda r, f: h.state(r, lambda s: s["config"]["residual"].update(
        name="os.system")), "warm"), FORMS),
]  # fmt: skip
RUNS = [
    Hostile("a manifest that lists /etc/passwd", listed("/etc/passwd")),
    Hostile("a manifest that leads up", listed("../outside/secret.yaml")),
    Hostile("figures outside, behind a link", moved_out("metrics.json", "report")),
    Hostile("figures that are a pickle", of_run(lambda r, f: ((r / "metrics.json").write_bytes(h.evil(f / "MARK")), h.reseal(r)),
        "report"), FORMS),
    Hostile("figures that are a list", of_run(lambda r, f: ((r / "metrics.json").write_text("[1]"), h.reseal(r)), "report")),
    Hostile("per-user figures that are a pickle", of_run(lambda r, f: (
        (r / "per_user.parquet").write_bytes(h.evil(f / "MARK")), h.reseal(r)), "compare"), FORMS),
    Hostile("a history that writes elsewhere", link("history.jsonl", "OUTSIDE/secret.yaml")),
    Hostile("a lock that empties another file", link(".lock", "OUTSIDE/secret.yaml")),
    Hostile("a configuration that is a device", link("config.yaml", "/dev/zero"), FORMS),
    Hostile("a configuration that is a FIFO", pipe("config.yaml"), FORMS),
    Hostile("a history that is a FIFO", pipe("history.jsonl")),
    Hostile("python tags in the stored configuration", config_yaml(lambda t: t + "x: !!python/object/apply:os.mkdir [MARK]\n"), (2,)),
    Hostile("_target_ in the stored configuration", config_yaml(lambda t: t + "_target_: os.mkdir\npath: MARK\n"), (2,)),
    Hostile("callbacks in the stored configuration", config_yaml(
        lambda t: t + "hydra: {callbacks: {x: {_target_: os.mkdir, path: MARK}}}\n"), (2,)),
    Hostile("a billion laughs in the stored configuration", config_yaml(lambda t: t + "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))), (2,)),
    Hostile("a class in the stored configuration", config_yaml(lambda t: t.replace("name: fomaml", "name: os.system")), (2,)),
    Hostile("a search with a callback", search(lambda c, f: c["words"].append(
        f"+hydra.callbacks.x={{_target_: os.mkdir, path: {f / 'MARK'}}}")), (2,)),
    Hostile("a search of a package", search(lambda c, f: c["words"].append("hydra.searchpath=[pkg://antigravity]")), (2,)),
    Hostile("a search with a launcher", search(lambda c, f: c["words"].append("hydra.launcher._target_=os.mkdir")), (2,)),
    Hostile("a search that is a list", search(lambda c, f: c.update(words=5)), FORMS),
]  # fmt: skip
OTHERS = [
    Hostile("an adapter that is a pickle", adapter(lambda at, f: (
        (at / "adapter_model.safetensors").unlink(), (at / "adapter_model.bin").write_bytes(h.evil(f / "MARK"))))),
    Hostile("an adapter's weights that are a pickle", adapter(
        lambda at, f: (at / "adapter_model.safetensors").write_bytes(h.evil(f / "MARK")))),
    Hostile("an adapter's configuration without end", adapter(lambda at, f: (at / "adapter_config.json").write_bytes(DEEP))),
    Hostile("an adapter's configuration that leads out", adapter(lambda at, f: (
        (at / "adapter_config.json").unlink(), (at / "adapter_config.json").symlink_to("/etc/passwd")))),
    Hostile("an adapter's weights that lead out", adapter(lambda at, f: (
        (at / "adapter_model.safetensors").unlink(), (at / "adapter_model.safetensors").symlink_to("/etc/passwd")))),
    Hostile("an adapter of another kind that names a class", adapter(
        lambda at, f: (at / "adapter_config.json").write_text('{"peft_type": "os.system", "r": 2}'))),
    Hostile("teachers whose shard leads up", teachers(lambda c, f: c | {"shards": [
        {**c["shards"][0], "file": "../outside/secret.yaml"}]})),
    Hostile("teachers whose shard is at the root", teachers(lambda c, f: c | {"shards": [{**c["shards"][0], "file": "/etc/passwd"}]})),
    Hostile("teachers whose shard is a link", teachers(lambda c, f: c, "/etc/passwd")),
    Hostile("teachers of no end", teachers(lambda c, f: c | {"n_users": 10**15, "names": {"a": [10**9, 10**9]}})),
    Hostile("teachers that are no mapping", teachers(lambda c, f: c | {"names": ["os.system"]})),
    Hostile("a language model with code of its own", causal_lm(lambda at, f: (
        edited(at, auto_map={"AutoModelForCausalLM": "evil.Evil"}), (at / "evil.py").write_text(f"import os\nos.mkdir({str(f / 'MARK')!r})"))), (2, 4)),
    Hostile("a language model of pickles", causal_lm(lambda at, f: (at / "pytorch_model.bin").write_bytes(h.evil(f / "MARK"))), (2, 4)),
    Hostile("a language model whose index leads up", causal_lm(lambda at, f: (at / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../outside/x.safetensors"}}))), (2, 4)),
    Hostile("a language model whose weights lead out", causal_lm(lambda at, f: (at / "model.safetensors").symlink_to("/etc/passwd")), (2, 4)),
    Hostile("a language model of a kind that names a module", causal_lm(lambda at, f: edited(at, model_type="os.system")), (2, 4)),
    Hostile("images that are pickled objects", _omniglot, FORMS),
    Hostile("an extension type that is a pickle", _extension, (3,), ("timestamp",)),
]  # fmt: skip
ALL = [*LEGACY, *CHECKPOINTS, *RUNS, *OTHERS]
