"""Exports of kind `torchao`: weights in codes that plain `transformers` with torchao computes with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from tunesmith.errors import EngineError
from tunesmith.export.quantise.folder import copy_beside, open_merged
from tunesmith.export.quantise.layers import blocks_of
from tunesmith.export.quantise.quantising import bits_of, head_of, whole_layers
from tunesmith.export.types import StepError, Work
from tunesmith.models.writing import system_errors

_FAILURES = (AssertionError, AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What torchao raises for a device or a shape that it has no kernel for."""
_GROUP = 32


def write_torchao(work: Work) -> Mapping[str, Any]:
    """Fill `work.staged` with a folder that `AutoModelForCausalLM.from_pretrained` opens where torchao is installed.

    int8 has a scale for each output. int4 has one for each 32 inputs, in the layout of this machine's GPU: torchao has
    no 4-bit layout for CPUs. Layers that a plan gives more bits stay whole. Raises `EngineError` where torchao is
    missing, `StepError` where it has no kernel.
    """
    if find_spec("torchao") is None:
        raise EngineError("torchao is not installed", where="--to torchao", fix="pip install 'tunesmith[quantise]'")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    precision = work.target.precision
    scheme = _int8() if precision == "int8" else _int4()
    opened = open_merged(work)
    blocks = blocks_of(opened.model)
    wanted = 8 if precision == "int8" else 4
    bits = bits_of(work, blocks, wanted, (wanted,))
    for path, module in ((p, m) for block in blocks for p, m in block.linears.items()):
        if not isinstance(module, nn.Linear):
            raise StepError(
                "quantising",
                f"layers are of class {type(module).__name__}, and torchao takes nn.Linear only",
                "export with --to gptq --bits 8",
                where=path,
            )
    whole, head = whole_layers(opened.model, bits), head_of(opened.model)
    parameters, stored, folder = sum(p.numel() for p in opened.model.parameters()), opened.stored, opened.folder
    del opened, blocks  # before the next copy is loaded
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=stored,
            quantization_config=TorchAoConfig(scheme, modules_to_not_convert=[*whole, head]),
            device_map="cuda" if torch.cuda.is_available() else None,
            use_safetensors=True,
        )
        with system_errors(work.staged):
            model.save_pretrained(work.staged)
    except _FAILURES as problem:
        raise StepError("quantising with torchao", _first(problem), "export with --to gptq") from problem
    copy_beside(folder, work.staged)
    size = sum(file.stat().st_size for file in work.staged.glob("*.safetensors"))
    return {
        "method": f"torchao, {type(scheme).__name__}",
        "layers": {str(wanted): len(bits) - len(whole), "16": len(whole)},
        "bits_per_weight": round(8 * size / parameters, 3),
    }


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    if not torch.cuda.is_available():
        raise StepError(
            "quantising with torchao",
            "it has 4-bit layouts for GPUs only, and this machine has none that torch can use",
            "export with --to torchao --bits 8, or with --to gptq --bits 4",
        )
    return Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)


def _first(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
