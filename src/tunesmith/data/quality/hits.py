"""A place in a text where something sensitive stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hit:
    """Characters `start` to `end` of a text; `code` is that of the finding."""

    code: str
    start: int
    end: int


def apart(hits: list[Hit]) -> list[Hit]:
    """Hits that do not overlap, in order of place; of two that do, the one that came first in the list stays."""
    kept: list[Hit] = []
    for hit in hits:
        if all(hit.end <= other.start or other.end <= hit.start for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start)
