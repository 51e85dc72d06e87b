"""Streams of fixed shapes: rounding the shape of a batch up, and laying the batch out in tensors of that shape.

What fills a shape up are documents of their own that nothing is learnt from: no token of a row sees them, their losses
have weight zero, and so have the gradients that come from them. The shape follows from the batch alone (and from limits
that a training has from its beginning), so that a repetition computes the same bits whatever was computed before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.ops.fixed_packing import FixedPacking
from tunesmith.ops.packing import Runs
from tunesmith.training.batching import Batch

_FINEST = 64
_PER_OCTAVE = 8
"""Sizes of streams between one power of two and the next: at most an eighth of a stream is filling, a sixteenth on
average."""
_PARTS = 8
"""Supervised positions are counted in so many parts of the tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a graph is captured for: tokens T, supervised positions S, documents D, the longest document."""

    tokens: int
    learnt: int
    documents: int
    longest: int

    @classmethod
    def of(cls, batch: Batch, budget: int, longest: int) -> Shape:
        """The smallest that holds a batch without shared prefixes.

        budget: tokens up to which batches are filled; only a row that is longer itself makes a stream longer.
        longest: tokens of the longest row of the training.
        """
        tokens = rounded_tokens(batch.tokens)
        if batch.tokens <= budget:
            tokens = min(tokens, budget)
        part = -(-tokens // _PARTS)
        widest = _power_of_two(max(longest, *batch.packing.lengths, _FINEST))
        filling = -(-(tokens - batch.tokens) // widest)
        return cls(
            tokens=tokens,
            learnt=min(tokens, part * -(-max(1, len(batch.learnt)) // part)),
            documents=_power_of_two(len(batch.packing.lengths) + filling),
            longest=widest,
        )


def rounded_tokens(tokens: int) -> int:
    """A number of tokens rounded up to a multiple of an eighth of the power of two below it, and of 64 at least."""
    step = max(_FINEST, _power_of_two(tokens) // 2 // _PER_OCTAVE)
    return -(-tokens // step) * step


class FixedInputs:
    """The tensors that a graph reads: a batch laid out in a shape, in memory that stays where it is.

    ids [T] int64; positions [1, T] int64; starts [D+1] int32; places, targets [S] int64: where something is predicted
    and what; weights [S] float32.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.ids, self.places, self.targets = (
            torch.zeros(size, dtype=torch.int64, device=device) for size in (shape.tokens, shape.learnt, shape.learnt)
        )
        self.weights = torch.zeros(shape.learnt, device=device)
        positions = torch.zeros(1, shape.tokens, dtype=torch.int64, device=device)
        starts = torch.zeros(shape.documents + 1, dtype=torch.int32, device=device)
        self.packing = FixedPacking(positions, Runs(None, starts, shape.longest))

    def fill(self, batch: Batch) -> None:
        """Copy a batch (on the CPU) into the tensors, without waiting for the device."""
        shape, tokens, learnt = self.shape, batch.tokens, len(batch.learnt)
        lengths = list(batch.packing.lengths)
        left = shape.tokens - tokens
        filling = [min(shape.longest, left - at) for at in range(0, left, shape.longest)]
        ends = torch.tensor(lengths + filling).cumsum(0)
        starts = torch.full((shape.documents + 1,), shape.tokens, dtype=torch.int32)
        starts[0] = 0
        starts[1 : 1 + len(ends)] = ends
        _copy(self.packing.runs.starts, starts)
        _copy(self.packing.positions, torch.cat([batch.packing.positions[0], *map(torch.arange, filling)])[None])
        _copy(self.ids, torch.cat([batch.ids, batch.ids[:1].expand(left)]))
        # Positions without weight are spread over the stream: gradients of one and the same would wait for each other.
        more = torch.arange(shape.learnt - learnt)
        _copy(self.places, torch.cat([batch.previous[batch.learnt], more]))
        _copy(self.targets, torch.cat([batch.ids[batch.learnt], batch.ids[:1].expand(len(more))]))
        _copy(self.weights, torch.cat([batch.weights[batch.learnt], torch.zeros(len(more))]))


def _copy(target: Tensor, source: Tensor) -> None:
    """To a GPU by way of pinned memory, which its allocator keeps until the copy has been made."""
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


def _power_of_two(number: int) -> int:
    """The smallest that is not below `number` (1 at least)."""
    return 1 << max(0, number - 1).bit_length()
