"""Whether an adapter answers as the one it was made of, in a loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import VerificationError
from tunesmith.export.source import FolderSource
from tunesmith.models.methods import load_tuned

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Relative L2 differences of logits, by the type that the model computes in."""


def logits_difference(source: FolderSource, folder: Path) -> tuple[float, float]:
    """Relative L2 difference of the logits of the adapter in `folder` from the source's, on random tokens, both on the
    base as the run held it; and how large it may be where nothing but rounding differs."""
    base, _ = source.open()
    ids = _probe(base.model)
    expected = _logits(base.model, ids)
    del base
    fresh = source.open_base()
    load_tuned(fresh, folder, source.method)
    found = _logits(fresh.model, ids)
    return float((found - expected).norm() / expected.norm()), _TOLERANCE[fresh.model.dtype]


def prove_same(source: FolderSource, folder: Path) -> float:
    """The difference, where it is that of rounding. Raises `VerificationError` where it is more."""
    found, allowed = logits_difference(source, folder)
    if not found <= allowed:
        raise VerificationError(
            f"logits of the converted adapter differ from the original's by {found:.1e} (relative)",
            where=str(folder),
            expected=f"at most {allowed:.0e}",
            fix="export it merged instead, and report this",
        )
    return found


def _probe(model: Any) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, 24), generator=generator).to(model.device)


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits.double()
