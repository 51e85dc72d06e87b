"""Tensors in `safetensors` files, read and written in pieces, so that no file needs to fit into memory.

The library maps files into memory, where pages that were read stay until something else wants them; reading by offset
keeps nothing. The format: eight bytes length, a JSON header that gives each tensor its type, shape and place, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import EngineError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000
"""Bytes; the library refuses longer ones too."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its type, its shape, and where its data begin."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_values(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return self.rows * self.row_values * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` (default all), in memory of their own."""
        stop = self.rows if stop is None else stop
        row = self.row_values * self.dtype.itemsize
        held = np.empty((stop - start) * row, dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin + start * row)
            view, done = held.data, 0
            while done < len(held):
                got = file.readinto(view[done:])
                if not got:
                    raise _damaged(self.path, "it ends before its tensors do")
                done += got
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return torch.from_numpy(held).view(self.dtype).reshape(shape)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model's folder in their order, as `transformers` would choose them.

    Raises `EngineError` where there are none, or the index names one that is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise EngineError("the folder has no safetensors weights", where=str(folder), expected=f"{SINGLE} or {INDEX}")
    try:
        named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(named.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / INDEX, f"{error!r}") from error
    if missing := [path.name for path in files if not path.is_file()]:
        raise EngineError(
            f"weight files are missing: {', '.join(missing)}", where=str(folder), fix="get the model's files again"
        )
    return files


def stored_tensors(path: Path) -> dict[str, Stored]:
    """What a file holds, by name. Raises `EngineError` for a damaged one, or a type that is not known here."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise _damaged(path, "its header does not fit into it")
        raw = file.read(length)
    found = {}
    try:
        for name, about in json.loads(raw).items():
            if name == "__metadata__":
                continue
            if about["dtype"] not in DTYPES:
                raise EngineError(f"{name} is of a type that is not known here: {about['dtype']}", where=str(path))
            begin, end = about["data_offsets"]
            one = Stored(path, DTYPES[about["dtype"]], tuple(about["shape"]), 8 + length + begin)
            if one.bytes != end - begin or 8 + length + end > size:
                raise _damaged(path, f"{name} does not lie within it")
            found[name] = one
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be read ({error!r})") from error
    return found


@dataclass(frozen=True, slots=True)
class Shape:
    """Type and shape of a tensor that is to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * self.dtype.itemsize


class TensorWriter:
    """Writes one file, tensor after tensor, each in pieces: `for name in writer.order: writer.put(name, pieces)`.

    `order` has wide types first, so that every tensor is aligned to its type, then names, as the library does it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Shape]) -> None:
        self.path, self._tensors = path, tensors
        self.order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        place = 0
        for name in self.order:
            one = tensors[name]
            offsets = [place, place + one.bytes]
            header[name] = {"dtype": _NAMES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
            place = offsets[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, pieces: Iterator[Tensor]) -> None:
        """Write a tensor, the next of `order`; its pieces follow one another."""
        wanted, written = self._tensors[name], 0
        for piece in pieces:
            if piece.dtype != wanted.dtype:
                raise ValueError(f"{name}: {piece.dtype} instead of {wanted.dtype}")
            self._file.write(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            written += piece.nbytes
        if written != wanted.bytes:
            raise ValueError(f"{name}: {written} bytes instead of {wanted.bytes}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _damaged(path: Path, why: str) -> EngineError:
    return EngineError(f"the weights cannot be read: {why}", where=str(path), fix="get the file again")
