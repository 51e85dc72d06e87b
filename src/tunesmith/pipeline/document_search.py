"""The documents of a recipe as passages that can be found: read, cut to what the base can hold, and indexed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.evaluation.document_files import Documents, read_documents
from tunesmith.evaluation.nearness import Encoder
from tunesmith.evaluation.passages import OVERLAP, Count, PassageFinder, cut_all
from tunesmith.inference.types import Engine
from tunesmith.pipeline.prepare import Prepared
from tunesmith.tasks.conversation import asking_conversation

_LARGEST, _USEFUL, _SMALLEST = 256, 64, 16
"""Tokens of a passage: at most, enough to say something, and at least."""
_BESIDE = 24
"""Tokens that a passage's number and name take, about."""
_ROWS = 64
"""Rows by whose questions the room beside them is measured."""


@dataclass(frozen=True, slots=True)
class DocumentSearch:
    """Passages of `size` tokens of the documents, with their finder. `search` says how they are found."""

    documents: Documents
    finder: PassageFinder
    size: int
    search: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """For the notes of a candidate."""
        read = self.documents
        return {
            "documents": len(read.documents),
            "passages": len(self.finder.passages),
            "passage_tokens": self.size,
            "passage_overlap": self.size // OVERLAP,
            "search": self.search,
            "files_not_read": dict(read.skipped),
            "empty_documents": read.empty,
            "repeated_documents": read.repeated,
        }

    @property
    def key(self) -> Mapping[str, Any]:
        """What the passages found depend on."""
        return {"documents": self.documents.sha256, "size": self.size, "search": self.search}


def document_search(prepared: Prepared, engine: Engine, encoder: Encoder | None) -> DocumentSearch:
    """Read, cut and index `data.documents`. Raises `DataError` where they cannot be read."""
    recipe = prepared.recipe
    assert recipe.data.documents is not None
    documents = read_documents(recipe.data.documents, recipe.data.encoding)
    size = passage_size(_room(prepared, engine), recipe.evaluate.documents_k)
    passages = cut_all(documents.documents, size, _counter(prepared))
    return DocumentSearch(documents, PassageFinder(passages, encoder), size, search_name(prepared))


def passage_size(room: int, ks: Sequence[int]) -> int:
    """Tokens of a passage such that the most passages wanted fit, or as many as leave each a useful size."""
    for k in sorted(ks, reverse=True):
        if (size := room // k - _BESIDE) >= _USEFUL:
            return min(size, _LARGEST)
    return max(_SMALLEST, room // min(ks) - _BESIDE)


def search_name(prepared: Prepared) -> str:
    """How texts are found, for notes."""
    encoder = prepared.recipe.evaluate.embedding_model
    return f"meaning ({encoder})" if encoder is not None else "words (BM25)"


def _room(prepared: Prepared, engine: Engine) -> int:
    """Tokens beside the instruction, nine of ten questions, and the answer."""
    train = prepared.rows.splits.train
    rows = [train[place] for place in range(0, len(train), max(1, len(train) // _ROWS))]
    asked = [engine.count_tokens(asking_conversation(prepared.task, row, full=True)) for row in rows]
    longest = int(np.quantile(asked, 0.9)) if asked else 0
    return max(0, engine.context - int(prepared.recipe.evaluate.max_new_tokens) - longest)


def _counter(prepared: Prepared) -> Count:
    tokenizer = prepared.base.tokenizer

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return count
