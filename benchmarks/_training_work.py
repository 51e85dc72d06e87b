"""The work that training benchmarks do: model shapes, rows, their order, and the arithmetic they need.

Everything two sides must share to be comparable is here; nothing here knows who trains.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model with tied embeddings."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers inside decoder layers."""
        size = self.hidden // self.heads
        attention = self.hidden * size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


SHAPES = {
    "8M": Shape("8M", 8_192, 256, 8, 8, 4, 704),
    # SmolLM2-135M's shape
    "135M": Shape("135M", 49_152, 576, 30, 9, 3, 1_536),
}


@dataclass(frozen=True)
class TokenRow:
    """One tokenised row: `ids` [T] and from where on the answer is learnt."""

    ids: npt.NDArray[np.int64]
    answer_at: int

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The ids with -100 where nothing is learnt."""
        labels = self.ids.copy()
        labels[: self.answer_at] = -100
        return labels

    @property
    def learnt(self) -> int:
        """Tokens that are learnt."""
        return len(self.ids) - self.answer_at

    @property
    def key(self) -> int:
        """What the row is recognised by."""
        return zlib.crc32(self.ids.tobytes())


RowKind = Literal["chat", "prefix"]
PREFIX, OWN = 256, 64
"""Tokens that all rows of kind `prefix` begin with, and tokens of their own."""


def make_rows(kind: RowKind, count: int, vocabulary: int, seed: int = 0) -> list[TokenRow]:
    """Seeded rows, ids as frequent as words; ids 0 and 1 are padding and end of text.

    `chat`: ragged, like single-turn chats: log-normal lengths of median 120, about 55 % learnt; eight rows padded to
    their longest are about 70 % real tokens. `prefix`: the same 256 tokens (a system prompt), then 64 of the row's
    own, 55 % of them learnt.
    """
    rng = np.random.default_rng(seed)
    if kind == "prefix":
        prefix = _words(rng, PREFIX, vocabulary)
        answer_at = PREFIX + round(0.45 * OWN)
        return [TokenRow(np.r_[prefix, _words(rng, OWN - 1, vocabulary), 1], answer_at) for _ in range(count)]
    lengths = np.clip(np.rint(rng.lognormal(np.log(120), 0.27, count)), 16, 512).astype(int)
    rows = []
    for length, share in zip(lengths, rng.beta(11, 9, count), strict=True):
        ids = np.r_[_words(rng, length - 1, vocabulary), 1]
        rows.append(TokenRow(ids, int(np.clip(round((1 - share) * length), 1, length - 1))))
    return rows


def _words(rng: np.random.Generator, count: int, vocabulary: int) -> npt.NDArray[np.int64]:
    frequency = 1 / np.arange(1, vocabulary - 1)
    return rng.choice(vocabulary - 2, count, p=frequency / frequency.sum()).astype(np.int64) + 2


def order_of(rows: int, rows_per_step: int, steps: int, seed: int) -> list[list[int]]:
    """Row indices of each optimiser step, as our engine shuffles them; the other side is given them in this order."""
    per_epoch = -(-rows // rows_per_step)
    order = []
    for step in range(steps):
        epoch, within = divmod(step, per_epoch)
        shuffled = np.random.default_rng((seed, epoch)).permutation(rows)
        order.append(shuffled[within * rows_per_step : (within + 1) * rows_per_step].tolist())
    return order


def needed_flops(shape: Shape, rows: Sequence[TokenRow], method: str) -> float:
    """Floating-point operations that learning `rows` once cannot do without, padding and recomputation apart.

    For each weight of a linear layer and each token 2 forward, 2 for the gradient of the input, and with full tuning
    2 for its own; the head at learnt tokens only; causal attention in each row for itself (6 L² per head and number
    of a head: 2 forward, 4 backward). Adapters (about 1 %) and everything pointwise are left out.
    """
    per_weight = 6 if method == "full" else 4
    tokens, learnt = sum(len(row.ids) for row in rows), sum(row.learnt for row in rows)
    attention = 6 * shape.layers * shape.hidden * sum(len(row.ids) ** 2 for row in rows)
    return per_weight * (shape.linear_weights * tokens + shape.vocabulary * shape.hidden * learnt) + attention


def save_model(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """The shape with random weights and a tokenizer that only names its special tokens, as a folder both sides load."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


def initial_adapter(matrices: Mapping[str, Any], seed: int) -> list[tuple[str, Any]]:
    """The same first A for both sides, by module name: uniform as PEFT draws it, from one generator in name order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name in sorted(matrices):
        rank, width = matrices[name].shape
        drawn.append((name, (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)))
    return drawn
