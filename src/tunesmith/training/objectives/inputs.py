"""What objectives take from a batch: hidden states where something is learnt, pooled texts of pairs, weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.errors import DataError
from tunesmith.models.forward import LanguageModel
from tunesmith.training.batching import Batch


def batch_weight(batch: Batch) -> float:
    """What a batch's loss sum is divided by: its pairs, or the summed weights of its tokens."""
    if batch.labels is not None:
        return float(len(batch.groups))
    return float(sum(row.weights.sum(dtype="float64") for row in batch.rows))


def supervised(model: LanguageModel, batch: Batch, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [S, H] from which supervised tokens are predicted, these tokens [S], and their weights [S].

    `positions` [S]: stream places to take instead of `learnt_positions`.
    """
    learnt = learnt_positions(batch) if positions is None else positions
    hidden = model.hidden(batch.ids, batch.packing)
    return hidden[batch.previous[learnt]], batch.ids[learnt], batch.weights[learnt]


def learnt_positions(batch: Batch) -> Tensor:
    """Where the stream holds supervised tokens: [S] int64."""
    return batch.learnt


def pair_states(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled hidden states [G, H] of the first and the second text of each pair, and the labels [G], at least fp32.

    Raises `DataError` for rows that are no labelled pairs.
    """
    if batch.labels is None or any(len(group) != 2 for group in batch.groups):
        raise DataError(
            "this objective compares pairs of texts, and the rows are none",
            where="train.objective",
            expected="rows of two texts and a label",
            fix="set data.columns: {prompt: …, second: …, answer: …}, or another objective",
        )
    pooled = model.pooled(batch)
    pooled = pooled.float() if pooled.dtype in (torch.float16, torch.bfloat16) else pooled
    first = torch.tensor([group[0] for group in batch.groups], device=pooled.device)
    second = torch.tensor([group[1] for group in batch.groups], device=pooled.device)
    return pooled[first], pooled[second], batch.labels.to(pooled.device, pooled.dtype)
