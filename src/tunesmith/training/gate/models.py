"""Models to take a step with: small ones of each kind of architecture, with random weights.

A `Source` opens a model anew in any type, always from the same numbers, so that a reference in float64 begins where
ours began.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.utils import logging

VOCABULARY = 97


class Source(Protocol):
    """Something that opens a `transformers` causal model."""

    @property
    def vocabulary(self) -> int:
        """Tokens it knows."""
        ...

    def open(self, dtype: torch.dtype, rounded: torch.dtype, device: torch.device) -> Any:
        """The model in `dtype`, its weights rounded to `rounded` before."""
        ...


@dataclass(frozen=True, slots=True)
class Small:
    """A configuration, and weights by name in float64."""

    config: PreTrainedConfig
    weights: dict[str, Tensor]

    @property
    def vocabulary(self) -> int:
        return VOCABULARY

    def open(self, dtype: torch.dtype, rounded: torch.dtype, device: torch.device) -> Any:
        return open_model(self.config, {n: w.to(rounded).to(dtype) for n, w in self.weights.items()}, dtype, device)


def open_model(
    config: Any,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
) -> Any:
    """A `transformers` model of a configuration with these weights, in evaluation mode.

    Raises `ValueError` where the weights are not those of the configuration.
    """
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    with _no_progress_bar():
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            **({"experts_implementation": "eager"} if dtype == torch.float64 else {}),  # the others take no float64
        )
    wrong = {what: sorted(map(str, names)) for what, names in found.items() if names}
    if wrong:
        raise ValueError(
            "; ".join(f"{what.replace('_', ' ')}: {', '.join(names[:4])}" for what, names in wrong.items())
        )
    return model.to(device).eval()


def small(family: str, generator: torch.Generator) -> Small:
    """A small model of a family; every weight is random, norms are around 1."""
    config = _CONFIGS[family]()
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    tied = {id(p): n for n, p in reversed(list(empty.named_parameters()))}
    weights = {}
    for name in sorted(tied.values()):
        shape = empty.get_parameter(name).shape
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = drawn * 0.2 if len(shape) > 1 or name.endswith("bias") else 1 + drawn * 0.2
    return Small(config, weights)


_SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0}
_SHAPE = {
    **_SIZES,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Llama, tied head": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "Qwen 3, normed heads": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=False),
    "Mistral, sliding window": lambda: MistralConfig(**_SHAPE, sliding_window=6, tie_word_embeddings=False),
    "Gemma 2, soft caps and windows": lambda: Gemma2Config(
        **_SHAPE, sliding_window=6, attn_logit_softcapping=20.0, final_logit_softcapping=10.0
    ),
    "GPT-2, biases and learnt positions": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
FAMILIES = tuple(_CONFIGS)


@contextmanager
def _no_progress_bar() -> Any:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
