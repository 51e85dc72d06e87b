"""How far a model's predictions are from those it gave before its weights were cut: mean KL over tokens of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.export.quantise.calibration import within

_HELD = 1 << 26
"""Logits that are held at most (256 MiB): rows are fewer where the vocabulary is large."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows of token ids and the log-probabilities [T, vocabulary] of a model after each of their tokens."""

    rows: tuple[tuple[int, ...], ...]
    expected: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: Any, rows: Sequence[Sequence[int]], tokens: int = 2_048) -> Reference:
        """What `model` gives now, on the first of `rows` with no more than `tokens` tokens together."""
        vocabulary = int(model.config.get_text_config().vocab_size)
        chosen = tuple(tuple(row) for row in within(rows, max(16, min(tokens, _HELD // vocabulary))))
        return cls(chosen, tuple(_predictions(model, row) for row in chosen))

    def divergence(self, model: Any) -> float:
        """Mean KL(before ‖ now) in nats per token."""
        total, tokens = 0.0, 0
        for row, expected in zip(self.rows, self.expected, strict=True):
            found = _predictions(model, row)
            total += float((expected.exp() * (expected - found)).sum())
            tokens += len(row)
        return max(0.0, total / tokens)

    def agreement(self, model: Any) -> float:
        """Share of tokens after which the likeliest next one is the same."""
        same = [
            (expected.argmax(-1) == _predictions(model, row).argmax(-1))
            for row, expected in zip(self.rows, self.expected, strict=True)
        ]
        return float(torch.cat(same).float().mean())


@torch.inference_mode()
def _predictions(model: Any, row: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(row)], device=next(model.parameters()).device)
    found: Tensor = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
    return found
