"""What a training would take on other machines, and cost with services: profiles with their source, and the formulas.

Nothing here is measured by us. Times are ranges:

    operations = k · parameters · tokens           k = 4 with frozen weights (forward, and backward to the adapters),
                                                   6 for full tuning (and for the weights' own gradients)
    seconds    = operations / (share of the peak that trainings reach · peak)

The share is what has been published for adapters on one H100, by the size of the base: small models are bound by the
launching of kernels and not by arithmetic, so a slower GPU is not slower for them in proportion.

    memory at least = weights + 16 bytes per trained value + 2 · hidden · layers · longest row (layers recomputed)
                      + 34 · hidden · longest row (the layer in work: Korthikanti et al. 2022, arXiv 2205.05198)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from tunesmith.recipe.schema import Method


@dataclass(frozen=True, slots=True)
class Device:
    """A machine as it is sold. `peak`: dense 16-bit operations per second with 32-bit sums; `watts`: its limit.

    `per_hour`: in US dollars, None where it is bought and not rented.
    """

    name: str
    peak: float
    memory_bytes: int
    watts: float
    per_hour: float | None


@dataclass(frozen=True, slots=True)
class Service:
    """A service that tunes for a price per million training tokens (rows' tokens times epochs), in US dollars."""

    name: str
    per_million_tokens: float


_GB = 10**9
DEVICES = (
    Device("NVIDIA T4", 65e12, 16 * _GB, 70, 0.59),
    Device("NVIDIA L4", 121e12, 24 * _GB, 72, 0.80),
    Device("NVIDIA RTX 4090", 165e12, 24 * _GB, 450, None),
    Device("NVIDIA L40S", 362e12, 48 * _GB, 350, 1.95),
    Device("NVIDIA A100 80GB", 312e12, 80 * _GB, 400, 2.50),
    Device("NVIDIA H100 SXM", 989e12, 80 * _GB, 700, 3.95),
)
DEVICE_SOURCE = (
    "peak (bf16, dense), memory and power as the maker states them; prices of an hour as one cloud (Modal) asked in "
    "May 2026, both read second-hand: put your own into verdict.prices"
)

SERVICES = (
    Service("OpenAI gpt-4.1", 25.0),
    Service("OpenAI gpt-4.1-mini", 5.0),
    Service("OpenAI gpt-4.1-nano", 1.5),
    Service("OpenAI gpt-4o", 25.0),
)
SERVICE_SOURCE = "OpenAI's last price list for tuning, 2026; tokens counted by this base's tokenizer, theirs differs"

_H100 = 989e12
_REACHED = ((0.6e9, 0.06, 0.14), (1.7e9, 0.15, 0.24), (4e9, 0.21, 0.27), (8e9, 0.28, 0.43))
"""Parameters of the base; lowest and highest share of an H100's peak reached by published LoRA trainings on one."""
SHARE_SOURCE = (
    "share of the peak: 6-14 % at 0.6 billion parameters to 28-43 % at 8 billion, as published for LoRA on one H100"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a base decides memory and time. `matrices`: weights of matrix products, per token used once."""

    parameters: int
    matrices: int
    layers: int
    hidden: int
    trained: int


def operations_per_token(shape: Shape, method: Method) -> float:
    """Floating-point operations that learning one token takes, attention left out."""
    return (6.0 if method.type == "full" else 4.0) * shape.matrices


def reached(device: Device, parameters: int) -> tuple[float, float]:
    """Lowest and highest operations per second that a training of a base of this size reaches on a device.

    Between the published sizes in proportion to the logarithm; below the smallest in proportion to the size, as the
    time of a step is that of launching its kernels.
    """
    low, high = _share(parameters)
    best_low, best_high = _REACHED[-1][1:]
    return min(device.peak * best_low, _H100 * low), min(device.peak * best_high, _H100 * high)


def seconds(device: Device, shape: Shape, method: Method, tokens: int) -> tuple[float, float]:
    """Shortest and longest time of learning `tokens` tokens (rows' tokens times epochs)."""
    operations = operations_per_token(shape, method) * tokens
    low, high = reached(device, shape.parameters)
    return operations / high, operations / low


def least_memory(shape: Shape, method: Method, longest: int) -> int:
    """Bytes below which the training cannot be done on a GPU, whatever is recomputed; one row at a time.

    Weights have 16 bits (8 or about 4.5 where `method.quantize` says so), and 32 where they are trained.
    """
    if method.type == "full":
        weights = 0.0  # among the trained values
    else:
        weights = shape.parameters * {"none": 2.0, "int8": 1.0, "nf4": 0.56}[method.quantize]
    kept = 2 * shape.hidden * shape.layers * longest
    in_work = 34 * shape.hidden * longest
    return math.ceil(weights + 16 * shape.trained + kept + in_work)


def _share(parameters: int) -> tuple[float, float]:
    smallest, low, high = _REACHED[0]
    if parameters <= smallest:
        return low * parameters / smallest, high * parameters / smallest
    for (size, low, high), (larger, more_low, more_high) in itertools.pairwise(_REACHED):
        if parameters <= larger:
            part = math.log(parameters / size) / math.log(larger / size)
            return low + part * (more_low - low), high + part * (more_high - high)
    return _REACHED[-1][1], _REACHED[-1][2]
