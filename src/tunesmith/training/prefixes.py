"""Which beginnings of the documents of a step are worth computing once.

Documents that begin alike (a system prompt, a few-shot block, the prompt of a preference pair) form a *family*: the
common beginning is computed once and continued by each. A document belongs to one family at most, so families are
one level deep; among all ways to form them, `find_families` takes one that leaves the fewest tokens.

Sorted by their ids, documents that begin alike are neighbours, and what a range of them has in common is the smallest
of the longest common prefixes between neighbours. Only ranges that cannot grow without losing some of their beginning
matter: the *LCP intervals*, which form a tree (Abouelhoda, Kurtz & Ohlebusch 2004, doi:10.1016/S1570-8667(03)00065-0)
and are listed by one pass with a stack. A range chosen as a family costs its beginning once, and each document gains
the beginning of the innermost chosen range it lies in. With `a` the length gained from further out, the best gain is

    best(range, a) = max(sum of best(child, a), sum of best(child, common) - common),    best(document, a) = a

which is solved from the innermost ranges outwards, in documents times depth of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SHORTEST = 16
"""Beginnings of fewer tokens are not shared: joining two partial attentions costs about as much as they save."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Family:
    """Documents (by index, ascending, at least two) whose first `length` tokens are alike, and are computed once."""

    length: int
    members: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens not computed again."""
        return self.length * (len(self.members) - 1)


@dataclass(slots=True, eq=False)
class _Range:
    """An LCP interval: `common` tokens are shared by its `documents` and those of `inner` ranges."""

    common: int
    inner: list[_Range] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    outer: tuple[int, ...] = (0,)
    """What each range around this one shares, from the root (nothing) inwards."""
    kept: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    """The best gain without being a family itself, for each of `outer` as the beginning gained from further out."""
    chosen: int = 0
    """The best gain as a family."""

    @property
    def best(self) -> npt.NDArray[np.int64]:
        return np.maximum(self.kept, self.chosen)


def find_families(documents: Sequence[Ids], shortest: int = SHORTEST) -> list[Family]:
    """The families of `documents` (each [L] ids) that leave the fewest tokens, in the order of their first members.

    Deterministic: the result depends on the documents and their order only.
    """
    inside_out = _ranges(documents, shortest)
    root = inside_out[-1]
    for r in reversed(inside_out):
        for child in r.inner:
            child.outer = (*r.outer, r.common) if r is not root else r.outer
    for r in inside_out[:-1]:
        gains = sum((child.best for child in r.inner), len(r.documents) * np.array([*r.outer, r.common]))
        r.kept, r.chosen = gains[:-1], int(gains[-1]) - r.common
    families = []
    # A range, which of its `outer` is the innermost family around it, and that family's members.
    todo: list[tuple[_Range, int, list[int] | None]] = [(child, 0, None) for child in root.inner]
    while todo:
        r, gained, members = todo.pop()
        if r.chosen > r.kept[gained]:
            gained, members = len(r.outer), []
            families.append((r.common, members))
        if members is not None:
            members.extend(r.documents)
        todo.extend((child, gained, members) for child in r.inner)
    return sorted((Family(n, tuple(sorted(m))) for n, m in families), key=lambda family: family.members[0])


def _ranges(documents: Sequence[Ids], shortest: int) -> list[_Range]:
    """All LCP intervals that share at least `shortest` tokens, inner ones before those around them; last the root."""
    # Bytes of big-endian numbers sort as the numbers do.
    keys = [ids.astype(">u4").tobytes() for ids in documents]
    order = sorted(range(len(documents)), key=lambda i: (keys[i], i))
    closed: list[_Range] = []
    stack = [_Range(0)]
    for place, document in enumerate(order):
        after = common_prefix(documents[document], documents[order[place + 1]]) if place + 1 < len(order) else 0
        after = after if after >= shortest else 0
        # The document belongs to the deeper of the ranges it forms with its two neighbours.
        if after > stack[-1].common:
            stack.append(_Range(after))
        stack[-1].documents.append(document)
        while stack[-1].common > after:
            top = stack.pop()
            closed.append(top)
            if stack[-1].common < after:
                stack.append(_Range(after))
            stack[-1].inner.append(top)
    return [*closed, stack[0]]


def common_prefix(a: Ids, b: Ids) -> int:
    """How many first tokens two documents have in common."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
