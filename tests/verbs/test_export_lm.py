"""A language model's adapter, trained here on text tasks, put under the same directory's model by transformers and peft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from reference.tiny_runs import Work, tensors
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from metarec import cli

SIZES = {
    "llama": LlamaConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=48,
    ),
    "gpt2": GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=48),
}  # fmt: skip
TARGETS = {"llama": "[*q_proj*,*down_proj*]", "gpt2": "[*c_attn*]"}
IDS = torch.randint(0, 259, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", SIZES)
def test_peft_puts_it_under_the_model_that_it_was_made_for(kind: str, work: Work, tmp_path: Path) -> None:
    """Logits of base + adapter by peft are those of the merged weights that the same export writes; users differ."""
    torch.manual_seed(4)
    directory = tmp_path / "base"
    AutoModelForCausalLM.from_config(SIZES[kind]).save_pretrained(directory)
    words = [
        "dataset=prompts", "dataset.prompts.n_examples=12", "dataset.prompts.n_support=2", "dataset.prompts.n_query=2",
        "dataset.prompts.n_episodes=1", "model=causal_lm", f"model.path={directory}", "model.max_len=48", "residual=lora",
        "residual.rank=2", f"residual.targets={TARGETS[kind]}", "algorithm=fomaml", "algorithm.inner.lr=0.5",
        "algorithm.inner.steps=2", "train.steps=2", "train.eval_every=1", "train.meta_batch_size=2", "optimizer.lr=0.05",
        "warm_start=none", "evaluation.panel=none", "evaluation.control.lrs=[0.01]", "evaluation.control.steps=[1]",
        "evaluation.control.users=2", "evaluation.bootstrap=5", "hardware=cpu", "logger.console=quiet", "logger.plots=false",
        "train.patience=0",
    ]  # fmt: skip
    assert work.main("train", *words) == 0
    (run,) = work.directories("train")
    names = sorted(json.loads((run / "metrics.json").read_text())["metrics"])
    assert "fewshot" in names
    import pyarrow.parquet as pq

    user = pq.read_table(run / "per_user.parquet").column("user_id").to_pylist()[0]
    for to, more in (("adapter", []), ("whole", ["merge=true"])):
        assert cli.main(["export", f"ckpt={run}", f"to={tmp_path / to}", f"users=[{user}]", f"cache_dir={work.cache}",
                         *more]) == 0  # fmt: skip

    def by_peft(at: Path) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            base = AutoModelForCausalLM.from_pretrained(directory)
            model: Any = peft.PeftModel.from_pretrained(base, str(at)).eval()
        with torch.no_grad():
            found: torch.Tensor = model(IDS).logits
        return found

    def by_hand(at: Path) -> torch.Tensor:
        from safetensors.torch import load_file

        weights = load_file(str(at / "model.safetensors"))
        model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
        state = model.state_dict()
        for name, value in weights.items():
            state[name].copy_(value)
        with torch.no_grad():
            found: torch.Tensor = model(IDS).logits
        return found

    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["task_type"], adapter["fan_in_fan_out"]) == ("CAUSAL_LM", kind == "gpt2")
    assert adapter["base_model_name_or_path"] == str(directory)
    own = Path("users") / user
    for at in (Path(), own):
        assert float((by_peft(tmp_path / "adapter" / at) - by_hand(tmp_path / "whole" / at)).abs().max()) < 1e-5
    assert float((by_peft(tmp_path / "adapter") - by_peft(tmp_path / "adapter" / own)).abs().max()) > 1e-4
    assert any(name.startswith("base/") for name in tensors(run, "best"))
