"""What plain `peft` makes of an adapter's folder, and adapters as plain `peft` writes them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39]])


def answers(model: Any) -> Tensor:
    """Logits [1, T, V] on fixed tokens, in double precision."""
    model.eval()
    with torch.no_grad():
        return model(IDS).logits.double()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 difference."""
    return float((ours - theirs).norm() / theirs.norm())


def load_plain(model: Any, folder: Path) -> Any:
    """The adapter in `folder` on a fresh base, by `peft` alone; a missing or unexpected tensor is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*(tied|tie_word_embeddings|config file in).*")
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        return PeftModel.from_pretrained(model, str(folder)).eval()


def plain_adapter(model: Any, folder: Path, seed: int = 5, **options: Any) -> Any:
    """A model with an adapter made, moved away from its start and saved by `peft` alone."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        shake(tuned)
        tuned.save_pretrained(str(folder))
    return tuned


@torch.no_grad()
def shake(model: nn.Module, seed: int = 7, std: float = 0.05) -> None:
    """Move every trained parameter away from where it is, the same way each time."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=std)
