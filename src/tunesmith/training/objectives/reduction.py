"""What a loss function of the user's returns: one loss per row, their sum, or a mean, and whether weights are in it.

Rows of a step are computed in several batches and chunks, so only sums can be added up; textbook losses return means.
Which of the two a function returns is not asked but measured, once, before training: on a few random rows, each alone
and all together. A function that fits none of the forms depends on how rows are grouped, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ROWS = 4
_WEIGHTS = (2.0, 0.5, 1.0, 3.0)
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Reduction:
    """`form` of the result; `weighted`: the rows' weights are in it already."""

    form: Literal["each", "sum", "mean", "weighted_mean"]
    weighted: bool = False

    @property
    def ignores_weights(self) -> bool:
        """Whether weights that are not all 1 are lost, as they cannot be applied to what is summed already."""
        return self.form != "each" and not self.weighted

    def total(self, value: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of losses, a scalar, from what the function returned for rows of these weights [S]."""
        if self.form == "each":
            each = value.reshape(-1)
            return each.sum() if self.weighted else (each * weights).sum()
        scalar = value.reshape(())
        if self.form == "mean":
            return scalar * len(weights)
        return scalar * weights.sum() if self.form == "weighted_mean" else scalar


def random_weights(device: torch.device) -> Tensor:
    """The weights [ROWS] that `measure` uses: all different, and nothing that sums to a round number."""
    return torch.tensor(_WEIGHTS, device=device)


def measure(loss: Callable[[Tensor, Tensor], Tensor], weights: Tensor) -> Reduction | str:
    """The reduction of `loss(rows [n] int64, weights [n])`, or what is wrong with it, as a phrase."""
    rows = torch.arange(ROWS, device=weights.device)
    whole = loss(rows, weights)
    if not isinstance(whole, Tensor):
        return f"returns a {type(whole).__name__}, not a tensor"
    if whole.numel() not in (1, ROWS) or whole.numel() != max(whole.shape, default=1):
        return f"returns a tensor of shape {list(whole.shape)} for {ROWS} rows"
    if not whole.requires_grad:
        return "returns something that has no gradient (a detached or rounded value?)"
    alone = [loss(rows[i : i + 1], torch.ones_like(weights[:1])) for i in range(ROWS)]
    if any(not isinstance(a, Tensor) or a.numel() != 1 for a in alone):
        return "returns several numbers for a single row"
    each = torch.stack([a.detach().reshape(()) for a in alone])
    value, weighed = whole.detach().reshape(-1), each * weights
    if not (torch.isfinite(value).all() and torch.isfinite(each).all()):
        return "returns nan or infinity for random inputs"
    if whole.numel() == ROWS:
        forms = [(Reduction("each", True), weighed), (Reduction("each"), each)]
    else:
        forms = [
            (Reduction("weighted_mean", True), weighed.sum() / weights.sum()),
            (Reduction("mean", True), weighed.sum() / ROWS),
            (Reduction("sum", True), weighed.sum()),
            (Reduction("mean"), each.sum() / ROWS),
            (Reduction("sum"), each.sum()),
        ]
    size = float(each.abs().max())
    for reduction, expected in forms:
        if size and float((value - expected).abs().max()) <= _TOLERANCE * size:
            return reduction
    zero = not size and not value.any()
    return "returns 0 for every row" if zero else "returns a value that depends on which rows are computed together"
