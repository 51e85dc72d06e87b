"""Measuring, on fixed rows, what a loss curve does not show.

A step's loss is of rows seen once, at weights that change; the validation loss is of other rows. Whether a model learns
by heart, learns at all, or only learns how often each answer occurs can be told only by measuring *training* rows and
validation rows alike, at the same weights and without dropout. That is a probe: at most `ROWS` of each, forward only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Sample
from tunesmith.training.batching import collate

ROWS = 64
"""Rows of each kind: the standard error of a token accuracy is then at most 6 points, for answers of one token."""

_TOKENS_AT_ONCE = 4096
_LOGITS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class RowMeasures:
    """Per row [n]: weighted loss sum (natural logarithm), summed weights, and learnt tokens: how many, how many hit."""

    loss: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]

    @property
    def mean_loss(self) -> float:
        """Loss per unit of weight over all rows; NaN where nothing is learnt."""
        weight = float(self.weight.sum())
        return float(self.loss.sum()) / weight if weight else math.nan

    @property
    def error(self) -> float:
        """Standard error of `mean_loss` as rows go, which are drawn, not tokens: the usual one of a ratio of sums.

        A few rows that are answered wrongly and surely make it large. NaN with fewer than two rows.
        """
        rows, weight = len(self.loss), float(self.weight.sum())
        if rows < 2 or not weight:
            return math.nan
        residuals = self.loss - self.mean_loss * self.weight
        return math.sqrt(float((residuals**2).sum()) * rows / (rows - 1)) / weight

    @property
    def accuracy(self) -> float:
        """Share of learnt tokens that the model finds most likely, each given the right ones before it."""
        tokens = int(self.tokens.sum())
        return int(self.hits.sum()) / tokens if tokens else math.nan


class Probe:
    """The same rows measured again and again: `measure` gives the fields of a validation event's `probe`."""

    def __init__(self, train: Sequence[Sample], validation: Sequence[Sample], rows: int = ROWS, seed: int = 0) -> None:
        self.train = _drawn([s for s in train if s.supervised], rows, seed)
        self.validation = _drawn([s for s in validation if s.supervised], rows, seed)

    def measure(self, model: LanguageModel) -> dict[str, float]:
        """`train_loss`, `train_accuracy`; of validation rows `loss`, `accuracy`, `loss_error`; where there are rows."""
        readings = {}
        for prefix, rows in (("train_", self.train), ("", self.validation)):
            if rows:
                measured = measure_rows(model, rows)
                readings[f"{prefix}loss"], readings[f"{prefix}accuracy"] = measured.mean_loss, measured.accuracy
                if rows is self.validation:
                    readings["loss_error"] = measured.error
        return readings


@torch.no_grad()
def measure_rows(model: LanguageModel, samples: Sequence[Sample], tokens_at_once: int = _TOKENS_AT_ONCE) -> RowMeasures:
    """Loss and hits of each row, each computed apart from the others: a row that is not finite spoils only itself."""
    was_training = model.model.training
    model.model.eval()
    loss, weight = np.zeros(len(samples)), np.zeros(len(samples))
    tokens, hits = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int64)
    try:
        with model.packed():
            for rows in _streams(samples, tokens_at_once):
                batch = collate([samples[i] for i in rows], model.device)
                learnt = torch.nonzero(batch.weights).squeeze(1)
                if not len(learnt):
                    continue
                # The rows of the learnt tokens, in the order of the stream.
                owner = np.repeat(rows, [len(samples[i].ids) for i in rows])[learnt.cpu().numpy()]
                hidden = model.hidden(batch.ids, batch.packing)[learnt - 1]
                each, hit = _token_losses(model, hidden, batch.ids[learnt])
                np.add.at(loss, owner, (each.double() * batch.weights[learnt].double()).cpu().numpy())
                np.add.at(weight, owner, batch.weights[learnt].double().cpu().numpy())
                np.add.at(tokens, owner, 1)
                np.add.at(hits, owner, hit.long().cpu().numpy())
    finally:
        model.model.train(was_training)
    return RowMeasures(loss, weight, tokens, hits)


def _token_losses(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and hit of each token [N] from hidden states [N, H]; logits exist for a part at a time."""
    weight, bias = model.head()
    losses, hits = [], []
    for start in range(0, len(targets), _LOGITS_AT_ONCE):
        part = slice(start, start + _LOGITS_AT_ONCE)
        logits = model.rule(torch.nn.functional.linear(hidden[part], weight, bias)).float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets[part], reduction="none"))
        hits.append(logits.argmax(-1) == targets[part])
    return torch.cat(losses), torch.cat(hits)


def _drawn(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most `count` of the samples, by seed, in their order."""
    if len(samples) <= count:
        return list(samples)
    chosen = np.random.default_rng(seed).choice(len(samples), count, replace=False)
    return [samples[i] for i in sorted(chosen.tolist())]


def _streams(samples: Sequence[Sample], tokens_at_once: int) -> Iterator[list[int]]:
    """Indices of rows that are computed together: at most so many tokens, or one row."""
    rows: list[int] = []
    size = 0
    for i, sample in enumerate(samples):
        if rows and size + len(sample.ids) > tokens_at_once:
            yield rows
            rows, size = [], 0
        rows.append(i)
        size += len(sample.ids)
    if rows:
        yield rows
