"""What is read of a Hugging Face directory, and what is refused: each in one line that names it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.small_lms import ours, saved, theirs
from safetensors.torch import load_file, save_file

from metarec.core.weights import Params
from metarec.errors import CheckpointError, ConfigError, EnvironmentFault
from metarec.models import lm_files
from metarec.models.causal_lm import CausalLM


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(theirs("llama"), tmp_path / "model")


def read(directory: Path, **options: Any) -> Params:
    return ours(directory, **options).init(torch.Generator().manual_seed(0), torch.float64)


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the one file of tensors."""
    tensors = load_file(directory / lm_files.SINGLE)
    change(tensors)
    save_file(tensors, directory / lm_files.SINGLE, metadata={"format": "pt"})


def configure(directory: Path, **values: Any) -> None:
    path = directory / lm_files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_shards_are_one_file(directory: Path, tmp_path: Path) -> None:
    shards = saved(theirs("llama"), tmp_path / "shards", max_shard_size="6KB")
    assert len(list(shards.glob("*.safetensors"))) > 2 and (shards / lm_files.INDEX).is_file()
    whole, found = read(directory), read(shards)
    assert list(whole) == list(found) and all(torch.equal(whole[name], found[name]) for name in whole)
    reference = dict(theirs("llama").named_parameters())
    assert whole.keys() == reference.keys() and all(torch.equal(whole[n], v) for n, v in reference.items())


def test_a_matrix_of_gpt2_is_turned_there_and_back(tmp_path: Path) -> None:
    reference = theirs("gpt2")
    model = ours(saved(reference, tmp_path))
    params = model.init(torch.Generator().manual_seed(0), torch.float64)
    assert params["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    back = model.as_transformers(params)
    assert all(torch.equal(back[name], value) for name, value in reference.named_parameters())


def test_half_precision_and_the_names_of_a_body_alone(tmp_path: Path) -> None:
    reference = theirs("gpt2", dtype=torch.bfloat16)
    whole = read(saved(reference, tmp_path / "whole"))
    body = saved(reference.transformer, tmp_path / "body")  # "wte.weight", as the first GPT-2 was written
    edit(body, lambda tensors: tensors.update({"h.0.attn.bias": torch.ones(1, 1, 20, 20)}))  # its mask, passed over
    found = read(body)
    assert all(torch.equal(whole[name], found[name]) and found[name].dtype == torch.float64 for name in whole)


def test_a_pickle_is_refused(directory: Path) -> None:
    tensors = load_file(directory / lm_files.SINGLE)
    (directory / lm_files.SINGLE).unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"pytorch_model\.bin and no safetensors; only safetensors are read: no file can run"
    ):
        ours(directory)  # before anything is pretrained


def test_code_in_the_directory_is_refused_and_not_run(directory: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (directory / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\n")
    configure(directory, auto_map={"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"})
    with pytest.raises(ConfigError, match=r"model\.path: .*auto_map, which runs code of the directory"):
        ours(directory)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"model_type": "no_such_thing"}, "config.json is not understood"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder with a decoder, not a causal model"),
    ],
)
def test_configs_that_are_refused(values: dict[str, Any], line: str, directory: Path) -> None:
    configure(directory, **values)
    with pytest.raises(ConfigError, match=line):
        ours(directory)


