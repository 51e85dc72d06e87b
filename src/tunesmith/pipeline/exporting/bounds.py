"""How far an export may be from the tuned model: by the precision of its weights.

The figures are those of docs/export.md, which says how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.models.artifact import Target


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is allowed; None where a measure does not decide.

    error: of any logit. scaled: of all logits together, as a share of their own length (relative L2 error).
    kl: mean Kullback-Leibler divergence from the tuned model's next token, in nats. kept: distance from 1 of the share
    of the tuning that arrived. differing: share of answers that may differ from the tuned model's.
    """

    words: str
    error: float | None = None
    scaled: float | None = None
    kl: float | None = None
    kept: float = 0.1
    differing: float | None = None


FULL = Bounds("fp32", error=1e-3, kept=0.02, differing=0.02)
HALF = Bounds("half precision", scaled=2e-2, kept=0.05)
EIGHT = Bounds("8 bits", kl=0.01, kept=0.05)
FLOAT8 = Bounds("8-bit floats", kl=0.05, kept=0.1)
FIVE = Bounds("5 to 6 bits", kl=0.04, kept=0.1)
FOUR = Bounds("4 bits", kl=0.15, kept=0.15)

_BY_PRECISION = {
    "fp32": FULL,
    "f32": FULL,
    "fp16": HALF,
    "bf16": HALF,
    "f16": HALF,
    "int8": EIGHT,
    "q8_0": EIGHT,
    "fp8": FLOAT8,
    "q6_k": FIVE,
    "q5_k_m": FIVE,
    "int4": FOUR,
    "q4_0": FOUR,
    "q4_k_m": FOUR,
}


def bounds_of(target: Target, dtypes: Sequence[Any], *, half_activations: bool = False) -> Bounds:
    """The bounds of a target.

    dtypes: in which an export of the precision `own` stores its weights. half_activations: whether its runtime
    computes some of it in half precision, whatever the weights are held in.
    """
    if target.precision != "own":
        found = _BY_PRECISION[target.precision]
        return HALF if found is FULL and half_activations else found
    if target.kind == "adapter":  # beside its base it is computed as it was when it was tuned
        return FULL
    return HALF if any(str(dtype).rpartition(".")[2] in ("float16", "bfloat16") for dtype in dtypes) else FULL
