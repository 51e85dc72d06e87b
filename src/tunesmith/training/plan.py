"""All numbers one training run is made of; nothing here is `auto` any more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Optimisation settings, in optimiser steps, rows and tokens (see `recipe/schema.py` for their meaning).

    `select_by` "last" keeps the last weights and never stops early, as training from scratch wants it. `precision`
    is that of matrix products: bf16 and fp16 are `torch.autocast` over weights of at least fp32, or simply what weights
    held in that type compute in; fp8 is bf16 with linear layers in 8 bits (`ops.fp8`). `read_every`: steps after which
    numbers are read from the device at the latest; until then it is never waited for. `keep_epochs`: the last so many
    ends of epochs of which the weights stay, beside the checkpoints to continue from. `watch_every`: steps after which
    `watch_rows` of the validation rows are measured, others each time. `log_every`: steps after which one is told; 0
    goes by time.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    decay_ratio: float = 0.2
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 4096
    shuffle: bool = True
    evaluate_every: int = 0
    watch_every: int = 0
    watch_rows: int = 8
    log_every: int = 0
    patience: int = 0
    select_by: Literal["metric", "loss", "last"] = "loss"
    metric: str | None = None
    keep_checkpoints: int = 2
    keep_epochs: int = 0
    checkpoint_seconds: float = 60.0
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    share_prefixes: bool = False
    recompute_layers: tuple[int, ...] = ()
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    optimizer_in_backward: bool = False
    lora_plus_ratio: float = 1.0
    neftune_alpha: float = 0.0
    cuda_graphs: bool = False
    read_every: int = 1

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear warm-up, then the schedule down to zero (constant stays).

        Warm-up, stable, decay (arXiv 2405.18392): constant, then in a straight line to zero over the last
        `decay_ratio` of the steps.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "warmup_stable_decay":
            return self.learning_rate * min(1.0, (self.steps - step) / max(1, round(self.steps * self.decay_ratio)))
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "linear":
            return self.learning_rate * left
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left))


def steps_of(rows: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of `epochs` passes over `rows`; the last batch of an epoch may be smaller."""
    return max(1, math.ceil(epochs * math.ceil(rows / batch_size)))
