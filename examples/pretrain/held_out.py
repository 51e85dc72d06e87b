"""Bits per byte on texts that were held out: of a model, of an n-gram model, of `xz`.

Bits per byte can be compared between tokenizers and with a compressor. All counts are of whole documents: the n-gram
model and the network get the same documents cut into the same tokens, the end mark included, and all bits are divided
by the UTF-8 bytes of the texts. A document is dropped if much of it also stands in the training text.
"""

from __future__ import annotations

import lzma
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.uint16]
Float = npt.NDArray[np.float64]

SHINGLE = 12
"""Tokens in a row, about nine words, that two texts of one language hardly share unless one quotes the other."""

MOST_SHARED = 0.1
"""A document is a near-duplicate if more of its shingles than this stand in the training text."""

FEWEST = 8
"""Resampling fewer documents than this says little about how much documents differ."""


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out text and its ids, from the begin mark to the end mark."""

    text: str
    ids: Ids

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True, slots=True)
class Stream:
    """The training text as `prepare.py` wrote it: ids [N], where documents begin [D+1], which tokens are learnt [N]."""

    ids: Ids
    offsets: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> Stream:
        """Read from disk when asked for; nothing is loaded."""
        return cls(
            np.memmap(folder / "train.bin", dtype=np.uint16, mode="r"),
            np.load(folder / "documents.npy"),
            np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r"),
        )

    def plain_documents(self, roles: Sequence[int]) -> npt.NDArray[np.int64]:
        """Indices of the documents that are running text: no conversation, no random sequence.

        A conversation has a role's mark after the begin mark. Of a random sequence that comes again, the first round is
        not learnt, so its second token is not; of a text it is.
        """
        second = np.minimum(self.offsets[:-1] + 1, len(self.ids) - 1)
        return np.flatnonzero(~np.isin(self.ids[second], roles) & (self.learnt[second] == 1))

    def select(self, documents: npt.NDArray[np.int64]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids and offsets of some documents only."""
        lengths = np.diff(self.offsets)[documents]
        parts = [self.ids[self.offsets[d] : self.offsets[d + 1]] for d in documents]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
        return ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


# --- documents -------------------------------------------------------------------------------------------------------


def read_documents(path: Path, tokenizer: Any, most_bytes: int, seed: int) -> list[Document]:
    """Whole documents drawn by seed, as many as fit in `most_bytes`, but at least one; in the order of the file.

    In the file, documents stand apart by two empty lines.
    """
    texts = [text for text in path.read_text(encoding="utf-8").split("\n\n\n") if text.strip()]
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    chosen: list[int] = []
    room = most_bytes
    for index in order:
        size = len(texts[index].encode())
        if size <= room or not chosen:
            chosen.append(index)
            room -= size
    return [encoded(texts[index], tokenizer) for index in sorted(chosen)]


def encoded(text: str, tokenizer: Any) -> Document:
    """The ids of a text as a document of the training stream has them."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return Document(text, np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], np.uint16))


def shared_shares(documents: Sequence[Document], training: Ids, chunk: int = 1 << 22) -> list[float]:
    """Of each document, the share of its different shingles that also stand in the training text.

    A shingle is hashed to 64 bits; among 40 million of them one of a hundred thousand is found by chance with a
    probability of 2e-7. Documents shorter than a shingle share nothing.
    """
    hashes = [np.unique(_shingles(document.ids[1:-1])) for document in documents]
    wanted = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
    found = np.zeros(len(wanted), np.bool_)
    for start in range(0, len(training) if len(wanted) else 0, chunk):
        met = _shingles(np.asarray(training[start : start + chunk + SHINGLE - 1]))
        places = np.minimum(np.searchsorted(wanted, met), len(wanted) - 1)
        found[places[wanted[places] == met]] = True
    return [float(found[np.searchsorted(wanted, own)].mean()) if len(own) else 0.0 for own in hashes]


def _shingles(ids: Ids) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of every `SHINGLE` tokens in a row: a polynomial, then mixed (the finaliser of SplitMix64)."""
    count = max(0, len(ids) - SHINGLE + 1)
    total = np.zeros(count, np.uint64)
    for place in range(SHINGLE):
        total *= np.uint64(0x9E3779B97F4A7C15)
        total += ids[place : place + count].astype(np.uint64) + np.uint64(1)
    total ^= total >> np.uint64(30)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    return total ^ (total >> np.uint64(27))


