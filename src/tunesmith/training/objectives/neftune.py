"""Noise on the embeddings while training (NEFTune, Jain et al. 2023, arXiv 2310.05914).

Each document of L tokens gets uniform noise from -a to a on its embeddings of width d, with `a = alpha / sqrt(L d)`.
The noise of a document is drawn from a seed made of the run's seed, the step and the document itself: a resumed run
draws the same, and so does one whose streams are cut differently.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Sample
from tunesmith.training.batching import Batch


@contextmanager
def noisy_embeddings(model: LanguageModel, batch: Batch, alpha: float, *, seed: int, step: int) -> Iterator[None]:
    """Within this context the model's embeddings of `batch` carry noise, in training mode only.

    Nothing is changed with `alpha` 0. Raises `EngineError` for a batch whose documents share beginnings: one place
    of the stream cannot carry the noise of two documents.
    """
    if not alpha or not model.model.training:
        yield
        return
    if batch.tokens != batch.documents_tokens:
        raise EngineError(
            "noise on embeddings needs documents that share nothing",
            where="train.neftune_alpha",
            fix="set train.share_prefixes: false",
        )

    def add(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        width = output.shape[-1]
        noise = output.new_empty(batch.tokens, width, dtype=torch.float32)
        for row, places in zip(batch.rows, batch.documents, strict=True):
            generator = torch.Generator(output.device).manual_seed(_document_seed(row, seed, step))
            drawn = torch.rand(len(row.ids), width, generator=generator, device=output.device)
            noise[places] = (2 * drawn - 1) * (alpha / math.sqrt(len(row.ids) * width))
        return output + noise.to(output.dtype).view_as(output)

    handle = model.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _document_seed(row: Sample, seed: int, step: int) -> int:
    """63 bits out of run, step and document."""
    text = f"{seed} {step} {row.example_id} ".encode() + row.ids.tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
