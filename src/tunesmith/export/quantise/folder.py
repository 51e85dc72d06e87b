"""The tuned model's plain `transformers` folder, opened to be quantised, and written again with other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.export.types import Work
from tunesmith.models.writing import system_errors

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "README.md")
_SHARD = "5GB"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model in float32 and the folder it came from. `stored`: what its other tensors are written in."""

    model: Any
    folder: Path
    stored: torch.dtype


def open_merged(work: Work) -> Opened:
    """The tuned model as one plain model. Adapters are merged, as quantised weights can take no update.

    Weights that stay whole are written in the type they have; float32, which servers have no such kernels for, as
    float16 where every value fits, else as bfloat16.
    """
    work.tell("merging what was learnt into the base")
    folder = work.source.merged(work.scratch)
    model = load_merged(folder)
    own = getattr(torch, str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32")))
    return Opened(model, folder, own if own in (torch.float16, torch.bfloat16) else _half(model))


def load_merged(folder: Path) -> Any:
    """The model in a plain `transformers` folder, in float32, frozen."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    return model.requires_grad_(False)


def _half(model: Any) -> torch.dtype:
    largest = max(float(p.abs().max()) for p in model.parameters())
    return torch.float16 if largest <= torch.finfo(torch.float16).max else torch.bfloat16


def write_folder(
    opened: Opened, staged: Path, layers: Mapping[str, Mapping[str, Tensor]], quantization: Mapping[str, Any]
) -> int:
    """Fill `staged`: the model's tensors, with those of `layers` (by path) in the place of these layers' weights.

    `quantization` becomes the configuration's `quantization_config`. Returns the bytes of all weights.
    """
    from huggingface_hub import save_torch_state_dict

    copy_beside(opened.folder, staged)
    config = json.loads((opened.folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(opened.stored).removeprefix("torch.")
    config["quantization_config"] = dict(quantization)
    (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = written_tensors(opened, layers)
    with system_errors(staged):
        save_torch_state_dict(tensors, staged, max_shard_size=_SHARD, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def copy_beside(folder: Path, staged: Path) -> None:
    """Copy what lies beside a model's weights: tokenizer, chat template, generation settings."""
    for path in folder.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(path, staged / path.name)


def written_tensors(opened: Opened, layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors by their name in the file. A tied head is not written twice."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in opened.model.state_dict().items():
        path, _, last = name.rpartition(".")
        if path in layers and last == "weight":
            tensors |= {f"{path}.{inner}": value.contiguous() for inner, value in layers[path].items()}
            continue
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept = tensor.to(opened.stored) if tensor.is_floating_point() else tensor
        tensors[name] = kept.contiguous().clone()
    return tensors
