"""Whether an export surely loses no more than is allowed: one decision for verifying and for choosing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tunesmith.evaluation.statistics import non_inferiority, rows_needed
from tunesmith.evaluation.statistics.types import z_value


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rows say.

    status: `unsure` where less than the margin was lost, and chance could have hidden more. p_value: of "it loses the
    margin or more"; None where that cannot be tested. rows: about how many would show it, where it is unsure.
    """

    status: Literal["passed", "failed", "unsure"]
    p_value: float | None = None
    rows: int | None = None


def decide(
    difference: float,
    low: float,
    n: int,
    margin: float,
    *,
    differing: int,
    identical: bool,
    confidence: float,
    power: float,
) -> Decision:
    """Compare a loss with what is allowed.

    Parameters
    ----------
    difference, low: export minus tuned model on n rows, and the lower end of its two-sided interval at `confidence`.
    margin: the loss that is allowed.
    differing: rows whose score is another one. identical: whether every answer is the same, word for word.
    power: with which the rows that would be enough are to show it.

    Surely means what it means in verdicts: the interval's lower end lies above the margin (one-sided at half of
    1 - confidence). The p-value is made of that end, not of the interval's whole width: losses of quantised models are
    skewed, a few rows that lose much, and a symmetric error calls too many exports sure that lose the whole margin.
    """
    error = (difference - low) / z_value(confidence)
    p = non_inferiority(difference, error, margin) if margin > 0 and error > 0 else None
    if identical:
        return Decision("passed", p)
    if difference < -margin:
        return Decision("failed", p)
    if p is not None and p <= (1 - confidence) / 2:
        return Decision("passed", p)
    return Decision("unsure", p, _rows(difference, error, n, margin, differing, confidence, power))


def _rows(
    difference: float, error: float, n: int, margin: float, differing: int, confidence: float, power: float
) -> int | None:
    """Rows that would show it, were the loss what it measured; None where no number would."""
    distance = margin + difference
    if distance <= 0:
        return None
    if differing == 0:  # the interval then shrinks with the number of rows, and not with its root
        return max(n + 1, math.ceil(math.log((1 - confidence) / 2) / math.log1p(-min(distance, 0.5))))
    return rows_needed(distance, error, n, confidence=confidence, power=power) if error > 0 else None
