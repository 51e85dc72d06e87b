"""How fast this machine multiplies fp32 matrices at best: what "share of the ceiling" refers to.

    python benchmarks/_gemm_ceiling.py      # prints JSON; a few seconds

Square products of 1024 and 2048, by both libraries that torch carries (MKL or what else it was built with, and
oneDNN), in the number of threads torch takes; the fastest of all repetitions counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

SIZES = (1024, 2048)
SECONDS = 1.0
"""Each product is repeated for so long."""


def ceiling() -> dict[str, float]:
    """Best floating-point operations per second by library and size, and the best of all."""
    libraries: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"torch": torch.nn.functional.linear}
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # type: ignore[no-untyped-call]
        libraries["onednn"] = lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    rates = {}
    for size in SIZES:
        x, w = torch.randn(size, size), torch.randn(size, size)
        for name, times in libraries.items():
            rates[f"{name} {size}"] = 2 * size**3 / _fastest(lambda x=x, w=w, times=times: times(x, w))  # type: ignore[misc]
    return {**rates, "best": max(rates.values())}


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    call()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    print(json.dumps(ceiling()))
