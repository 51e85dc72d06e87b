"""Pairs of texts to token ids: plain text with the tokenizer's own special tokens, no chat turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tunesmith.data.pairs import Pair
from tunesmith.errors import DataError
from tunesmith.text.types import Group, Sample


def pair_groups(tokenizer: Any, pairs: Sequence[Pair]) -> list[Group]:
    """One `Group` of two samples per pair, with its label and id; no token is predicted, so all weights are 0.

    Raises `DataError` naming the lines of texts that become no token at all.
    """
    if not pairs:
        return []
    texts = [text for pair in pairs for text in (pair.first, pair.second)]
    ids = iter(tokenizer(texts)["input_ids"])
    groups = [
        Group((_sample(next(ids), f"{p.id}.1"), _sample(next(ids), f"{p.id}.2")), label=p.label, example_id=p.id)
        for p in pairs
    ]
    silent = [p.line for p, group in zip(pairs, groups, strict=True) if not all(len(s.ids) for s in group.samples)]
    if silent:
        raise DataError(
            "texts become no token with this tokenizer",
            where=f"{pairs[0].source}, lines {', '.join(map(str, silent[:8]))}{', …' if len(silent) > 8 else ''}",
            fix="remove these rows",
        )
    return groups


def fitting_groups(groups: Sequence[Group], max_length: int) -> Iterator[Group]:
    """Groups of which both texts have at most `max_length` tokens; longer ones are left out, never cut."""
    return (group for group in groups if all(len(s.ids) <= max_length for s in group.samples))


def _sample(ids: Sequence[int], name: str) -> Sample:
    return Sample(np.asarray(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.float32), name)
