"""Small models with random weights in the shapes of published families, each with a tokenizer and a template of its
family's kind, and runs that tuned them: short, but learnt from rows and scored on a frozen test set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.export.gguf.tokenizers_made import BYTE_LEVEL, sentence_piece
from tunesmith.models.artifact import Target
from tunesmith.pipeline import run
from tunesmith.recipe import Recipe
from tunesmith.runs import RunFolder

_TURNS = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
_SIZES: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
    "tie_word_embeddings": True,
}
_GEMMA3 = {
    "head_dim": 256,
    "sliding_window": 64,
    "num_hidden_layers": 6,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"],
    "query_pre_attn_scalar": 256,
}


@dataclass(frozen=True)
class Family:
    """A shape: `kind` is its name in `transformers`, `more` what is its own, and how it is asked."""

    kind: str
    tokenizer: Callable[[], Any]
    template: str
    more: Mapping[str, Any] = field(default_factory=dict)


def _pieces() -> Any:
    return sentence_piece(apart=True)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", BYTE_LEVEL["llama-bpe"], _TURNS, {"tie_word_embeddings": True}),
    "qwen3": Family("qwen3", BYTE_LEVEL["qwen2"], _TURNS, {"head_dim": 128, "tie_word_embeddings": True}),
    "mistral": Family("mistral", _pieces, _BRACKETS, {"sliding_window": None}),
    "granite": Family("granite", BYTE_LEVEL["gpt-2"], _TURNS, _GRANITE),
    "gemma3": Family("gemma3_text", lambda: sentence_piece(prefix=False, apart=True), _BRACKETS, _GEMMA3),
    "phi3": Family("phi3", _pieces, _TURNS, {"sliding_window": None}),
}
REQUIRED = ("qwen3", "mistral", "granite", "llama")
"""Families of which every format must come out; of the others adapter and merged must, and the rest may say why not."""
TARGETS: tuple[Target, ...] = (
    Target("adapter", "own"),
    Target("merged", "own"),
    Target("onnx", "fp32"),
    Target("onnx", "int8"),
    Target("onnx", "int4"),
    Target("onnx-multi", "fp32"),
    Target("onnx-multi", "int4"),
    Target("gguf", "f16"),
    Target("gguf", "q8_0"),
)
FURTHER: tuple[Target, ...] = (
    Target("gguf", "q4_0"),
    Target("onnx-plain", "fp32"),
    Target("onnx-plain", "int8"),
    Target("openvino", "int8"),
    Target("gptq", "int4"),
    Target("awq", "int4"),
    Target("fp8", "fp8"),
    Target("torchao", "int8"),
)
_WORDS = {
    "a": {"sea": ("wave", "boat", "salt"), "wood": ("oak", "moss", "fern"), "town": ("tram", "roof", "lamp")},
    "b": {"low": ("cellar", "root", "floor"), "high": ("cloud", "tower", "peak"), "mid": ("table", "shelf", "door")},
}


def save_family(folder: Path, name: str, seed: int = 0) -> Path:
    """A base's folder."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    tokenizer.chat_template = family.template
    tokenizer.model_max_length = _SIZES["max_position_embeddings"]
    torch.manual_seed(seed)
    ids = {key: getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        family.kind, vocab_size=len(tokenizer), **{f"{k}_token_id": v for k, v in ids.items()}, **_SIZES | family.more
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():  # norms and biases of ones and zeros hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tuned_family(folder: Path, base: Path, rows: str, *, steps: int = 80) -> RunFolder:
    """A run on a base; `rows` names one of two tasks."""
    draw = random.Random(rows)
    words = _WORDS[rows]
    labels = sorted(words)
    lines = [f"{' '.join(draw.choices(words[labels[n % 3]], k=2))} {n},{labels[n % 3]}" for n in range(120)]
    data = folder.with_name(f"{folder.name}.csv")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("\n".join(["phrase,place", *lines]) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "name": rows,
        "data": {"train": str(data), "split": {"test": 32}},
        "base": str(base),
        "method": {"rank": 8 if rows == "a" else 4},
        "train": {
            "max_steps": steps, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 1, "select_by": "loss",
            "seed": 1,
        },
        "baselines": [],
        "evaluate": {"bootstrap": 200, "latency_rows": 1, "max_new_tokens": 8, "forgetting": False},
    }  # fmt: skip
    return run(Recipe(**settings), out=folder).folder
