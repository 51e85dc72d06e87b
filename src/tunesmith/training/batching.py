"""From samples to batches: a flat stream of tokens per micro-batch, no padding, documents kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.ops.packed_attention import Packing
from tunesmith.text.types import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """A stream of documents. `ids` [T] int64, `weights` [T] float32, `packing` says where documents lie."""

    ids: Tensor
    weights: Tensor
    packing: Packing

    @property
    def tokens(self) -> int:
        return len(self.ids)


def collate(samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
    """One stream from samples, in their order."""
    return Batch(
        ids=torch.from_numpy(np.concatenate([s.ids for s in samples])).to(device),
        weights=torch.from_numpy(np.concatenate([s.weights for s in samples])).to(device),
        packing=Packing.of([len(s.ids) for s in samples], device),
    )


def micro_batches(samples: Sequence[Sample], token_budget: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The rows of one optimiser step, longest first, in streams of at most `token_budget` tokens (or one document).

    Rows without anything to learn are left out: they would cost time and change nothing. How rows are grouped does
    not change the step, as losses are summed and divided by the step's weight once.
    """
    rows = sorted((s for s in samples if s.supervised), key=lambda s: -len(s.ids))
    stream: list[Sample] = []
    size = 0
    for sample in rows:
        if stream and size + len(sample.ids) > token_budget:
            yield collate(stream, device)
            stream, size = [], 0
        stream.append(sample)
        size += len(sample.ids)
    if stream:
        yield collate(stream, device)


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
        order: list[int] = np.random.default_rng((self.seed, epoch)).permutation(self.rows)[part].tolist()
        return order
