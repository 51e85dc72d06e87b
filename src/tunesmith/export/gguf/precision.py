"""In how many bits each tensor of a GGUF file is kept, and its numbers in that form.

Norms, biases and embedded positions stay F32, as llama.cpp has it. In Q4_0 the matrix that the logits come from is kept
in Q8_0: its error would go straight into every probability. Rows that do not fill blocks of 32 are kept in F16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type
from gguf.quants import quant_shape_to_byte_shape, quantize

from tunesmith.export.gguf.families import Array
from tunesmith.export.gguf.tensors import Planned
from tunesmith.export.types import StepError

WRITTEN: Mapping[str, Type] = {
    "f32": Type.F32,
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
    "q4_0": Type.Q4_0,
}
"""Precisions that are written here; k-quants need llama.cpp (`kquants`)."""
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_BY_BITS = {4: Type.Q4_0, 8: Type.Q8_0, 16: Type.F16, 32: Type.F32}


@dataclass(frozen=True, slots=True)
class Kept:
    """The form of one tensor: its type, and whether that is another than was asked for because of its row length."""

    type: Type
    fallback: bool = False


def file_type(precision: str) -> int:
    """The number by which a file says what most of it is kept in."""
    return int(_FILE_TYPES[precision])


def types_of(planned: list[Planned], precision: str, bits: Mapping[str, int]) -> dict[str, Kept]:
    """The form of every tensor by its name. `bits`: of single modules, by their path in the model.

    Raises `StepError` for modules that are not there or bits that no type has, all named.
    """
    modules = {one.module for one in planned}
    unknown = [f"{path} is no module of this model" for path in bits if path not in modules]
    unknown += [f"{path} cannot have {n} bits" for path, n in bits.items() if n not in _BY_BITS]
    if unknown:
        raise StepError("precision", "; ".join(unknown), "modules by their path in the model, with 4, 8, 16 or 32 bits")
    names = {one.name for one in planned}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    return {one.name: _kept(one, WRITTEN[precision], bits.get(one.module), one.name == head) for one in planned}


def _kept(planned: Planned, asked: Type, bits: int | None, is_head: bool) -> Kept:
    if len(planned.shape) < 2 or planned.name.startswith("position_embd"):
        return Kept(Type.F32)
    wanted = asked if bits is None else _BY_BITS[bits]
    if wanted is Type.Q4_0 and is_head and bits is None:
        wanted = Type.Q8_0
    if planned.shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        return Kept(Type.F16, fallback=True)
    return Kept(wanted)


def stored_shape(shape: tuple[int, ...], kind: Type) -> tuple[int, ...]:
    """The shape of the array that holds a tensor: in bytes where it is quantised."""
    return shape if kind in (Type.F32, Type.F16) else tuple(quant_shape_to_byte_shape(shape, kind))


def stored_dtype(kind: Type) -> Any:
    """The array's dtype."""
    return {Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8)


def in_type(values: Array, kind: Type, name: str) -> npt.NDArray[Any]:
    """The numbers in their form. Raises `StepError` where one does not fit into 16 bits."""
    with np.errstate(over="ignore"):  # looked at below
        stored: npt.NDArray[Any] = quantize(values, kind)
    scales = stored if kind is Type.F16 else _scales(stored, kind)
    if scales is not None and not np.isfinite(scales).all():
        raise StepError(
            "precision", f"{name} holds numbers too large for {kind.name}", "export it with --precision f32"
        )
    return stored


def _scales(stored: npt.NDArray[Any], kind: Type) -> npt.NDArray[Any] | None:
    """The blocks' scales, which begin each of them as 16 bits."""
    if kind not in (Type.Q8_0, Type.Q4_0):
        return None
    return stored.reshape(-1, GGML_QUANT_SIZES[kind][1])[:, :2].copy().view(np.float16)


def bits_per_weight(tensors: Iterable[tuple[tuple[int, ...], Type]]) -> float:
    """Bits of a model's numbers on average, scales included."""
    bits = weights = 0
    for shape, kind in tensors:
        block, size = GGML_QUANT_SIZES[kind]
        weights += prod(shape)
        bits += 8 * size * prod(shape) // block
    return bits / weights


def counted(types: Iterable[Type]) -> dict[str, int]:
    """How many tensors have which type, the most frequent first."""
    return dict(Counter(kind.name for kind in types).most_common())