# --- bits ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def model_bits(model: Any, documents: Sequence[Document]) -> Float:
    """-log2 p of each document under a model, the begin mark given [D].

    A document longer than the context is read in windows that overlap by half, each beginning with the begin mark as
    training's pieces of texts do; so every token but the first ones has at least half a context before it.
    """
    context = int(model.config.max_position_embeddings)
    return np.array([_document_bits(model, document.ids, context) for document in documents])


def _document_bits(model: Any, ids: Ids, context: int) -> float:
    tokens = torch.from_numpy(ids.astype(np.int64))
    total = 0.0
    for start, new, end in windows(len(ids), context):
        piece = torch.cat([tokens[:1], tokens[start:end]])[None]
        logits = model(input_ids=piece, logits_to_keep=end - new + 1).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[new:end], reduction="sum"))
    return total / math.log(2)


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start, first token counted, end) of windows over tokens 1 to `length` - 1; with the begin mark each fits."""
    size = context - 1
    new = 1
    start = 1
    while new < length:
        end = min(start + size, length)
        yield start, new, end
        new = end
        start = max(1, end - size // 2)


def compressed_bytes(text: str, after: str = "") -> int:
    """Bytes of `text` under `xz -9e`; with `after`, by how much the file of `after` grows when it is appended."""

    def size(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))

    if not after:
        return size(text.encode())
    before = after.encode()
    return size(before + text.encode()) - size(before)


def training_sample(stream: Stream, documents: npt.NDArray[np.int64], tokenizer: Any, most_bytes: int) -> str:
    """Text of documents spread evenly over the stream, about `most_bytes` of it; for `compressed_bytes`."""
    tokens = np.diff(stream.offsets)[documents].sum()
    # Four bytes a token are enough of a guess: what is too long is cut.
    step = max(1, int(4 * tokens // max(1, most_bytes)))
    parts: list[str] = []
    size = 0
    for index in documents[::step]:
        ids = stream.ids[stream.offsets[index] : stream.offsets[index + 1]].tolist()
        parts.append(tokenizer.decode(ids, skip_special_tokens=True))
        size += len(parts[-1].encode())
        if size >= most_bytes:
            break
    return "\n\n\n".join(parts)


# --- comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its interval of 95 %, None where there are too few documents for one."""

    value: float
    low: float | None
    high: float | None

    def rounded(self) -> list[float | None]:
        return [number if number is None else round(number, 4) for number in (self.value, self.low, self.high)]


def per_byte(bits: Float, sizes: Float, seed: int) -> Value:
    """Bits per byte over documents; interval by bootstrap over documents, as tokens of one text are alike."""
    draws = _draws(len(bits), seed)
    return _with_interval(bits.sum() / sizes.sum(), bits[draws].sum(1) / sizes[draws].sum(1), len(bits))


def difference(bits: Float, reference: Float, seed: int) -> Value:
    """bits / reference - 1 over the same documents: -0.1 is a tenth less; paired bootstrap over documents."""
    draws = _draws(len(bits), seed)
    return _with_interval(bits.sum() / reference.sum() - 1, bits[draws].sum(1) / reference[draws].sum(1) - 1, len(bits))


def _draws(count: int, seed: int, resamples: int = 5000) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def _with_interval(value: float, resampled: Float, documents: int) -> Value:
    if documents < FEWEST:
        return Value(float(value), None, None)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Value(float(value), float(low), float(high))
