"""A small training, and a disk that fills up."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.tiny import build, ragged_samples
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.training.plan import TrainingPlan

PLAN = TrainingPlan(
    steps=9, batch_size=3, learning_rate=5e-3, seed=4, warmup_steps=2, weight_decay=0.01, micro_batch_tokens=40,
    evaluate_every=3,
)  # fmt: skip
ROWS = ragged_samples((9, 3, 7, 12, 12, 20, 5, 9, 14, 6, 2), seed=1)
VALIDATION = ragged_samples((8, 5, 11, 6), seed=2)


def tunable(dropout: float = 0.0, method: str = "lora", dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = build("llama").to(dtype)
    if method == "lora":
        attach_lora(model, LoraSettings(4, 8, dropout=dropout), seed=0)
    return LanguageModel(model)


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable_parameters(model.model).items()}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files of this process end at `limit` bytes: what writing beyond it raises is the operating system's own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
