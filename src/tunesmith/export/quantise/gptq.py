"""Exports of kind `gptq`: 4- and 8-bit weights fitted to the run's own training rows, for vLLM and GPTQModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.folder import open_merged, write_folder
from tunesmith.export.quantise.grid import Grid
from tunesmith.export.quantise.layers import blocks_of, group_size
from tunesmith.export.quantise.packing import pack_gptq
from tunesmith.export.quantise.quantising import WHOLE, bits_of, by_gptq, by_rtn, facts_of, whole_layers
from tunesmith.export.quantise.sensitivity import plan, split
from tunesmith.export.types import Work

_BITS = {"int4": 4, "int8": 8}
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""What vLLM calls the products that it makes of several layers."""


def write_gptq(work: Work) -> Mapping[str, Any]:
    """Fill `work.staged` with a `transformers` folder in the `gptq` format, symmetric, as every kernel takes it.

    Without calibration rows the weights are rounded to the nearest (RTN), and this is said. `work.bits` may give single
    layers 4, 8 or 16 bits, and `work.mixed` has a plan made that does (`sensitivity.plan`). Raises `StepError` where
    the model has no layers to quantise.
    """
    default = _BITS[work.target.precision]
    opened = open_merged(work)
    blocks = blocks_of(opened.model)
    fitted = measured = work.calibration
    made = None if work.mixed is None else plan(opened.model, work.calibration, bound=work.mixed, tell=work.tell)
    if made is not None:
        work = replace(work, bits={**made.bits, **work.bits})
        fitted, measured = split(work.calibration)  # the very weights that were found to hold the bound
    bits = bits_of(work, blocks, default, (4, 8))
    group = group_size(blocks)
    reference = Reference.of(opened.model, measured) if measured else None
    parameters = sum(p.numel() for p in opened.model.parameters())

    def grids(b: int) -> Grid:
        return Grid(b, group)

    if fitted:
        done = by_gptq(opened.model, blocks, bits, grids, fitted, work.tell)
    else:
        work.tell("no calibration rows: weights are rounded to the nearest (RTN)")
        done = by_rtn(blocks, bits, grids)
    layers = {path: pack_gptq(codes) for path, codes in done.codes.items()}
    size = write_folder(opened, work.staged, layers, _config(bits, default, group, opened.model))
    return (
        facts_of(done, bits, size, parameters)
        | ({} if made is None else {"plan": made.facts()})
        | {
            "group": group,
            "calibration_kl": None if reference is None else round(reference.divergence(opened.model), 6),
        }
    )


def _config(bits: Mapping[str, int], default: int, group: int, model: Any) -> dict[str, Any]:
    """`quantization_config` as GPTQModel and vLLM read it; layers with other bits are named under `dynamic`."""
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": default,
        "group_size": group,
        "sym": True,
        "desc_act": False,
        "true_sequential": False,
        "lm_head": False,
        "meta": {"quantizer": ["tunesmith:1"]},
    }
    others = {f"+:{_rule(path)}": {"bits": b} for path, b in bits.items() if b not in (default, WHOLE)}
    others |= {f"-:{_rule(path)}": {} for path in whole_layers(model, bits)}
    if others:
        config["dynamic"] = others
    return config


def _rule(path: str) -> str:
    """A pattern of a layer's path, and of the one by which vLLM asks for the product that this layer is fused into."""
    parent, _, name = path.rpartition(".")
    fused = _FUSED.get(name)
    return rf"^{re.escape(path)}$" if fused is None else rf"^{re.escape(parent)}\.({name}|{fused})$"
