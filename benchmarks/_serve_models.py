"""What `serve.py` serves: a base of a true shape with adapters, and prompts of one length.

In every base the row of the end token is zero in the embeddings, which are also the head: no answer ends before its
limit, on any side. Of the 135M shape, whose vocabulary is wider than the tokenizer, so are the rows that have no text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from _training_work import SHAPES
from tunesmith.data.types import Message
from tunesmith.models.adapter import save_adapter
from tunesmith.models.load import EMBEDDED, load_base
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.recipe.schema import Base
from tunesmith.text.render import Renderer

RANK = 16
CONTEXT = 2048
_WORDS = """
river stone garden letter window market engine winter summer paper silver mountain village bridge candle forest captain
kitchen teacher doctor farmer painter sailor soldier baker music story question answer number yellow green early late
often never always under above before after bread water butter apple orange table chair house street
""".split()  # noqa: SIM905


def make_base(name: str, folder: Path) -> Path:
    """A folder with a model in fp32 and a tokenizer: `embedded`, or a shape by its name."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "base")
    if name == "embedded":
        model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED / "base", dtype=torch.float32)
    else:
        shape = SHAPES[name]
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
                max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=0.04,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[len(tokenizer) :] = 0
        rows[sorted(Renderer(tokenizer).stop_ids)] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter of rank 16 on all linear layers, with random factors that change answers."""
    loaded = load_base(Base(model=str(base), dtype="float32"))
    attached = attach_lora(loaded.model, LoraSettings(RANK, 2.0 * RANK), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(0, 0.02, generator=generator)
    save_adapter(folder, attached, base=str(base), revision=None, conv1d=False)
    return folder


class Prompts:
    """Questions of exactly `tokens` tokens as they are rendered, no two of which begin alike."""

    def __init__(self, base: Path, tokens: int) -> None:
        self._renderer = Renderer(AutoTokenizer.from_pretrained(base))
        self._tokens, self._draw, self.made = tokens, random.Random(1), 0

    def next(self) -> str:
        self.made += 1
        while True:  # until the short words at the end make it exact
            words = [str(self.made)]
            while self._count(words) < self._tokens:
                words.append(self._draw.choice(_WORDS))
            while self._count(words) > self._tokens:
                words.pop()
            while self._count(words) < self._tokens:
                words.append("a")
            if self._count(words) == self._tokens:
                return " ".join(words)

    def ids(self, text: str) -> list[int]:
        return self._renderer.prompt_ids([Message("user", text)])

    def decode(self, ids: Sequence[int]) -> str:
        return self._renderer.decode(ids)

    def _count(self, words: Sequence[str]) -> int:
        return len(self.ids(" ".join(words)))
