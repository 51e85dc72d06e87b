"""Where the documents of a flat stream of tokens lie.

A stream is one row of `T` tokens, made of *segments* without padding. A segment is a whole document, or a prefix that
several documents begin with, or what one of those documents has after it. A prefix stands in the stream once, with
the segments that continue it right behind:

    [ prefix | suffix of a | suffix of b | suffix of c ]  [ document d ]  [ document e ]

Positions of a suffix go on from the prefix. Attention of a document's own segment is causal within the segment; for
that part alone, segments of similar length are laid side by side in a small rectangle, padded on the right. What
stands to the right of a token cannot reach it, so the rectangle needs no mask and its padding changes nothing. The
cost is the padded corner of each rectangle (at most `WASTE` of it by construction) instead of the `T x T` mask of a
naive packed row; the gain over one call per document is far fewer, larger calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.errors import EngineError

WASTE = 0.25
"""Largest share of a document's rectangle row that may be padding."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """`count` segments side by side, `length` tokens wide. `source` [count*length] points into the stream."""

    source: Tensor
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """`length` tokens from `start` on that the segments right behind them, of lengths `suffixes`, continue."""

    start: int
    length: int
    suffixes: tuple[int, ...]

    @property
    def keys(self) -> slice:
        """Stream places of the prefix."""
        return slice(self.start, self.start + self.length)

    @property
    def queries(self) -> slice:
        """Stream places of all that continues it."""
        return slice(self.start + self.length, self.start + self.length + sum(self.suffixes))


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of tokens end to end, as kernels for documents of any lengths want them.

    `places` [N] of the tokens in the stream (None: the stream itself); `starts` [S+1] int32; `longest` run.
    """

    places: Tensor | None
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, runs: Sequence[slice], device: torch.device | str, *, whole: bool = False) -> Runs:
        """From stream places; `whole` where they are all of the stream in order."""
        lengths = [run.stop - run.start for run in runs]
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
        places = None if whole else torch.cat([torch.arange(run.start, run.stop) for run in runs]).to(device)
        return cls(places, starts, max(lengths))


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each segment of a stream lies, and how segments are grouped for attention.

    `lengths`: of the segments, in stream order. `prefixes`: those that others continue, in stream order.
    `target` [T]: the place of each stream token in the concatenated rectangles. `positions` [1, T]: position in its
    document. `plain`: the rectangles laid end to end are the stream itself. `runs`: the segments, and `crossing`: what
    continues the prefixes and the prefixes themselves, one run per prefix each; None where nothing is shared.
    """

    rectangles: tuple[Rectangle, ...]
    target: Tensor
    positions: Tensor
    plain: bool
    lengths: tuple[int, ...]
    prefixes: tuple[SharedPrefix, ...]
    runs: Runs
    crossing: tuple[Runs, Runs] | None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        continued: Sequence[tuple[int, int]] = (),
    ) -> Packing:
        """The packing of segments of these lengths, in stream order.

        `continued`: pairs (index of a segment that is a prefix, how many segments right behind it continue it).
        """
        starts, total = [], 0
        for length in lengths:
            starts.append(total)
            total += length
        offsets = [0] * len(lengths)
        prefixes, free = [], 0
        for index, count in sorted(continued):
            behind = range(index + 1, index + 1 + count)
            if index < free or not behind or behind.stop > len(lengths):
                raise EngineError(f"segment {index} of {len(lengths)} cannot be a prefix of {count} behind it")
            for i in behind:
                offsets[i] = lengths[index]
            prefixes.append(SharedPrefix(starts[index], lengths[index], tuple(lengths[i] for i in behind)))
            free = behind.stop
        rectangles, target = _rectangles(lengths, starts, total, device)
        positions = torch.cat([torch.arange(o, o + n) for o, n in zip(offsets, lengths, strict=True)])
        keys, queries = [p.keys for p in prefixes], [p.queries for p in prefixes]
        return cls(
            rectangles=rectangles,
            target=target.to(device),
            positions=positions[None].to(device),
            plain=sum(len(r.source) for r in rectangles) == total and bool((target == torch.arange(total)).all()),
            lengths=tuple(lengths),
            prefixes=tuple(prefixes),
            runs=Runs.of([slice(s, s + n) for s, n in zip(starts, lengths, strict=True)], device, whole=True),
            crossing=(Runs.of(queries, device), Runs.of(keys, device)) if prefixes else None,
        )

    @property
    def segments(self) -> list[tuple[slice, slice]]:
        """Per segment, the stream places of the prefix it continues (empty: none) and its own."""
        continues = {}
        for prefix in self.prefixes:
            at = prefix.queries.start
            for length in prefix.suffixes:
                continues[at] = prefix.keys
                at += length
        segments, at = [], 0
        for length in self.lengths:
            segments.append((continues.get(at, slice(0, 0)), slice(at, at + length)))
            at += length
        return segments


def _rectangles(
    lengths: Sequence[int], starts: Sequence[int], total: int, device: torch.device | str
) -> tuple[tuple[Rectangle, ...], Tensor]:
    """Segments grouped by length, longest first, and the place [T] of each stream token in the groups end to end."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] >= (1 - WASTE) * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    rectangles, offset = [], 0
    target = torch.empty(total, dtype=torch.long)
    for group in groups:
        width = lengths[group[0]]
        columns = torch.arange(width)
        sizes = torch.tensor([lengths[i] for i in group])
        begins = torch.tensor([starts[i] for i in group])
        # Padding repeats the segment's own last token, so that no document ever touches another's values.
        source = begins[:, None] + torch.minimum(columns[None, :], sizes[:, None] - 1)
        real = columns[None, :] < sizes[:, None]
        places = offset + torch.arange(len(group) * width).view(len(group), width)
        target[source[real]] = places[real]
        rectangles.append(Rectangle(source.flatten().to(device), len(group), width))
        offset += len(group) * width
    return tuple(rectangles), target
