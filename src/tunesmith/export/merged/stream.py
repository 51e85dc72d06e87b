"""Merging tensor by tensor: each is read from the base's files, changed, and written, a block of rows at a time.

Only a block is in memory, of about `BLOCK` bytes, and the adapter. The whole tensor is where a change needs all of it:
weights that the file holds transposed, that were quantised, or whose singular vectors an adapter began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError
from tunesmith.export.merged.plan import Item, Plan, Update
from tunesmith.export.merged.tensors import INDEX, SINGLE, Shape, TensorWriter
from tunesmith.export.types import StepError
from tunesmith.models.lora_init import from_weight
from tunesmith.models.quantized import Kind, QuantizationFacts, QuantizedLinear
from tunesmith.ops.dora_linear import row_norms
from tunesmith.runs import write_json

BLOCK = 4 << 20
"""Bytes of one block of rows, in 32 bits."""


@dataclass(slots=True)
class _Held:
    """What quantised layers took while they were trained on."""

    layers: int = 0
    weights: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: files, bytes of the largest tensor file, and how the base was held in training, in words."""

    files: tuple[str, ...]
    bytes: int
    values: int
    largest: int
    dtypes: tuple[torch.dtype, ...]
    note: str


@torch.no_grad()
def write_shards(plan: Plan, folder: Path, dtype: torch.dtype | None, tell: Callable[[str], None]) -> Written:
    """Write the merged weights into `folder`, in as many files as the base has, with their index.

    dtype: of all floating-point tensors; None is each tensor's own in the base's files, or the type that the run held
    it in, where that has fewer bits.

    Raises `StepError` where values do not fit into `dtype`, `EngineError` where what was trained is not finite.
    """
    held = _Held()
    count = len(plan.shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    places: dict[str, str] = {}
    sizes, values, dtypes = [], 0, set()
    for number, (file, (_, items)) in enumerate(zip(names, plan.shards, strict=True), start=1):
        shapes = {item.name: Shape(_out_dtype(plan, item, dtype), item.shape) for item in items}
        tell(f"merging file {number} of {count}: {sum(shape.bytes for shape in shapes.values()) / 1e6:,.0f} MB")
        by_name = {item.name: item for item in items}
        with TensorWriter(folder / file, shapes) as writer:
            for name in writer.order:
                writer.put(name, _pieces(plan, by_name[name], shapes[name].dtype, held))
        places |= dict.fromkeys(shapes, file)
        sizes.append(sum(shape.bytes for shape in shapes.values()))
        values += sum(shape.values for shape in shapes.values())
        dtypes |= {shape.dtype for shape in shapes.values() if shape.dtype.is_floating_point}
    if count > 1:
        facts = {"total_parameters": values, "total_size": sum(sizes)}
        write_json(folder / INDEX, {"metadata": facts, "weight_map": dict(sorted(places.items()))})
    ordered = tuple(sorted(dtypes, key=str))
    return Written(tuple(names), sum(sizes), values, max(sizes, default=0), ordered, _note(plan, held))


def _out_dtype(plan: Plan, item: Item, wanted: torch.dtype | None) -> torch.dtype:
    given = item.stored.dtype if item.stored is not None else plan.loaded
    if not given.is_floating_point:
        return given
    if wanted is not None:
        return wanted
    if plan.attached is None:  # a whole model is copied
        return given
    return plan.loaded if plan.loaded.itemsize <= given.itemsize else given


def _pieces(plan: Plan, item: Item, dtype: torch.dtype, held: _Held) -> Iterator[Tensor]:
    """Consecutive rows of the tensor as the file is to hold it."""
    if item.own is not None and item.update is None:
        yield _checked(item, item.own.to(dtype), item.own, dtype)
        return
    assert item.stored is not None
    rows = item.own.shape[0] if item.own is not None else item.stored.rows
    started = item.update is not None and item.update.start is not None
    whole = item.quantised or started or (item.transposed and item.update is not None)
    per_row = 4 * max(1, item.stored.row_values)
    step = rows if whole else max(1, BLOCK // per_row)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        given = item.own[start:stop] if item.own is not None else item.stored.read(start, stop)
        if not given.is_floating_point():
            yield given
            continue
        values = given if plan.attached is None else given.to(plan.loaded)
        if item.quantised:
            values = _dequantised(plan, item, values, held)
        if item.update is None:
            yield _checked(item, values.to(dtype), values, dtype)
            continue
        weight = values.t() if item.transposed else values
        merged = _sum(weight, item.update, start, stop)
        merged = merged.t() if item.transposed else merged
        yield _checked(item, merged.to(dtype), merged, dtype)


def _sum(weight: Tensor, update: Update, start: int, stop: int) -> Tensor:
    """Rows of `W + s B A` (with DoRA rescaled) in at least 32 bits. `weight` [rows, in] are `start` to `stop` of W."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b, w = update.a.to(wide), update.b.to(wide), weight.to(wide)
    if update.start is not None:
        first_a, first_b = from_weight(update.start, w.contiguous(), a.shape[0], update.scaling)
        a, b = torch.cat([a, first_a]), torch.cat([b, -first_b], dim=1)
    else:
        b = b[start:stop] if len(b) > len(w) else b
    merged = (b @ a).mul_(update.scaling).add_(w)
    if update.magnitude is None:
        return merged
    magnitude = update.magnitude.to(wide)
    magnitude = magnitude[start:stop] if len(magnitude) > len(w) else magnitude
    return merged.mul_((magnitude / row_norms(w, a, b, update.scaling))[:, None])


def _dequantised(plan: Plan, item: Item, values: Tensor, held: _Held) -> Tensor:
    """The numbers that the weight stood for while it was held in few bits, as the file holds it."""
    layer: nn.Linear | Conv1D
    if item.transposed:
        layer = Conv1D(values.shape[1], 0)
        layer.weight, layer.nx = nn.Parameter(values, requires_grad=False), values.shape[0]
    else:
        layer = nn.Linear(values.shape[1], values.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(values, requires_grad=False)
    if not torch.isfinite(values).all():
        raise EngineError("the weight holds NaN or infinity", where=item.name, fix="take the base model's files again")
    kind: Kind = "nf4" if plan.quantize == "nf4" else "int8"
    quantised = QuantizedLinear(layer, kind, plan.double)
    held.layers += 1
    held.weights += values.numel()
    held.bytes += quantised.weight_bytes
    found = quantised.dequantized()
    return found.t() if item.transposed else found


def _checked(item: Item, written: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What is written, where it is finite; the base's own values may be what they are."""
    if (item.update is None and item.own is None and written.dtype == exact.dtype) or torch.isfinite(written).all():
        return written
    if torch.isfinite(exact).all():
        raise StepError(
            "merging",
            f"values of {item.name} are beyond what {str(dtype).removeprefix('torch.')} can hold",
            "use the precision bf16 or fp32",
        )
    if item.update is None and item.own is None:
        return written
    raise EngineError(
        "what was trained holds NaN or infinity", where=item.name, fix="train again with a lower learning rate"
    )


def _note(plan: Plan, held: _Held) -> str:
    if not held.layers:
        return ""
    kind: Kind = "nf4" if plan.quantize == "nf4" else "int8"
    double = plan.double and kind == "nf4"
    return QuantizationFacts(kind, double, held.layers, held.weights, held.bytes, 0, plan.kept).note
