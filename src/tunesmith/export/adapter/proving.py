"""Whether an adapter answers as the one it was made of, in a loaded model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import VerificationError
from tunesmith.export.adapter.convert import changes_of
from tunesmith.export.source import FolderSource
from tunesmith.models.adapter import read_adapter
from tunesmith.models.load import LoadedBase
from tunesmith.models.methods import Tuning, load_tuned

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Relative L2 differences of logits, by the type that the model computes in."""
_OF_WEIGHTS = 1e-3
"""Relative difference of what is added to the weights; more than that of differences of 32-bit numbers."""
_PREFIX, _A = "base_model.model.", ".lora_A.weight"


def logits_difference(source: FolderSource, folder: Path) -> float:
    """Relative L2 difference of the logits of the adapter in `folder` from the source's, on random tokens, both on the
    base as the run held it."""
    return _compared(source, folder)[0]


def prove_same(source: FolderSource, folder: Path) -> float:
    """The difference of the logits, where it is that of rounding.

    What is added to each weight is compared as well, in 32 bits: logits in half precision are too coarse to show that
    half of a small change is missing. Raises `VerificationError` where either is more than rounding.
    """
    found, allowed, of_weights = _compared(source, folder, weights=True)
    for what, value, most in (("logits", found, allowed), ("changes of weights", of_weights, _OF_WEIGHTS)):
        if not value <= most:
            raise VerificationError(
                f"{what} of the converted adapter differ from the original's by {value:.1e} (relative)",
                where=str(folder),
                expected=f"at most {most:.0e}",
                fix="export it merged instead, and report this",
            )
    return found


def _compared(source: FolderSource, folder: Path, *, weights: bool = False) -> tuple[float, float, float]:
    """Difference of logits, how large it may be where nothing but rounding differs, and that of what is added."""
    base, tuning = source.open()
    ids = _probe(base.model)
    expected = _logits(base.model, ids)
    of_weights = _of_weights(base, tuning, folder) if weights else 0.0
    del base, tuning
    fresh = source.open_base()
    load_tuned(fresh, folder, source.method)
    found = _logits(fresh.model, ids)
    return float((found - expected).norm() / expected.norm()), _TOLERANCE[fresh.model.dtype], of_weights


def _of_weights(base: LoadedBase, tuning: Tuning, folder: Path) -> float:
    """Relative difference of all that plain LoRA in `folder` adds to the weights from what the tuned model adds."""
    config, tensors = read_adapter(folder)
    scale = config["lora_alpha"] / config["r"]
    different = whole = 0.0
    paths = {name.removesuffix(_A).removeprefix(_PREFIX) for name in tensors if name.endswith(_A)}
    with torch.no_grad():
        for path, change, _ in changes_of(base, tuning):
            stem, ours = f"{_PREFIX}{path}.lora_", torch.zeros(())
            if path in paths:
                ours = scale * (tensors[f"{stem}B.weight"].double() @ tensors[f"{stem}A.weight"].double())
            different += float((ours - change.double()).square().sum())
            whole += float(change.double().square().sum())
            paths.discard(path)
    if paths:
        return float("inf")
    return math.sqrt(different / whole if whole else different)


def _probe(model: Any) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, 24), generator=generator).to(model.device)


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits.double()
