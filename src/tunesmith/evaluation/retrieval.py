"""The training rows nearest to a question, over their questions."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.types import Example
from tunesmith.evaluation.nearness import Encoder, index_of, nearest_places


class Retriever:
    """An index over the questions of `rows`: by shared words (BM25), or by meaning where an encoder is given.

    Both sides are questions, so both are encoded as such. Equal scores keep the order of `rows`, so the result depends
    on nothing but the rows, the encoder and the question.
    """

    def __init__(self, rows: Sequence[Example], encoder: Encoder | None = None) -> None:
        self.rows = tuple(rows)
        self._index = index_of([row.question for row in self.rows], encoder, "query")

    def nearest(self, example: Example, k: int) -> tuple[Example, ...]:
        """The k rows nearest to `example`'s question, most similar first; never the row itself (by id)."""
        order = nearest_places(self._index, example.question, k + 1)
        found = [self.rows[place] for place in order if self.rows[place].id != example.id]
        return tuple(found[:k])

    def expect(self, examples: Sequence[Example]) -> None:
        """These will be asked about next (see `Index.expect`)."""
        self._index.expect([example.question for example in examples])
