"""How much of a machine a training uses: its needed arithmetic per second over the measured rate of products (MFU)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.text.types import Group, Sample
from tunesmith.training.calibration import known_gemm_rate, measured_gemm_rate
from tunesmith.training.flops import needed_flops

_LOOKED_AT = 1_000
"""Rows from which the operations per token are counted."""


class Utilisation:
    """The share of this device's rate of matrix products that a training reaches.

    The rate is what was measured on this machine before. Where nothing was, `measure` does it (half a second): to be
    called after the first step, so that nobody waits for it before.

    Attributes
    ----------
    per_token: operations that one token needs (`flops.needed_flops`). rate: operations per second, or None.
    """

    def __init__(self, model: Any, rows: Sequence[Sample | Group], precision: str) -> None:
        samples = [s for row in rows[:_LOOKED_AT] for s in (row.samples if isinstance(row, Group) else (row,))]
        lengths = [len(s.ids) for s in samples]
        self.per_token = needed_flops(model, lengths, sum(s.supervised for s in samples)) / sum(lengths)
        self._precision, self._device = precision, model.device
        self.rate = known_gemm_rate(precision, model.device)

    def of(self, tokens_per_second: float) -> Mapping[str, float]:
        """`mfu`, where the rate is known."""
        return {} if self.rate is None else {"mfu": tokens_per_second * self.per_token / self.rate}

    def measure(self) -> None:
        """Measure the rate if it is not known, and keep it for this machine."""
        if self.rate is None:
            self.rate = measured_gemm_rate(self._precision, self._device)
