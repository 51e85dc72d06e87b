"""A small training as a launched process runs it; without pytest, as every process imports this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.small import PLAN, ROWS, VALIDATION, tunable, weights
from tunesmith.training.loop import train

PROJECT = Path(__file__).resolve().parents[2]


def trained(folder: Path, listener: Callable[[dict[str, Any]], None] = lambda event: None) -> dict[str, Any]:
    """What a training in this process (and those beside it) ends with.

    In float64: losses near 7 have a resolution of 5e-7 in float32, too coarse to tell a wrong share from rounding.
    """
    model = tunable(dtype=torch.float64)
    result = train(model, ROWS, PLAN, folder, validation=VALIDATION, listener=listener)
    return {
        "losses": [event["loss"] for event in result.history],
        "tokens": result.tokens,
        "supervised": result.supervised_tokens,
        "best": result.best_step,
        "weights": weights(model),
    }
