"""The type matrix products are computed in, and the scale that fp16 needs."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunesmith.training.plan import TrainingPlan

Precision = Literal["fp32", "bf16", "fp16"]
WORTH_IT = {"cpu": 4.0, "cuda": 1.5}
"""How much faster half precision must be: what is rounded to 8 bits should buy something. On a CPU it must also make up
for the fused layers, which adapters leave then."""


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""Types of matrix products by the precision that asks for them; fp32 asks for nothing. What fp8 leaves is bf16."""


def choose_precision(device: torch.device | str, rates: Mapping[str, float]) -> tuple[Precision, str]:
    """The type to compute in, and why.

    Parameters
    ----------
    rates: measured operations per second of matrix products by type (`calibration.measured_gemm_rate`), of those types
        that the device has: fp32, and bf16 where it has it; fp16 on a GPU.

    fp16 is taken on a GPU without bf16 only, as its small range makes a scale for the loss necessary.
    """
    plain = rates["fp32"]
    kind = torch.device(device).type
    for name in ("bf16", "fp16"):
        if name not in rates or (name == "fp16" and (kind != "cuda" or "bf16" in rates)):
            continue
        gain = rates[name] / plain
        said = f"products in {name} were measured {gain:.1f} times as fast as in fp32 on this device"
        if gain >= WORTH_IT[kind]:
            return name, said
        return "fp32", f"{said}, which is not worth its rounding"
    return "fp32", "the device has no faster type"


def may_pay(device: torch.device | str) -> bool:
    """Whether half precision could be fast enough on this device, before anything is measured.

    On x86 only tiles (AMX) multiply bf16 four times as fast as fp32; vector instructions do twice as much at best.
    """
    if torch.device(device).type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def precision(device: torch.device, plan: TrainingPlan) -> Iterator[None]:
    """Matrix products in the plan's precision."""
    dtype = AUTOCAST.get(plan.precision)
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield


@dataclass(slots=True)
class LossScaler:
    """A factor on the loss that keeps small gradients of fp16 above zero, found while training (arXiv 1710.03740).

    The loss is multiplied by `scale`, the gradients are divided by it before they are clipped. Where they are not
    finite the scale was too large: the step is left out and the scale halved. After `interval` good steps in a row it
    is doubled. Powers of two change no digits.

    Attributes
    ----------
    scale: the factor now. good: steps in a row with finite gradients. skipped: steps left out so far.
    """

    scale: float = 2.0**16
    interval: int = 2000
    good: int = 0
    skipped: int = 0
    smallest: float = 1.0
    largest: float = 2.0**24

    def update(self, grad_norm: float) -> bool:
        """Take note of a step's gradient norm; returns whether the step is to be taken."""
        if not math.isfinite(grad_norm):
            self.scale, self.good = max(self.smallest, self.scale / 2), 0
            self.skipped += 1
            return False
        self.good += 1
        if self.good >= self.interval:
            self.scale, self.good = min(self.largest, self.scale * 2), 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether gradients were not finite at the smallest scale: then it is not the scale, and training diverges."""
        return self.scale <= self.smallest and self.skipped > 0 and self.good == 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.scale, self.good, self.skipped = float(state["scale"]), int(state["good"]), int(state["skipped"])
