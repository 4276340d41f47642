"""Adapter files against the peft package: what it loads of ours, what we read of its; and every file that is refused.

The model is a Llama of two layers, built here. The reference is the merged weight base + s B A, written by hand.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from metarec.errors import CheckpointError
from metarec.runs import adapters
from metarec.runs.adapters import Adapter, Factors

TARGETS = ("q_proj", "v_proj", "down_proj")
IDS = torch.tensor([[1, 5, 9, 2, 30, 7]])
EMPTY: dict[str, Tensor] = {}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=16, attn_implementation="eager")
    return GPT2LMHeadModel(config).eval()


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def ours(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """As metarec has them: every matrix [out, in], GPT-2's attention too."""
    return {name: shape[::-1] if "c_attn.weight" in name else shape for name, shape in shapes(model).items()}


def factors_of(model: torch.nn.Module, ends: tuple[str, ...], rank: int = 4) -> Factors:
    """Random factors of matrices [out, in]."""
    drawn = torch.Generator().manual_seed(7)
    return {
        name: (torch.randn(rank, shape[1], generator=drawn), torch.randn(shape[0], rank, generator=drawn))
        for name, shape in ours(model).items()
        if name.endswith(tuple(f"{end}.weight" for end in ends))
    }


def written(directory: Path, factors: Factors, adapter: Adapter, **options: Any) -> Path:
    directory.mkdir()
    for name, data in adapters.contents(factors, adapter, base="here", **options).items():
        (directory / name).write_bytes(data)
    return directory


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def merged_by_hand(model: Any, factors: Factors, scale: float) -> Tensor:
    state = model.state_dict()
    with torch.no_grad():
        for name, (a, b) in factors.items():
            update = scale * b @ a
            state[name] += update if state[name].shape == update.shape else update.T
    return logits(model)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_peft_loads_what_is_written(rslora: bool, scale: float, task_type: str | None, tmp_path: Path) -> None:
    factors = factors_of(llama(), TARGETS)
    assert len(factors) == 6
    adapter = Adapter(4, 6.0, rslora)
    assert adapter.scale == scale
    path = written(tmp_path / "a", factors, adapter, task_type=task_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a key it does not know, a missing factor
        loaded = peft.PeftModel.from_pretrained(llama(), str(path)).eval()
    assert loaded.active_peft_config.target_modules == {adapters.module_of(name) for name in factors}
    expected = merged_by_hand(llama(), factors, scale)
    assert float((logits(loaded) - expected).abs().max()) < 1e-5
    assert float((logits(llama()) - expected).abs().max()) > 0.1  # the update is no small thing
    assert float((merged_by_hand(llama(), factors, scale * 1.01) - expected).abs().max()) > 1e-3  # nor is its scale


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("form", ["ends", "regex"])
def test_what_peft_saves_is_read_equal(rslora: bool, form: str, tmp_path: Path) -> None:
    """Initialised by peft, moved by a step of an optimizer, saved: the very factors, and its logits by hand."""
    names: Any = list(TARGETS) if form == "ends" else r".*\.(q_proj|v_proj|down_proj)"
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = peft.get_peft_model(llama(), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "a", save_embedding_layers=False)
    adapter, factors = adapters.read(tmp_path / "a", shapes(llama()))
    assert (adapter.rank, adapter.alpha, adapter.rslora) == (3, 5.0, rslora)
    held = dict(model.named_parameters())
    assert list(factors) == list(factors_of(llama(), TARGETS))  # the model's order
    for name, (a, b) in factors.items():
        module = f"base_model.model.{adapters.module_of(name)}"
        assert torch.equal(a, held[f"{module}.lora_A.default.weight"])
        assert torch.equal(b, held[f"{module}.lora_B.default.weight"])
        assert float(b.abs().max()) > 0.01
    assert float((merged_by_hand(llama(), factors, adapter.scale) - logits(model)).abs().max()) < 1e-5


def test_matrices_that_transformers_stores_in_out(tmp_path: Path) -> None:
    """GPT-2's: what peft makes of our file is base + (s B A)^T in the shape that is stored, and of its file ours."""
    turned = [name for name, shape in shapes(gpt2()).items() if name.endswith("c_attn.weight") and shape == (16, 48)]
    factors = factors_of(gpt2(), ("c_attn",))
    assert list(factors) == turned
    path = written(tmp_path / "a", factors, Adapter(4, 6.0, False), turned=turned)
    assert json.loads((path / adapters.CONFIG).read_text())["fan_in_fan_out"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(gpt2(), str(path)).eval()
    assert float((logits(loaded) - merged_by_hand(gpt2(), factors, 1.5)).abs().max()) < 1e-5
    loaded.save_pretrained(tmp_path / "b", save_embedding_layers=False)  # which it would ask the network about
    adapter, again = adapters.read(tmp_path / "b", ours(gpt2()), turned=turned)
    assert adapter.fan_in_fan_out
    assert all(torch.equal(x, y) for name in factors for x, y in zip(factors[name], again[name], strict=True))
    with pytest.raises(CheckpointError, match=r"lora_A \[4, 16\]: \[4, 48\] is needed"):
        adapters.read(path, shapes(gpt2()))


def test_the_flag_is_held_against_the_model(tmp_path: Path) -> None:
    """Of a square matrix the shapes say nothing: the flag alone tells, and is held against the model."""
    factors = {"w.weight": (torch.ones(2, 5), torch.ones(5, 2))}
    path = written(tmp_path / "a", factors, Adapter(2, 1.0, False), turned=["w.weight"])
    assert adapters.read(path, {"w.weight": (5, 5)}, turned=["w.weight"])[1].keys() == factors.keys()
    with pytest.raises(CheckpointError, match="fan_in_fan_out true: transformers stores none of these matrices"):
        adapters.read(path, {"w.weight": (5, 5)})


def test_names_that_are_no_modules_come_back(tmp_path: Path) -> None:
    """metarec's own: a weight whose name does not end in .weight stands under it."""
    factors = {
        "gru.weight_ih_l0": (torch.randn(2, 4), torch.randn(15, 2)),
        "fc.weight": (torch.randn(2, 5), torch.randn(6, 2)),
    }
    path = written(tmp_path / "a", factors, Adapter(2, 3.5, True))
    adapter, found = adapters.read(path, {"fc.weight": (6, 5), "gru.weight_ih_l0": (15, 4), "fc.bias": (6,)})
    assert adapter == Adapter(2, 3.5, True, False, ("fc", "gru.weight_ih_l0"))
    assert list(found) == ["fc.weight", "gru.weight_ih_l0"]
    assert all(torch.equal(x, y) for name in factors for x, y in zip(factors[name], found[name], strict=True))
    both = {"w": factors["fc.weight"], "w.weight": factors["fc.weight"]}
    with pytest.raises(ValueError, match="another weight has the module's name w"):
        adapters.contents(both, adapter, base="")


# What is refused


SHAPES = {"x.weight": (6, 5), "y.weight": (4, 4), "z.weight": (3,)}
PLAIN = {"x.weight": (torch.ones(2, 5), torch.ones(6, 2)), "y.weight": (torch.ones(2, 4), torch.ones(4, 2))}
X_A, X_B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"


def changed(path: Path, tensors: dict[str, Tensor | None] = EMPTY, **keys: Any) -> None:  # type: ignore[assignment]
    """Tensors put in, or with None taken out, and keys of the configuration set."""
    held = load_file(path / adapters.WEIGHTS) | {n: v for n, v in tensors.items() if v is not None}
    save_file({n: v for n, v in held.items() if tensors.get(n, v) is not None}, path / adapters.WEIGHTS)
    config = json.loads((path / adapters.CONFIG).read_text())
    (path / adapters.CONFIG).write_text(json.dumps(config | keys))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda p: changed(p, {"base_model.model.xx.lora_A.weight": torch.ones(2, 5),
                               "base_model.model.xx.lora_B.weight": torch.ones(6, 2)}, target_modules="all-linear"),
         r"xx: the model has no such module -- did you mean x\?"),
        (lambda p: changed(p, {"base_model.model.z.lora_A.weight": torch.ones(2, 1),
                               "base_model.model.z.lora_B.weight": torch.ones(3, 2)}, target_modules=None),
         r"z\.weight \[3\] is no matrix"),
        (lambda p: changed(p, {X_A: None, X_B: None}), "x: missing: target_modules of adapter_config.json lists it"),
        (lambda p: changed(p, target_modules=["x"]), r"y: target_modules of adapter_config\.json does not list it"),
        (lambda p: changed(p, {X_B: None}), r"x\.lora_B\.weight: missing: a module has two factors"),
        (lambda p: changed(p, {X_A: torch.ones(2, 6)}), r"x\.lora_A \[2, 6\]: \[2, 5\] is needed, for x\.weight \[6, 5\]"),
        (lambda p: changed(p, r=3), r"lora_A \[2, .*at r = 3"),
        (lambda p: changed(p, {X_A: torch.full((2, 5), torch.nan)}), r"x\.lora_A: not finite numbers"),
        (lambda p: changed(p, {X_A: torch.ones(2, 5, dtype=torch.long)}), r"x\.lora_A: not finite numbers"),
        (lambda p: changed(p, {"base_model.model.x.lora_embedding_A": torch.ones(2, 5)}), "lora_embedding_A: an unexpected"),
        (lambda p: changed(p, {"x.lora_A.weight": torch.ones(2, 5)}), r"x\.lora_A\.weight: an unexpected tensor"),
        (lambda p: changed(p, peft_type="IA3"), "peft_type 'IA3': only LORA is read"),
        (lambda p: changed(p, use_dora=True), "use_dora True: means more than s"),
        (lambda p: changed(p, bias="all"), "bias 'all': means more"),
        (lambda p: changed(p, rank_pattern={"x": 4}), "rank_pattern .* means more"),
        (lambda p: changed(p, modules_to_save=["z"]), "modules_to_save .* means more"),
        (lambda p: changed(p, init_lora_weights="pissa_niter_4"), "pissa_niter_4.* base weights were moved"),
        (lambda p: changed(p, r="2"), "r '2': the rank is a whole number"),
        (lambda p: changed(p, lora_alpha=0), "lora_alpha 0: a number above 0"),
        (lambda p: changed(p, use_rslora="yes"), "use_rslora 'yes': true or false"),
        (lambda p: (p / adapters.CONFIG).write_text("{"), r"adapter_config\.json: no JSON"),
        (lambda p: (p / adapters.CONFIG).write_text("[]"), r"adapter_config\.json: list: no JSON object"),
        (lambda p: (p / adapters.CONFIG).unlink(), r"adapter_config\.json: missing"),
        (lambda p: (p / adapters.WEIGHTS).unlink(), r"adapter_model\.safetensors: missing"),
        (lambda p: (p / adapters.WEIGHTS).write_bytes(b"nothing"), "no safetensors"),
        (lambda p: (p / adapters.WEIGHTS).rename(p / adapters.PICKLE), r"adapter_model\.bin: a pickle, which can run code"),
        (lambda p: shutil.rmtree(p), "missing: no such adapter"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(fault: Any, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a", PLAIN, Adapter(2, 4.0, False))
    assert adapters.read(path, SHAPES)[1].keys() == PLAIN.keys()
    fault(path)
    with pytest.raises(CheckpointError, match=says) as refused:
        adapters.read(path, SHAPES)
    assert len(str(refused.value).splitlines()) == 1
    assert "a" in refused.value.where


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """By its own path, too; nothing of it is read."""
    (tmp_path / adapters.PICKLE).write_bytes(b"\x80\x04cos\nsystem\n")
    for path in (tmp_path, tmp_path / adapters.PICKLE):
        with pytest.raises(CheckpointError, match="a pickle"):
            adapters.read(path, SHAPES)
