"""A whole model quantised, one decoder layer after the other, each fitted to what the cut ones before give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.export.quantise.awq_scaling import Scaled, scale_block
from tunesmith.export.quantise.calibration import Walk, begin
from tunesmith.export.quantise.gptq_rounding import NotPositiveError, Order, gptq
from tunesmith.export.quantise.grid import Grid, rtn
from tunesmith.export.quantise.layers import Block, set_weight, weight_of
from tunesmith.export.types import StepError, Work
from tunesmith.inference.quantised_weights import Codes

WHOLE = 16
"""Bits of a layer that is left as it is."""
_DAMPING = (0.01, 0.1, 1.0)
"""Tried one after the other where a layer's inputs lie in too few directions."""
Tell = Callable[[str], None]
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes by path of the layers that were cut, and what a person should know of how. The model holds their values."""

    codes: Mapping[str, Codes]
    method: str
    scaled: tuple[Scaled, ...] = ()


def bits_of(work: Work, blocks: list[Block], default: int, possible: Sequence[int]) -> dict[str, int]:
    """Bits of every linear layer: those that the plan gives it, raised to the next that the format has; else `default`.

    Raises `StepError` for a plan that names layers the model has not, or bits that no format has.
    """
    paths = {path for block in blocks for path in block.linears}
    if strange := sorted(work.bits.keys() - paths):
        raise StepError("planning the precision", f"the model has no linear layer {strange[0]!r}", "make the plan anew")
    if high := sorted(path for path, bits in work.bits.items() if not 0 < bits <= WHOLE):
        raise StepError(
            "planning the precision", f"{work.bits[high[0]]} bits are planned for {high[0]}", "plan 4, 8 or 16 bits"
        )
    allowed = sorted({*possible, WHOLE})
    return {path: next(a for a in allowed if a >= work.bits.get(path, default)) for path in sorted(paths)}


def whole_layers(model: Any, bits: Mapping[str, int]) -> list[str]:
    """Linear layers other than the head that are written as they are: planned so, or of sizes that do not fit."""
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and bits.get(path, WHOLE) == WHOLE
    ]


def head_of(model: Any) -> str:
    """Path of the head, which is written as it is; not every architecture calls it `lm_head`."""
    head = model.get_output_embeddings()
    path: str = next(path for path, module in model.named_modules() if module is head)
    return path


@torch.no_grad()
def by_rtn(blocks: list[Block], bits: Mapping[str, int], grids: Callable[[int], Grid]) -> Quantised:
    """Every layer rounded to the nearest, in place; no data is needed."""
    codes = {}
    for block in blocks:
        for path, module in block.linears.items():
            if bits[path] < WHOLE:
                codes[path] = rtn(weight_of(module), grids(bits[path]))
                set_weight(module, codes[path].values())
    return Quantised(codes, "rtn")


@torch.no_grad()
def by_gptq(
    model: Any,
    blocks: list[Block],
    bits: Mapping[str, int],
    grids: Callable[[int], Grid],
    rows: Rows,
    tell: Tell,
    order: Order = "activity-in-groups",
) -> Quantised:
    """GPTQ in place. The layers of one decoder layer are fitted to what it is given, and then it is run anew."""
    walk = begin(model, blocks, rows)
    codes: dict[str, Codes] = {}
    for block in blocks:
        codes |= _fitted(walk, block, bits, grids, order)
        walk.step()
        tell(f"quantising: {walk.left()}")
    return Quantised(codes, "gptq")


@torch.no_grad()
def by_awq(
    model: Any,
    blocks: list[Block],
    bits: Mapping[str, int],
    grids: Callable[[int], Grid],
    rows: Rows,
    tell: Tell,
    stored: torch.dtype = torch.float32,
    *,
    rounding: Literal["gptq", "rtn"] = "gptq",
) -> Quantised:
    """AWQ in place: inputs scaled where this is exact, then rounded.

    `rounding`: AWQ's authors round to the nearest; that GPTQ does better on scaled weights, too, costs readers nothing.
    """
    walk = begin(model, blocks, rows)
    codes: dict[str, Codes] = {}
    scaled: list[Scaled] = []
    for block in blocks:
        wanted = dict(bits)
        lowest = min((bits[path] for path in block.linears), default=WHOLE)
        if lowest < WHOLE:
            scaled += scale_block(walk, model, grids(lowest), wanted, stored)
        if rounding == "rtn":
            codes |= by_rtn([block], bits, grids).codes
        else:
            codes |= _fitted(walk, block, bits, grids, "activity-in-groups")
        walk.step()
        tell(f"quantising: {walk.left()}")
    return Quantised(codes, "awq" if rounding == "rtn" else "awq, rounded by gptq", tuple(scaled))


def _fitted(
    walk: Walk, block: Block, bits: Mapping[str, int], grids: Callable[[int], Grid], order: Order
) -> dict[str, Codes]:
    """GPTQ of the decoder layer that the walk is at, in place."""
    _, moments = walk.inputs()
    codes = {}
    for path, module in block.linears.items():
        if bits[path] == WHOLE:
            continue
        weight, grid = weight_of(module), grids(bits[path])
        held = moments.get(path)  # a layer that no calibration token reached is rounded to the nearest
        codes[path] = rtn(weight, grid) if held is None else _damped(weight, held.hessian, grid, order, path)
        set_weight(module, codes[path].values())
    return codes


def _damped(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, order: Order, path: str) -> Codes:
    for damping in _DAMPING:
        try:
            return gptq(weight, hessian, grid, damping=damping, order=order)
        except NotPositiveError:
            continue
    raise StepError("quantising", f"the inputs of {path} hold NaN or infinity", "take the base's files again")


def facts_of(done: Quantised, bits: Mapping[str, int], stored_bytes: int, parameters: int) -> dict[str, Any]:
    """What is worth keeping of it: how many layers have how many bits, and the bits that a weight really takes."""
    held = list(done.codes.values())
    weights = sum(codes.codes.numel() for codes in held)
    return {
        "method": done.method,
        "layers": {str(b): sum(1 for one in bits.values() if one == b) for b in sorted(set(bits.values()))},
        "layer_bits_per_weight": round(8 * sum(c.file_bytes for c in held) / weights, 3) if weights else None,
        "bits_per_weight": round(8 * stored_bytes / parameters, 3),
    }
