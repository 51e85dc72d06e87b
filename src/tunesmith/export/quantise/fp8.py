"""Exports of kind `fp8`: float8 weights with a scale for each output, as vLLM reads them (compressed-tensors).

The scheme says that the layers' inputs are float8 too, with a scale for each token that is found when it is computed
(W8A8, dynamic): that is what GPUs with float8 products run. No calibration is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.export.quantise.folder import open_merged, write_folder
from tunesmith.export.quantise.layers import blocks_of, weight_of
from tunesmith.export.quantise.quantising import WHOLE, bits_of, head_of, whole_layers
from tunesmith.export.types import StepError, Work

_TYPE = torch.float8_e4m3fn


def write_fp8(work: Work) -> Mapping[str, Any]:
    """Fill `work.staged` with a `transformers` folder of float8 weights.

    Layers that a plan gives 16 bits stay whole. Raises `StepError` where the layers are not `nn.Linear`.
    """
    opened = open_merged(work)
    blocks = blocks_of(opened.model)
    bits = bits_of(work, blocks, 8, (8,))
    layers: dict[str, dict[str, Tensor]] = {}
    for block in blocks:
        for path, module in block.linears.items():
            if not isinstance(module, nn.Linear):
                raise StepError(
                    "quantising",
                    f"layers are of class {type(module).__name__}, and what reads this format knows nn.Linear only",
                    "export with --to gptq --bits 8",
                    where=path,
                )
            if bits[path] < WHOLE:
                layers[path] = fp8_codes(weight_of(module))
    whole = whole_layers(opened.model, bits)
    parameters = sum(p.numel() for p in opened.model.parameters())
    size = write_folder(opened, work.staged, layers, _config([*whole, head_of(opened.model)]))
    return {
        "method": "fp8, dynamic scales for tokens",
        "layers": {"8": len(layers), "16": len(whole)},
        "bits_per_weight": round(8 * size / parameters, 3),
    }


def fp8_codes(weight: Tensor) -> dict[str, Tensor]:
    """`weight` float8 [out, in] and `weight_scale` float32 [out, 1] of a weight [out, in]."""
    top = torch.finfo(_TYPE).max
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
    return {"weight": (weight / scale).clamp(-top, top).to(_TYPE), "weight_scale": scale}


def _config(ignored: list[str]) -> dict[str, Any]:
    shared = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**shared, "strategy": "channel", "dynamic": False},
                "input_activations": {**shared, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": ignored,
    }
