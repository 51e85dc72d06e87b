"""From rows to batches: flat streams of tokens, no padding, documents kept apart, common beginnings computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.errors import DataError
from tunesmith.ops.packing import Packing
from tunesmith.text.types import Group, Sample
from tunesmith.training.prefixes import Family, find_families

Row = Sample | Group


@dataclass(frozen=True, slots=True)
class Batch:
    """A stream of documents: what one forward and backward pass computes.

    ids: [T] int64, the stream. weights: [T] float32, the weight with which predicting token t from the token before it
    counts, summed over the documents that share it. previous: [T] int64, stream place of the token before t in its
    document; 0 where there is none (the weight is 0 there). learnt: [S] int64, the places whose weight is not zero.
    packing: where documents lie.
    spans: per document, the stream places of the prefix it shares (empty: none) and of its own tokens (empty: the
    prefix is all of it). rows: the documents' samples, in the order of `spans`.
    groups: per group, the documents that belong together; () where there are none. labels: [G] float32, or None.
    """

    ids: Tensor
    weights: Tensor
    previous: Tensor
    learnt: Tensor
    packing: Packing
    spans: tuple[tuple[slice, slice], ...]
    rows: tuple[Sample, ...]
    groups: tuple[range, ...] = ()
    labels: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return len(self.ids)

    @property
    def documents_tokens(self) -> int:
        """Tokens the documents have together: more than `tokens` where something is shared."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def documents(self) -> tuple[Tensor, ...]:
        """Per document, the stream places [L] of its tokens, shared prefix included."""
        device = self.ids.device
        return tuple(
            torch.cat([torch.arange(part.start, part.stop, device=device) for part in span]) for span in self.spans
        )