def test_tensors_that_are_missing_too_many_or_of_another_shape(directory: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def refused(change: Callable[[dict[str, Any]], Any]) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        edit(copy, change)
        with pytest.raises(CheckpointError) as caught:
            read(copy)
        return str(caught.value)

    assert f"{name}: the directory has no such tensor" in refused(lambda t: t.pop(name))
    renamed = refused(lambda t: t.update({"model.layers.1.mlp.up.weight": t.pop(name)}))
    assert f"{name}: the directory has no such tensor (it has model.layers.1.mlp.up.weight)" in renamed
    assert "more.weight: a tensor that the model has no place for" in refused(
        lambda t: t.update({"more.weight": t[name][:1].clone()})
    )
    assert f"{name} [24, 15]: config.json says [24, 16]" in refused(lambda t: t.update({name: t[name][:, 1:].clone()}))


def test_a_tied_output_may_stand_in_the_file_if_it_is_equal(directory: Path) -> None:
    whole = read(directory)
    edit(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    found = read(directory)
    assert "lm_head.weight" not in found and all(torch.equal(whole[name], found[name]) for name in whole)
    edit(directory, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: the config ties it to model\.embed_tokens\.weight"):
        read(directory)


def test_files_that_are_damaged_or_do_not_fit_the_index(directory: Path, tmp_path: Path) -> None:
    shards = saved(theirs("llama"), tmp_path / "shards", max_shard_size="6KB")
    index = json.loads((shards / lm_files.INDEX).read_text())

    def refused(weight_map: Any, line: str) -> None:
        (shards / lm_files.INDEX).write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=line):
            read(shards)

    name, file = next(iter(index["weight_map"].items()))
    refused({}, "the index lists no tensors")
    refused(index["weight_map"] | {name: "../" + file}, "no name of a safetensors file beside the index")
    refused(index["weight_map"] | {name: "other.safetensors"}, "a file that the index names is not there")
    refused(index["weight_map"] | {"more": file}, "more: .*says that it is here, and it is not")
    refused({n: f for n, f in index["weight_map"].items() if n != name}, "does not say that it is here")
    (shards / lm_files.INDEX).unlink()
    with pytest.raises(ConfigError, match=r"\d safetensors files and no model\.safetensors\.index\.json"):
        read(shards)
    (directory / lm_files.SINGLE).write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="no safetensors, or damaged"):
        read(directory)


def test_what_is_no_directory_of_a_model(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no such directory .* did you mean {directory}\?"):
        ours(tmp_path / "modle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        ours(tmp_path / "empty")
    shutil.copy(directory / lm_files.CONFIG, tmp_path / "empty")
    with pytest.raises(ConfigError, match="it has no safetensors"):
        ours(tmp_path / "empty")
    (directory / lm_files.CONFIG).write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        ours(directory)


def test_a_model_that_is_too_small_for_the_data(directory: Path) -> None:
    with pytest.raises(ConfigError, match="the model has 23 tokens, the data set's tokenizer 24"):
        ours(directory, n_items=24)
    with pytest.raises(ConfigError, match=r"model\.max_len: 21: the model has 20 positions -- give 20 or less"):
        ours(directory, max_len=21)


def test_an_architecture_that_does_more_than_its_modules_say(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out with the weights in it: transformers' own logits are not ours. Planted here, as Granite has it."""
    import transformers.models.llama.modeling_llama as llama

    model, true = ours(directory), llama.LlamaForCausalLM.forward

    def scaled(self: Any, *given: Any, **more: Any) -> Any:
        found = true(self, *given, **more)
        found.logits = found.logits / 2
        return found

    monkeypatch.setattr(llama.LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ConfigError, match="logits by transformers differ from those here by"):
        model.init(torch.Generator().manual_seed(0))


def test_the_fingerprint_follows_the_files(directory: Path, tmp_path: Path) -> None:
    def found() -> str:
        model: CausalLM = ours(directory)
        return model.fingerprint

    first = found()
    assert found() == first
    edit(directory, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] + 1}))
    second = found()
    assert second != first
    configure(directory, rope_theta=5.0)
    assert found() not in (first, second)


def test_without_transformers_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    true = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else true(name, *more)
    )
    line = r"model: causal_lm: the package transformers is not installed -- pip install 'metarec\[lm\]'"
    with pytest.raises(EnvironmentFault, match=line):
        ours(directory)


def test_help_and_checks_of_options_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from metarec import cli; from metarec.config.overrides import check_words\n"
        "check_words('train', ['model=causal_lm', 'residual=lora', 'model.path=/nowhere'])\n"
        "try: cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
        "found = {'torch', 'transformers', 'tokenizers'} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
