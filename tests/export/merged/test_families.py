"""Bases of many families: merged tensor by tensor, or noticed not to be, they answer as tuned; so does the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.export.made import made_source, recipe_of, work_for
from tests.models.peft_side import answers, difference, load_plain
from tests.tiny import FAMILIES, build, byte_tokenizer
from tunesmith.export.adapter import write_adapter
from tunesmith.export.merged import write_merged

pytestmark = pytest.mark.filterwarnings("ignore")

MORE = ("mistral", "qwen2", "granite", "phi3", "olmo2", "gpt_neox", "qwen3_moe")
IN_MEMORY = ("gpt_neox", "qwen3_moe")
"""Whose tensors `transformers` renames, or joins, while it loads them."""


def tiny_model(family: str) -> Any:
    if family in FAMILIES:
        return build(family)
    from transformers import AutoConfig

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 256,
    }
    if family == "gpt_neox":
        sizes.pop("num_key_value_heads")
    if family == "qwen3_moe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_merged_and_adapter_answer_as_tuned(family, tmp_path):
    base = tmp_path / "base"
    tiny_model(family).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    source, tuned = made_source(tmp_path / "run", recipe_of(base, {}))

    merged = work_for(source, "merged", "own", tmp_path / "merged")
    facts = write_merged(merged)
    assert facts["way"] == ("in memory" if family in IN_MEMORY else "tensor by tensor"), facts
    model = AutoModelForCausalLM.from_pretrained(merged.staged, use_safetensors=True)
    assert difference(answers(model), tuned) < 1e-5
    plain = opened(base)
    assert difference(answers(plain), tuned) > 1e-3
    assert model.state_dict().keys() == plain.state_dict().keys()

    adapter = work_for(source, "adapter", "own", tmp_path / "adapter")
    write_adapter(adapter)
    assert difference(answers(load_plain(opened(base), adapter.staged)), tuned) < 1e-5


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
