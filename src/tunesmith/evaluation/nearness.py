"""Which texts are nearest to a question: by the words they share (BM25), or by meaning where an encoder is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tunesmith.tasks.types import FloatArray
from tunesmith.tasks.words import words

Side = Literal["query", "passage"]
"""Which side of a search a text is on: some encoders are trained with another beginning for each."""
Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Texts as vectors of length 1, whose product says how near they are."""

    def encode(self, texts: Sequence[str], side: Side) -> Vectors:
        """Vectors [len(texts), d] of length 1."""
        ...


class Index(Protocol):
    """Texts that can be ordered by nearness to a question."""

    def scores(self, question: str) -> FloatArray:
        """Of every text [texts], higher is nearer."""
        ...

    def expect(self, questions: Sequence[str]) -> None:
        """These will be asked next: whatever is quicker for many at once may be done now.

        What was known of earlier questions is forgotten, so that one asked alone takes the time it takes.
        """
        ...


class WordIndex:
    """Lucene's BM25 (k1 = 1.5, b = 0.75) over words in any script, built on first use.

    Texts that share no word with a question score 0.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)

    def scores(self, question: str) -> FloatArray:
        """See `Index.scores`."""
        tokens = words(question)
        if self._index is None or not tokens:
            return np.zeros(len(self._texts))
        return np.asarray(self._index.get_scores(tokens), dtype=np.float64)

    def expect(self, questions: Sequence[str]) -> None:
        """There is nothing to prepare."""

    @cached_property
    def _index(self) -> Any | None:
        """None where no text has a word, as there is nothing to index."""
        import bm25s

        corpus = [words(text) for text in self._texts]
        if not any(corpus):
            return None
        index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        index.index(corpus, show_progress=False)
        return index


class MeaningIndex:
    """Products of an encoder's vectors (cosine), computed on first use; `side` is that of the texts."""

    def __init__(self, texts: Sequence[str], encoder: Encoder, side: Side) -> None:
        self._texts, self._encoder, self._side = tuple(texts), encoder, side
        self._questions: dict[str, Vectors] = {}

    def scores(self, question: str) -> FloatArray:
        """See `Index.scores`."""
        if not self._texts:
            return np.zeros(0)
        if question not in self._questions:
            self.expect([question])
        return np.asarray(self._vectors @ self._questions[question], dtype=np.float64)

    def expect(self, questions: Sequence[str]) -> None:
        """Encode them together."""
        asked = list(dict.fromkeys(questions))
        self._questions = dict(zip(asked, self._encoder.encode(asked, "query"), strict=True)) if asked else {}

    @cached_property
    def _vectors(self) -> Vectors:
        return self._encoder.encode(self._texts, self._side)


def index_of(texts: Sequence[str], encoder: Encoder | None, side: Side = "passage") -> Index:
    """By meaning where there is an encoder, else by words."""
    return WordIndex(texts) if encoder is None else MeaningIndex(texts, encoder, side)


def nearest_places(index: Index, question: str, most: int) -> list[int]:
    """Places of the `most` nearest texts, the nearest first; equal ones in their order."""
    scores = index.scores(question)
    return _best(scores, min(most, len(scores)))


def _best(scores: FloatArray, most: int) -> list[int]:
    """Places of the highest scores in order, as a stable sort of all would give them."""
    if most < 1:
        return []
    if most < len(scores):
        least = np.partition(scores, len(scores) - most)[len(scores) - most]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    order: list[int] = places[np.argsort(-scores[places], kind="stable")][:most].tolist()
    return order
