"""What a learning curve says of more training rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MoreRows:
    """Of `rows` training rows in all, the expected gain of the deciding metric with its interval; fractions."""

    rows: int
    gain: float
    gain_low: float
    gain_high: float
