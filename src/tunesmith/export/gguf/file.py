"""One GGUF file written front to back: settings, the tokenizer, the table of tensors, then one tensor after the other.

No more than one tensor is held in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType

from tunesmith.errors import ResourceError
from tunesmith.export.gguf.precision import stored_dtype, stored_shape
from tunesmith.export.gguf.settings import Settings, Value
from tunesmith.export.gguf.vocabulary import Vocabulary
from tunesmith.inference.gguf_file import GgufFile

_KEY = "tokenizer.ggml."


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: its name, shape and type, and its numbers in that type when they are asked for."""

    name: str
    shape: tuple[int, ...]
    type: Type
    read: Callable[[], npt.NDArray[Any]]


def write_file(path: Path, arch: str, settings: Settings, entries: list[Entry]) -> None:
    """Write a file. Raises `ResourceError` where it cannot be written."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in settings.items():
        _add(writer, key, value)
    for entry in entries:
        shape = stored_shape(entry.shape, entry.type)
        size = _bytes(entry.shape, entry.type)
        writer.add_tensor_info(entry.name, shape, stored_dtype(entry.type), size, raw_dtype=entry.type)
    try:
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry in entries:
                writer.write_tensor_data(entry.read())
        finally:
            writer.close()
        if not _whole(path, entries):  # numpy, which writes tensors, does not tell of the last few bytes
            raise OSError
    except OSError as error:
        why = error.strerror or "fewer bytes arrived than were given"
        raise ResourceError(f"the file cannot be written: {why}", where=str(path)) from error


def _whole(path: Path, entries: list[Entry]) -> bool:
    """Whether the file is as long as its table of tensors says."""
    starts, size = GgufFile(path).tensors, path.stat().st_size
    return all(starts[entry.name].start + _bytes(entry.shape, entry.type) <= size for entry in entries)


def vocabulary_settings(vocabulary: Vocabulary, template: str | None) -> dict[str, Value]:
    """The tokenizer and the chat template, under full keys."""
    found: dict[str, Value] = {
        _KEY + "model": vocabulary.kind,
        _KEY + "pre": vocabulary.pre,
        _KEY + "tokens": vocabulary.tokens,
        _KEY + "token_type": vocabulary.types,
    }
    if vocabulary.scores:
        found[_KEY + "scores"] = vocabulary.scores
    if vocabulary.merges:
        found[_KEY + "merges"] = vocabulary.merges
    if template is not None:
        found["tokenizer.chat_template"] = template
    return {**found, **vocabulary.settings}


def _add(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_key_value(key, value, GGUFValueType.ARRAY)


def _bytes(shape: tuple[int, ...], kind: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return prod(shape) // int(block) * int(size)


def general_settings(name: str, base: str, file_type: int) -> dict[str, Value]:
    """What a file says of itself first."""
    return {
        "general.type": "model",
        "general.name": name,
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
        "general.file_type": file_type,
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
    }
