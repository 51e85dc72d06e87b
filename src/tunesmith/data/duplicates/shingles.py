"""Texts as sets of character 5-grams, as numbers: hashes for exact likeness, MinHash signatures for a quick one.

The 5-grams of a batch of texts are hashed in a few passes over one array of code points: a sum of the five, each
times its own odd constant modulo 2^64, then mixed. Two different 5-grams of a text agree in it with probability about
2^-64, so likeness counted on hashes is exact for every practical purpose. Signatures are made by `rensa` (Rust).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import rensa

from tunesmith.data.streaming import map_in_order

SHINGLE = 5
PERMUTATIONS = 128

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]
Tell = Callable[[str, int, int], None]
"""Hears of progress: what is done, how much of it, of how much."""


class Texts(Protocol):
    """Texts by place; a list of them, or something that makes them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


def silent(label: str, done: int, total: int) -> None:
    """Hears of progress and tells nobody."""


_SEED = 20
_BATCH = 400_000
"""Characters hashed at once: the arrays then stay in the processor's cache."""
_WORTH_PROCESSES = 50_000
"""Texts below which starting processes costs more than it saves."""
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)


def shingle_hashes(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.uint64]]:
    """Hashes of the 5-grams of all texts in one array, with repetitions, and where each text's begin `[n + 1]`.

    A text of fewer than five characters is one shingle.
    """
    padded = [text if len(text) >= SHINGLE else text.ljust(SHINGLE, "\0") for text in texts]
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    offsets = np.zeros(len(padded) + 1, dtype=np.uint64)
    offsets[1:] = np.cumsum(lengths - (SHINGLE - 1))
    if not padded:
        return np.zeros(0, dtype=np.uint64), offsets
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    windows = len(points) - SHINGLE + 1
    hashes = points[:windows] * _FACTORS[0]
    for place in range(1, SHINGLE):
        hashes += points[place : place + windows] * _FACTORS[place]
    if len(padded) > 1:  # windows that reach over the end of a text
        ends = np.cumsum(lengths)[:-1]
        across = (ends[:, None] - np.arange(1, SHINGLE)).ravel()
        keep = np.ones(windows, dtype=bool)
        keep[across] = False
        hashes = hashes[keep]
    hashes ^= hashes >> np.uint64(31)
    hashes *= _FACTORS[1]
    hashes ^= hashes >> np.uint64(29)
    return hashes, offsets


def shingle_set(text: str) -> Hashes:
    """The distinct hashes of one text's 5-grams, sorted."""
    return np.unique(shingle_hashes([text])[0])


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union of two sorted sets."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def signatures(texts: Texts, tell: Tell, processes: int | None = 1) -> Signatures:
    """MinHash signatures `[n, 128]`: two agree in a place with a probability equal to the likeness of their texts.

    Many texts may be signed by several processes, None for one per core.
    """
    made = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    done = 0
    workers = processes if len(texts) >= _WORTH_PROCESSES else 1
    for part in map_in_order(_signed, _batches(texts), workers, fresh=True):
        made[done : done + len(part)] = part
        done += len(part)
        tell("comparing rows", done, len(texts))
    return made


def _batches(texts: Texts) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for number in range(len(texts)):
        batch.append(texts[number])
        characters += len(batch[-1])
        if characters >= _BATCH or number == len(texts) - 1:
            yield batch
            batch, characters = [], 0


def _signed(batch: Sequence[str]) -> Signatures:
    hashes, offsets = shingle_hashes(batch)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, _SEED)
    flat = chain.from_iterable(matrix.to_rows())
    return np.fromiter(flat, dtype=np.uint32, count=len(batch) * PERMUTATIONS).reshape(-1, PERMUTATIONS)
