"""Adapters on disk, in the file contract of PEFT, so that plain `peft` and every tool built on it can load them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import EngineError, VerificationError
from tunesmith.models.lora import Attached, LoraSettings, attach_lora
from tunesmith.models.writing import system_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_tensors(attached: Attached) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, contiguous, on CPU."""
    tensors = {}
    for name, layer in attached.layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B
    for name, module in attached.saved.items():
        for key, value in module.state_dict().items():
            tensors[f"base_model.model.{name}.{key}"] = value
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in sorted(tensors.items())}


def save_adapter(folder: Path, attached: Attached, *, base: str, revision: str | None, conv1d: bool) -> str:
    """Write the adapter into `folder` and return the SHA-256 of its weights file.

    Options left at their default are omitted: older PEFT versions refuse keys they do not know.
    """
    settings = attached.settings
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "target_modules": list(settings.target_modules),
        "modules_to_save": list(settings.modules_to_save) or None,
        "use_rslora": settings.use_rslora,
        "init_lora_weights": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with system_errors(folder / WEIGHTS):
        save_file(adapter_tensors(attached), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def load_adapter(model: Any, folder: Path) -> Attached:
    """Attach the adapter in `folder` to a freshly loaded base; raises if it is damaged or belongs to another one."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(f"the adapter cannot be read: {error}", where=str(folder)) from error
    targets = config["target_modules"]
    attached = attach_lora(
        model,
        LoraSettings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            modules_to_save=tuple(config.get("modules_to_save") or ()),
        ),
        seed=0,
    )
    restore_adapter(attached, tensors, where=str(folder))
    return attached


@torch.no_grad()
def restore_adapter(attached: Attached, tensors: dict[str, Tensor], where: str) -> None:
    """Put saved tensors back; every one must be there, and none more."""
    live: dict[str, Tensor] = {}
    for name, layer in attached.layers.items():
        live[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A
        live[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B
    for name, module in attached.saved.items():
        live.update({f"base_model.model.{name}.{k}": v for k, v in module.named_parameters()})
    if live.keys() != tensors.keys() or any(live[k].shape != tensors[k].shape for k in live):
        raise VerificationError(
            "the adapter does not fit this base", where=where, expected="the base it was trained on, unchanged"
        )
    for key, tensor in tensors.items():
        live[key].copy_(tensor)
