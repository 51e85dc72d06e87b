"""The training rows nearest to a question, by BM25 over their questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.types import FloatArray
from tunesmith.tasks.words import words


class Retriever:
    """An index over the questions of `rows` (Lucene's BM25, k1 = 1.5, b = 0.75), built on first use.

    Rows that share no word with a question score 0; equal scores keep the order of `rows`, so the result depends on
    nothing but the rows and the question.
    """

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = tuple(rows)

    def nearest(self, example: Example, k: int) -> tuple[Example, ...]:
        """The k rows nearest to `example`'s question, most similar first; never the row itself (by id)."""
        order = np.argsort(-self._scores(example.question), kind="stable")[: k + 1]
        found = [self.rows[index] for index in order if self.rows[index].id != example.id]
        return tuple(found[:k])

    def _scores(self, question: str) -> FloatArray:
        tokens = words(question)
        if self._index is None or not tokens:
            return np.zeros(len(self.rows))
        return np.asarray(self._index.get_scores(tokens), dtype=np.float64)

    @cached_property
    def _index(self) -> Any | None:
        """None where no row has a word, as there is nothing to index."""
        import bm25s

        corpus = [words(row.question) for row in self.rows]
        if not any(corpus):
            return None
        index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        index.index(corpus, show_progress=False)
        return index
