"""The next token of every row: the most probable one, or one drawn from the row's own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.inference.types import Sampling

_BELOW_ONE = 1 - 2.0**-40
"""Keeps a draw below the sum of all probabilities, whatever is rounded."""


def streams(sampling: Sampling, places: Sequence[int], tokens: int) -> Tensor:
    """Uniform random numbers [len(places), tokens] in fp64, one per token that may be drawn.

    A row depends on the seed and on its place in the list alone, not on what it is batched with.
    """
    drawn = [np.random.default_rng([sampling.seed, place]).random(tokens) for place in places]
    return torch.from_numpy(np.array(drawn).reshape(len(places), tokens))


def greedy(logits: Tensor) -> Tensor:
    """The most probable token of each row [rows], from logits [rows, V]."""
    return logits.argmax(-1)


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """One token of each row [rows] by inverting the cumulated probabilities of `logits / temperature` [rows, V].

    uniform [rows], fp64 in [0, 1). A token with the logit minus infinity is never drawn.
    """
    shares = (logits.double() / temperature).softmax(-1).cumsum(-1)
    aim = uniform.to(shares.device)[:, None] * shares[:, -1:] * _BELOW_ONE
    found = torch.searchsorted(shares, aim, right=True).squeeze(1)
    return found.clamp_max(logits.shape[1] - 1)
