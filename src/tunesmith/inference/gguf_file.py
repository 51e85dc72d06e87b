"""The GGUF format, read: settings by key, and tensors as the numbers they stand for.

A header, then settings, then a table of tensors, then their bytes (version 3 of the format, and 2, which is the same on
little-endian machines). Vocabularies of 150,000 tokens are read in a fraction of a second.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.errors import EngineError

Array = npt.NDArray[np.float32]
_NUMBERS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Types of settings that are numbers, as numpy names them."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in the file: its shape as a weight [out, in], its type's number, and where its bytes begin."""

    shape: tuple[int, ...]
    type: int
    start: int


class GgufFile:
    """A GGUF file. Raises `EngineError` where it cannot be read, or ends before it should.

    Attributes
    ----------
    fields: every setting by its full key.
    tensors: every tensor by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        try:
            with path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._place = 0
            self._read()
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError, struct.error) as error:
            raise EngineError(
                f"this GGUF file cannot be read: {error}", where=str(path), fix="export again, or bring back the file"
            ) from error

    def tensor(self, name: str) -> Array:
        """A tensor's numbers in 32 bits, in the shape of a weight [out, in]."""
        import gguf

        stored = self.tensors[name]
        try:
            kind = gguf.GGMLQuantizationType(stored.type)
            whole = gguf.quants.quant_shape_to_byte_shape(stored.shape, kind)
        except ValueError as error:
            raise EngineError(
                f"{name} is of a type or shape that is not known here: {error}", where=str(self.path)
            ) from error
        count = math.prod(whole)
        if stored.start + count > len(self._data):
            raise EngineError(f"the file ends within {name}", where=str(self.path), fix="export again")
        raw = np.frombuffer(self._data, dtype=np.uint8, count=count, offset=stored.start).reshape(whole)
        numbers: Array = gguf.quants.dequantize(raw, kind)
        return np.array(numbers, dtype=np.float32).reshape(stored.shape)

    def _read(self) -> None:
        magic, version = self._numbers("4s", 4)[0], self._numbers("<I", 4)[0]
        if magic != b"GGUF" or version not in _VERSIONS:
            raise ValueError("it does not begin as one of version 2 or 3")
        count, settings = self._numbers("<QQ", 16)
        for _ in range(settings):
            key = self._text()
            self.fields[key] = self._value(self._numbers("<I", 4)[0])
        table = []
        for _ in range(count):
            name = self._text()
            dimensions = self._numbers("<I", 4)[0]
            shape = self._numbers(f"<{dimensions}Q", 8 * dimensions)
            kind, offset = self._numbers("<IQ", 12)
            table.append((name, tuple(reversed(shape)), kind, offset))
        alignment = int(self.fields.get("general.alignment", 32))
        start = -(-self._place // alignment) * alignment
        self.tensors = {name: StoredTensor(shape, kind, start + offset) for name, shape, kind, offset in table}

    def _numbers(self, form: str, size: int) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._data, self._place)
        self._place += size
        return found

    def _text(self) -> str:
        length = self._numbers("<Q", 8)[0]
        raw = self._data[self._place : self._place + length]
        if len(raw) != length:
            raise ValueError("it ends within a text")
        self._place += length
        return raw.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._array(_NUMBERS[kind], 1)[0]
        inner, count = self._numbers("<IQ", 12)
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        if inner == _ARRAY:
            return [self._value(_ARRAY) for _ in range(count)]
        return self._array(_NUMBERS[inner], count)

    def _array(self, form: str, count: int) -> list[Any]:
        found = np.frombuffer(self._data, dtype=form, count=count, offset=self._place)
        self._place += found.nbytes
        values: list[Any] = found.tolist()
        return values
