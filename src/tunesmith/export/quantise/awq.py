"""Exports of kind `awq`: 4-bit weights, scaled for the inputs of the run's own training rows.

In the layout called `gemm`, as vLLM and GPTQModel read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.folder import open_merged, write_folder
from tunesmith.export.quantise.grid import Grid
from tunesmith.export.quantise.layers import Block, blocks_of, group_size
from tunesmith.export.quantise.packing import pack_awq
from tunesmith.export.quantise.quantising import bits_of, by_awq, by_rtn, facts_of, head_of, whole_layers
from tunesmith.export.types import StepError, Work

_BITS = 4


def write_awq(work: Work) -> Mapping[str, Any]:
    """Fill `work.staged` with a `transformers` folder in the `awq` format.

    Layers that a plan gives more than 4 bits stay whole: the format has no others. Without calibration rows weights
    are rounded to the nearest, and this is said. Raises `StepError` where the layers are not `nn.Linear`, or no group
    of inputs fits all of them.
    """
    opened = open_merged(work)
    blocks = blocks_of(opened.model)
    group = group_size(blocks)
    _refuse(blocks, group)
    bits = bits_of(work, blocks, _BITS, (_BITS,))
    reference = Reference.of(opened.model, work.calibration) if work.calibration else None
    parameters = sum(p.numel() for p in opened.model.parameters())

    def grids(b: int) -> Grid:
        return Grid(b, group, symmetric=False)

    if work.calibration:
        done = by_awq(opened.model, blocks, bits, grids, work.calibration, work.tell, opened.stored)
    else:
        work.tell("no calibration rows: weights are rounded to the nearest (RTN)")
        done = by_rtn(blocks, bits, grids)
    left = [one.paths[0] for one in done.scaled if one.into is None]
    if left:
        work.tell(f"{len(left)} of {len(done.scaled)} groups of layers are not scaled, the first at {left[0]}")
    layers = {path: pack_awq(codes) for path, codes in done.codes.items()}
    config = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": _BITS,
        "group_size": group,
        "zero_point": True,
        "modules_to_not_convert": [*whole_layers(opened.model, bits), head_of(opened.model)],
    }
    size = write_folder(opened, work.staged, layers, config)
    return facts_of(done, bits, size, parameters) | {
        "group": group,
        "scaled": sum(1 for one in done.scaled if one.into is not None),
        "not_scaled": {one.paths[0]: one.note for one in done.scaled if one.into is None},
        "calibration_kl": None if reference is None else round(reference.divergence(opened.model), 6),
    }


def _refuse(blocks: list[Block], group: int) -> None:
    for block in blocks:
        for path, module in block.linears.items():
            if not isinstance(module, nn.Linear):
                raise StepError(
                    "quantising",
                    f"layers are of class {type(module).__name__}, and what reads AWQ knows nn.Linear only",
                    "export with --to gptq, which holds them",
                    where=path,
                )
            if module.in_features % group:
                raise StepError(
                    "quantising",
                    f"{module.in_features} inputs are no multiple of {group}, and AWQ has no shorter groups",
                    "export with --to gptq",
                    where=path,
                )