def collate(rows: Sequence[Row], device: torch.device | str = "cpu", *, share_prefixes: bool = False) -> Batch:
    """One stream from rows: their documents in order, except that a family stands together where its first one does."""
    documents, groups = _flatten(rows)
    families = find_families([d.ids for d in documents]) if share_prefixes else []
    layout = _Layout.of(documents, families)
    weights = np.zeros(len(layout.ids), np.float64)  # summed in double, as many documents may share a token
    for document, (prefix, own) in zip(documents, layout.spans, strict=True):
        shared = prefix.stop - prefix.start
        weights[prefix] += document.weights[:shared]
        weights[own] += document.weights[shared:]
    labels = _labels(rows)
    counted = weights.astype(np.float32)
    return Batch(
        ids=torch.from_numpy(layout.ids).to(device),
        weights=torch.from_numpy(counted).to(device),
        previous=torch.from_numpy(layout.previous).to(device),
        learnt=torch.from_numpy(np.flatnonzero(counted)).to(device),
        packing=Packing.of(layout.lengths, device, layout.continued),
        spans=layout.spans,
        rows=tuple(documents),
        groups=groups,
        labels=None if labels is None else torch.tensor(labels, dtype=torch.float32, device=device),
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Documents written out as segments: see `Packing.of` for `lengths` and `continued`, `Batch` for the rest."""

    ids: np.ndarray[tuple[int], np.dtype[np.int64]]
    previous: np.ndarray[tuple[int], np.dtype[np.int64]]
    lengths: list[int]
    continued: list[tuple[int, int]]
    spans: tuple[tuple[slice, slice], ...]

    @classmethod
    def of(cls, documents: Sequence[Sample], families: Sequence[Family]) -> _Layout:
        family_of = {member: family for family in families for member in family.members}
        parts: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        previous: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        continued: list[tuple[int, int]] = []
        spans: dict[int, tuple[slice, slice]] = {}
        at = 0

        def append(ids: np.ndarray[tuple[int], np.dtype[np.int64]], before: int) -> slice:
            """A segment whose first token comes after the stream place `before`."""
            nonlocal at
            place = slice(at, at + len(ids))
            if len(ids):
                parts.append(ids)
                previous.append(np.r_[before, np.arange(at, at + len(ids) - 1)])
                at = place.stop
            return place

        for index, document in enumerate(documents):
            if index in spans:
                continue
            family = family_of.get(index)
            if family is None:
                spans[index] = (slice(at, at), append(document.ids, 0))
                continue
            where = len(parts)
            prefix = append(document.ids[: family.length], 0)
            for member in family.members:
                spans[member] = (prefix, append(documents[member].ids[family.length :], prefix.stop - 1))
            if len(parts) > where + 1:
                continued.append((where, len(parts) - where - 1))
        return cls(
            ids=np.concatenate(parts).astype(np.int64, copy=False),
            previous=np.concatenate(previous).astype(np.int64, copy=False),
            lengths=[len(part) for part in parts],
            continued=continued,
            spans=tuple(spans[i] for i in range(len(documents))),
        )


def micro_batches(
    rows: Sequence[Row], token_budget: int, device: torch.device | str = "cpu", *, share_prefixes: bool = True
) -> Iterator[Batch]:
    """The rows of one optimiser step in streams of at most `token_budget` computed tokens (or one row).

    Samples without anything to learn are left out: they would cost time and change nothing. Groups never are, and are
    never divided. Families of documents that begin alike stay together as far as the budget allows; each stream has
    its own copy of the beginning. Otherwise longest first. How rows are grouped does not change the step, as losses are
    summed and divided by the step's weight once; it depends on the rows and the budget only.
    """
    learnt = [row for row in rows if isinstance(row, Group) or row.supervised]
    for stream, _ in streams(learnt, token_budget, share_prefixes=share_prefixes):
        yield collate(stream, device, share_prefixes=share_prefixes)


def streams(rows: Sequence[Row], token_budget: int, *, share_prefixes: bool = True) -> Iterator[tuple[list[Row], int]]:
    """How `micro_batches` divides rows, and the tokens that each stream computes at most."""
    stream: list[Row] = []
    size = 0
    present: set[int] = set()
    for row, homes in _in_order(rows, share_prefixes):
        cost, joined = _cost(row, homes, present)
        if stream and size + cost > token_budget:
            yield stream, size
            stream, size = [], 0
            cost, joined = _cost(row, homes, set())
        stream.append(row)
        size += cost
        present = joined
    if stream:
        yield stream, size


Homes = list[tuple[int, int] | None]
"""Per document of a row: the number of its family and the length that is shared, or None."""


def _in_order(rows: Sequence[Row], share_prefixes: bool) -> list[tuple[Row, Homes]]:
    """Rows longest first, those of a family (of their first document) behind its longest; with their families."""
    documents, _ = _flatten(rows)
    homes: Homes = [None] * len(documents)
    if share_prefixes:
        for number, family in enumerate(find_families([d.ids for d in documents])):
            for member in family.members:
                homes[member] = (number, family.length)
    entries, at = [], 0
    longest: dict[int, int] = {}
    for row in rows:
        count = len(_samples(row))
        mine = homes[at : at + count]
        at += count
        entries.append((row, mine))
        if mine[0] is not None:
            longest[mine[0][0]] = max(_length(row), longest.get(mine[0][0], 0))

    def key(entry: tuple[Row, Homes]) -> tuple[int, int, int]:
        row, mine = entry
        if mine[0] is None:
            return -_length(row), -1, 0
        return -longest[mine[0][0]], mine[0][0], -_length(row)

    return sorted(entries, key=key)


def _cost(row: Row, homes: Homes, present: set[int]) -> tuple[int, set[int]]:
    """Tokens a row adds to a stream that has the beginnings of the families `present`; and its own families."""
    cost, joined = 0, set(present)
    for sample, home in zip(_samples(row), homes, strict=True):
        cost += len(sample.ids)
        if home is not None:
            number, length = home
            if number in joined:
                cost -= length
            joined.add(number)
    return cost, joined


def _samples(row: Row) -> tuple[Sample, ...]:
    return row.samples if isinstance(row, Group) else (row,)


def _length(row: Row) -> int:
    return sum(len(s.ids) for s in _samples(row))


def _flatten(rows: Sequence[Row]) -> tuple[list[Sample], tuple[range, ...]]:
    """All documents in order, and which of them form each group."""
    documents: list[Sample] = []
    groups = []
    for row in rows:
        samples = _samples(row)
        if isinstance(row, Group):
            groups.append(range(len(documents), len(documents) + len(samples)))
        documents.extend(samples)
    return documents, tuple(groups)


def _labels(rows: Sequence[Row]) -> list[float] | None:
    """Labels of the groups, or None where there are none. Raises `DataError` where only some have one."""
    groups = [row for row in rows if isinstance(row, Group)]
    labels = [group.label for group in groups if group.label is not None]
    if labels and len(labels) < len(groups):
        bare = next(group.example_id for group in groups if group.label is None)
        raise DataError("some pairs have a label and others have none", where=f"row {bare}")
    return labels or None


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Which rows each optimiser step learns: a function of the step alone, so a resumed run needs no state for it."""

    rows: int
    batch_size: int
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def of_step(self, step: int) -> Sequence[int]:
        """Row indices of 0-based `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        if not self.shuffle:
            return range(self.rows)[part]
        order: list[int] = _shuffled(self.rows, self.seed, epoch)[part].tolist()
        return order


@lru_cache(maxsize=1)
def _shuffled(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The rows of an epoch in its order; kept until another is asked for, as drawing takes time with many rows."""
    return np.random.default_rng((seed, epoch)).permutation(rows)
