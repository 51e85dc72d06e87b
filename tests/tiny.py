"""Small models with random weights and a byte tokenizer, built on the spot: enough to be exact about, quick to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tunesmith.text.types import Sample

VOCABULARY = 300
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "gemma3", "gpt2")


def build(family: str, seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """A two-layer model of a family: grouped queries, tied or untied heads, windows and soft-capping included."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
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
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=False)).eval()
    if family == "gemma":
        return GemmaForCausalLM(GemmaConfig(**{**sizes, "num_key_value_heads": 1}, head_dim=8)).eval()
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, sliding_window=4)).eval()
    if family == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, head_dim=8, sliding_window=4, layer_types=layers)).eval()
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=512,
                n_embd=32,
                n_layer=2,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.2,
                bos_token_id=1,
                eos_token_id=256,
            )
        ).eval()
    raise ValueError(family)


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, and an end token (256)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    if chat_template is not None:
        fast.chat_template = chat_template
    return fast


def save_base(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A base model folder, as a user would have it."""
    build(family, seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def ragged_samples(lengths: tuple[int, ...] = (1, 3, 7, 12, 12, 20, 5, 9), seed: int = 0) -> list[Sample]:
    """Random documents: a length-1 one, one wholly supervised, one without any supervision, the rest mixed."""
    rng = np.random.default_rng(seed)
    samples = []
    for i, length in enumerate(lengths):
        weights = (rng.random(length) < 0.6).astype(np.float32)
        if i == 2:
            weights[:] = 1
        if i == 4:
            weights[:] = 0
        weights[0] = 0
        samples.append(Sample(rng.integers(3, VOCABULARY, length), weights, f"row {i}"))
    return samples
