"""Small models of every family that is written as GGUF, and a source that hands them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import byte_tokenizer
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.types import Work
from tunesmith.inference.gguf_engine import Reader
from tunesmith.models.artifact import Artifact, Target

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
READERS: tuple[Reader, ...] = ("transformers", "llama.cpp")
_SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 256,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_GEMMA3_ROTATION = {
    "full_attention": {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7],
    "original_max_position_embeddings": 256,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 24, "num_key_value_heads": 1}),
    "llama-llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama-yarn-own-factor": ("llama", {"rope_parameters": {**_YARN, "attention_factor": 1.5, "beta_fast": 16.0}}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": 256}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 20}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": 8,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 48,
            "rope_parameters": _GEMMA3_ROTATION,
        },
    ),
    "phi3": ("phi3", {}),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONG}),
    "gpt2": ("gpt2", {"n_inner": 96}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """A model with random weights; norms, biases and scales are none of those that hide a mistake."""
    kind, more = FAMILIES[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SIZES, **more})).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@dataclass
class Source:
    """A model as a writer gets it: saved into a folder, which is what merging would give."""

    model: Any
    folder: Path
    template: str | None = TEMPLATE
    tokenizer: Any = field(default_factory=byte_tokenizer)
    name: str = "tiny"
    system: str | None = None
    stops: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.model.save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)

    @property
    def recipe(self) -> Any:
        return SimpleNamespace(base=SimpleNamespace(model="base"), data=SimpleNamespace(system=self.system))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.stops or (self.tokenizer.eos_token_id,)

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def config(self) -> Any:
        return self.model.config

    def merged(self, scratch: Path) -> Path:
        return self.folder


def exported(source: Source, folder: Path, precision: str = "f32", **more: Any) -> tuple[Artifact, dict[str, Any]]:
    """A source written as GGUF below `folder`, and what the writer says of it."""
    staged, scratch = folder / precision, folder / f"scratch-{precision}"
    staged.mkdir(parents=True)
    scratch.mkdir()
    target = Target("gguf", precision)
    facts = write_gguf(Work(source, target, staged, scratch, lambda _: None, **more))
    made = Artifact(
        folder=staged,
        target=target,
        files={},
        bytes=0,
        base="base",
        base_sha256="",
        chat_template="auto",
        template_sha256=None,
        stop_ids=source.stop_ids,
        context=source.context,
    )
    return made, dict(facts)


IDS = [int(i) for i in np.random.default_rng(0).integers(3, 256, 60)]
"""Longer than the windows of the models that have some."""


def logits_of(model: Any, ids: list[int] = IDS) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found: npt.NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found
