"""stories260K, a published tiny Llama, as a second point beside our own base.

The model (Karpathy, tinyllamas, MIT) has 260 thousand parameters and was trained on simple generated stories alone, so
on such stories it is hard to beat for its size. It is stored as the checkpoint of `llama2.c`, version 0: seven int32
(dim, hidden dim, layers, heads, key-value heads, vocabulary, context; a negative vocabulary says that the head is not
tied), then float32 tensors, each for all layers at once:

    embedding [V, D]; attention norm [L, D]; wq [L, D, D]; wk, wv [L, K, D]; wo [L, D, D]; feed-forward norm [L, D];
    w1 [L, H, D]; w2 [L, D, H]; w3 [L, H, D]; final norm [D]; cosines and sines of the rotations [C, D/heads/2] each;
    head [V, D] if it is not tied

`llama2.c` rotates neighbouring pairs (0,1), (2,3), …; `transformers` rotates (0, d/2), (1, d/2+1), …. Rows of wq and wk
are put in that order, which leaves every product of a query and a key as it was.

The vocabulary is stored as an int32 (longest entry) and per id a float32 score, an int32 length and the bytes. Text is
cut as SentencePiece does: a space goes before the text, characters that are no entry become bytes (ids 3 to 258), then
the neighbouring pair whose union has the highest score is joined, again and again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_HEADER = struct.Struct("<7i")
_ENTRY = struct.Struct("<fi")
_FIRST_BYTE = 3


def load_model(path: Path) -> Any:
    """The checkpoint as `LlamaForCausalLM`, fp32, in evaluation mode. Raises `ValueError` if its size is not right."""
    data = path.read_bytes()
    dim, hidden, layers, heads, key_heads, vocabulary, context = _HEADER.unpack_from(data)
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    keys = dim // heads * key_heads
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocabulary, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, keys, dim),
        "self_attn.v_proj": (layers, keys, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
        "rotations": (2, context, dim // heads // 2),
        **({} if tied else {"head": (vocabulary, dim)}),
    }
    tensors = _read_tensors(data, shapes, path)
    state = {"model.embed_tokens.weight": tensors["embedding"], "model.norm.weight": tensors["norm"]}
    state["lm_head.weight"] = tensors["embedding" if tied else "head"]
    rotated = {"self_attn.q_proj": heads, "self_attn.k_proj": key_heads}
    for name in shapes.keys() - {"embedding", "norm", "rotations", "head"}:
        for layer, weight in enumerate(tensors[name]):
            turned = _halves(weight, rotated[name]) if name in rotated else weight
            state[f"model.layers.{layer}.{name}.weight"] = turned
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def _read_tensors(data: bytes, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
    floats = np.frombuffer(data, np.float32, offset=_HEADER.size)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if len(floats) != sum(sizes):
        raise ValueError(f"{path} holds {len(floats):,} numbers; its header asks for {sum(sizes):,}")
    parts = np.split(floats, np.cumsum(sizes)[:-1])
    return {
        name: torch.from_numpy(part.reshape(shape).copy())
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads * d, D] in neighbouring pairs; in each head all first parts are put before the second ones."""
    rows, dim = weight.shape
    return weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim).contiguous()


@dataclass(frozen=True)
class Vocabulary:
    """Pieces and scores by id; as much of a tokenizer as measuring needs."""

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    bos_token_id: int = 1
    eos_token_id: int = 1
    """A story ended where the next one began; the entry for an end was never learnt."""

    @classmethod
    def load(cls, path: Path, size: int) -> Vocabulary:
        data = path.read_bytes()
        pieces: list[bytes] = []
        scores: list[float] = []
        place = 4
        for _ in range(size):
            score, length = _ENTRY.unpack_from(data, place)
            place += _ENTRY.size
            pieces.append(data[place : place + length])
            scores.append(score)
            place += length
        if place != len(data):
            raise ValueError(f"{path} holds {len(data):,} bytes; {size} entries end after {place:,}")
        return cls(tuple(pieces), tuple(scores))

    @cached_property
    def _id_of(self) -> Mapping[bytes, int]:
        # Bytes are entries of their own ("<0x41>"), never looked up by their text.
        return {piece: i for i, piece in enumerate(self.pieces) if i >= _FIRST_BYTE + 256}

    @cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """`{"input_ids": ...}` without begin and end marks, as a tokenizer of `transformers` answers."""
        ids: list[int] = []
        # No entry has a space after its first character, so no join crosses the beginning of a word.
        for word in f" {text}".replace(" ", "\0 ").split("\0")[1:] if text else ():
            if word not in self._known:
                self._known[word] = self._cut(word)
            ids += self._known[word]
        return {"input_ids": ids}

    def _cut(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        for character in word:
            raw = character.encode()
            ids += [self._id_of[raw]] if raw in self._id_of else [_FIRST_BYTE + byte for byte in raw]
        while len(ids) > 1:
            unions = [self._id_of.get(self.pieces[a] + self.pieces[b]) for a, b in pairwise(ids)]
            best = max(
                (i for i, union in enumerate(unions) if union is not None),
                key=lambda i: (self.scores[unions[i] or 0], -i),
                default=None,
            )
            if best is None:
                break
            ids[best : best + 2] = [unions[best] or 0]
        return tuple(ids)
