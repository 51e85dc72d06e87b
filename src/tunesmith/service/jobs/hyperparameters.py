"""What `auto` means: rules by which hyperparameters become numbers, each with a reason that can be read on the job.

OpenAI's own rules are not published; these are ours. The rule for epochs is that of OpenAI's notebook for preparing
chat data, the one for the batch size its old documentation's 0.2 % of the rows.

A learning-rate multiplier multiplies a rate that is told: the usual peak rate of LoRA on a base of that size
(`recipe.resolve`), which is meant for batches of eight rows, times √(batch size / 8) for smaller ones, whose gradients
are noisier (the square-root rule, arXiv 1404.5997), and never more than the usual one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.recipe.resolve import shown, usual_learning_rate
from tunesmith.service.jobs.request import AUTO, LARGEST_BATCH

TARGET_EPOCHS, MOST_AUTO_EPOCHS = 3, 25
LEAST_PASSES, MOST_PASSES = 100, 25_000
"""Rows times epochs between which three epochs are right."""
BATCH_SHARE = 0.002
USUAL_BATCH = 8
NAMES = ("n_epochs", "batch_size", "learning_rate_multiplier")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The numbers of one job. `reasons` says by the name of a number where it comes from."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    steps_per_epoch: int
    reasons: Mapping[str, str]

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.n_epochs * self.steps_per_epoch

    def hyperparameters(self) -> dict[str, Any]:
        """The three that OpenAI's job object has."""
        return {name: getattr(self, name) for name in NAMES}


def resolve_hyperparameters(asked: Mapping[str, Any], rows: int, parameters: int) -> Resolved:
    """Numbers for what was asked, on so many training rows and a base of so many parameters.

    A batch is never larger than the file: what was asked for beyond is lowered, and the reason says so.
    """
    reasons: dict[str, str] = {}
    n_epochs = asked.get("n_epochs", AUTO)
    if n_epochs == AUTO:
        n_epochs = auto_epochs(rows)
        reasons["n_epochs"] = f"auto: {_epochs_reason(rows)}"
    batch_size = asked.get("batch_size", AUTO)
    if batch_size == AUTO:
        batch_size = auto_batch_size(rows)
        reasons["batch_size"] = f"auto: 0.2 % of {rows:,} training rows, at least 1 and at most {LARGEST_BATCH}"
    elif batch_size > rows:
        reasons["batch_size"] = f"{batch_size} was asked for, and there are {rows:,} training rows"
        batch_size = max(1, rows)
    multiplier = asked.get("learning_rate_multiplier", AUTO)
    if multiplier == AUTO:
        multiplier = 1.0
        reasons["learning_rate_multiplier"] = "auto: 1"
    usual, factor = usual_learning_rate("lora", parameters), batch_factor(batch_size)
    reasons["learning_rate"] = (
        f"multiplier {multiplier:g} x {shown(usual)}, the usual peak rate of LoRA on {parameters:,} parameters"
        + (f", x {factor:.3g} = sqrt({batch_size}/{USUAL_BATCH}) for the small batch" if factor < 1 else "")
    )
    return Resolved(
        n_epochs=int(n_epochs),
        batch_size=int(batch_size),
        learning_rate_multiplier=float(multiplier),
        learning_rate=float(multiplier) * usual * factor,
        steps_per_epoch=max(1, math.ceil(rows / batch_size)),
        reasons={name: reasons.get(name, "as asked for") for name in (*NAMES, "learning_rate")},
    )


def auto_epochs(rows: int) -> int:
    """Three; more where rows times three are fewer than 100 (at most 25), fewer where they are over 25,000."""
    rows = max(1, rows)
    if rows * TARGET_EPOCHS < LEAST_PASSES:
        return min(MOST_AUTO_EPOCHS, LEAST_PASSES // rows)
    if rows * TARGET_EPOCHS > MOST_PASSES:
        return max(1, MOST_PASSES // rows)
    return TARGET_EPOCHS


def auto_batch_size(rows: int) -> int:
    """0.2 % of the rows, from 1 to 256."""
    return max(1, min(LARGEST_BATCH, round(rows * BATCH_SHARE)))


def batch_factor(batch_size: int) -> float:
    """What a batch smaller than eight rows does to the usual learning rate: √(batch size / 8); else 1."""
    return min(1.0, math.sqrt(batch_size / USUAL_BATCH))


def _epochs_reason(rows: int) -> str:
    if rows * TARGET_EPOCHS < LEAST_PASSES:
        return f"3 raised until {rows:,} rows are seen about {LEAST_PASSES} times in all, at most {MOST_AUTO_EPOCHS}"
    if rows * TARGET_EPOCHS > MOST_PASSES:
        return f"3 lowered until {rows:,} rows are seen at most {MOST_PASSES:,} times in all, at least 1"
    return "3, the usual number"
