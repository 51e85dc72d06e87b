"""Rows of a large file kept on the disk while a run lasts, in the place of rows in memory.

    result = load_on_disk(spec, "rows.jsonl", folder)

The file is read a block at a time and every example written to a temporary file without a name, which is gone with the
process. What is handed out are examples like all others, that know where they lie and are read when they are looked
at: some 250 bytes each, whatever the rows hold. So every check and every split works on them as it is.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.examples import LoadResult, scan_examples
from tunesmith.data.findings import FindingLog
from tunesmith.data.sources.address import address_of
from tunesmith.data.types import Example
from tunesmith.errors import ResourceError
from tunesmith.recipe.schema import Data
from tunesmith.runs.atomic import resource_error

LARGE = 32 << 20
"""Bytes of a file from which its rows are kept on the disk: in memory they take some six times as much."""
_READ_AGAIN = 64
"""Rows kept as they were read last: whoever looks at a row looks at several of its fields."""
_FIELDS = tuple(field.name for field in fields(Example))
_COMPARED = tuple(field.name for field in fields(Example) if field.compare)


def is_large(spec: Data, source: str | Path) -> bool:
    """Whether a source is a file whose rows had better not be held in memory.

    Spans name their types only once all rows are read, so rows with spans are held.
    """
    address = address_of(source)
    return address.kind == "file" and not spec.span_types and _size(address.path) >= LARGE


def load_on_disk(spec: Data, source: str | Path, folder: Path, *, task_type: str = "auto") -> LoadResult:
    """As `load_examples`, with the examples in a file in `folder`; it has no name and needs no tidying up.

    Raises `ResourceError` where the folder cannot be written, and as `load_examples` does.
    """
    rows = RowFile(folder)
    scan = scan_examples(spec, source, rows.add, task_type=task_type, processes=1)
    return LoadResult(list(rows.examples()), scan.findings, scan.format, scan.rows, scan.reason)


class RowFile:
    """Examples one after another in a file without a name. Raises `ResourceError` where it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as its rows are used
        except OSError as error:
            raise self._refused(error) from error
        self._sources: list[str] = []
        self._parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bytes_]]] = []
        self._end = 0
        self._places = np.zeros((0, 3), np.int64)
        self._lines = np.zeros(0, np.int64)
        self._keys = np.zeros(0, np.bytes_)
        self._copies = np.zeros(0, np.int32)
        self.example = lru_cache(maxsize=_READ_AGAIN)(self._example)

    def add(self, examples: Sequence[Example], log: FindingLog) -> None:
        """Write the examples of one block, whose ids are those of the content alone."""
        places, lines, keys = [], [], []
        pieces: list[bytes] = []
        for example in examples:
            said, values = _packed(replace(example, values={})), _packed(example.values)
            middle = self._end + len(said)
            places.append((self._end, middle, middle + len(values)))
            self._end = middle + len(values)
            pieces += [said, values]
            lines.append(example.line)
            keys.append(example.id.encode())
        if not examples:
            return
        try:
            self._stream.write(b"".join(pieces))
        except OSError as error:
            raise self._refused(error) from error
        self._parts.append((np.array(places, np.int64), np.array(lines, np.int64), np.array(keys, np.bytes_)))

    def examples(self) -> Sequence[Example]:
        """All examples, in order; equal ones have ids told apart as `load_examples` does. Nothing is added after."""
        try:
            self._stream.flush()
        except OSError as error:
            raise self._refused(error) from error
        if self._parts:
            places, lines, keys = zip(*self._parts, strict=True)
            self._places, self._lines, self._keys = map(np.concatenate, (places, lines, keys))
            self._parts.clear()
        self._copies = _occurrences(self._keys)
        return [StoredExample.of(self, place) for place in range(len(self._keys))]

    def id(self, place: int) -> str:
        """The id of an example."""
        key, copy = self._keys[place].decode(), self._copies[place]
        return key if copy == 1 else f"{key}-{copy}"

    def line(self, place: int) -> int:
        """The line on which an example begins."""
        return int(self._lines[place])

    def values(self, place: int) -> Any:
        """The row of an example as it was read."""
        _, middle, end = self._places[place].tolist()
        return self._read(middle, end)

    def _example(self, place: int) -> Example:
        """An example without its values and with the id of its content; the latest ones are kept."""
        begin, middle, _ = self._places[place].tolist()
        example: Example = self._read(begin, middle)
        return example

    def _read(self, begin: int, end: int) -> Any:
        return pickle.loads(os.pread(self._stream.fileno(), end - begin, begin))  # written by this process

    def _refused(self, error: OSError) -> ResourceError:
        told = resource_error(self._folder, error)
        return ResourceError(
            f"the rows of a large file cannot be kept here while the run lasts: {told.what}",
            where=str(self._folder),
            fix="free some space, or set TUNESMITH_CACHE to a folder you may write to",
        )


class StoredExample(Example):
    """An example that lies in a file: its fields are never filled, and read each time they are asked for.

    It is equal to the example it stands for. `dataclasses.replace` makes one of it that holds its own fields.
    """

    __slots__ = ("_file", "_place")
    _file: RowFile
    _place: int

    @classmethod
    def of(cls, file: RowFile, place: int) -> StoredExample:
        """The example at this place of a file."""
        made = object.__new__(cls)
        object.__setattr__(made, "_file", file)
        object.__setattr__(made, "_place", place)
        return made

    def __getattr__(self, name: str) -> Any:
        """Called for what is not filled: the fields."""
        if name == "id":
            return self._file.id(self._place)
        if name == "line":
            return self._file.line(self._place)
        if name == "values":
            return self._file.values(self._place)
        if name in _FIELDS:
            return getattr(self._file.example(self._place), name)
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _COMPARED)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in _COMPARED))

    def __reduce__(self) -> tuple[type[Example], tuple[Any, ...]]:
        """Another process gets the whole example."""
        return Example, tuple(getattr(self, name) for name in _FIELDS)


class _Packer(pickle.Pickler):
    """Writes dataclasses as calls of their class, which are read four times as fast as by their own way."""

    def reducer_override(self, value: Any) -> Any:
        """How a value is made again; NotImplemented leaves it to the usual way."""
        if is_dataclass(value) and not isinstance(value, type):
            return type(value), tuple(getattr(value, name) for name in _names(type(value)))
        return NotImplemented


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _packed(value: Any) -> bytes:
    stream = io.BytesIO()
    _Packer(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def _occurrences(keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int32]:
    """For each key which of those that are equal it is, counted from 1 in their order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    begins = np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
    found = np.empty(len(keys), np.int32)
    found[order] = np.arange(len(keys)) - begins + 1
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
