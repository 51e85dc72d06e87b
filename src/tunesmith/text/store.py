"""Tokenised rows on disk, mapped into memory: data sets larger than memory are learnt as if they were a list.

A store is a folder of raw arrays and an `index.json`:

```
ids.bin      token ids of all rows, one after another (uint16 where the vocabulary allows it, else uint32)
rows.bin     per row: where its tokens end, where its spans end, how many tokens are learnt, its name
spans.bin    runs of tokens with one weight other than 0: place in the row, length, weight
```

Plain arrays and not Arrow: a row is two slices and a fill, without building an object per value, and nothing has to be
installed for it. Weights are runs because almost every row has one per answer: 12 bytes instead of 4 per token, and
exact for any weight. The index has the SHA-256 of each file, so damage is found when a store is opened.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from tunesmith.errors import VerificationError
from tunesmith.runs.atomic import resource_error
from tunesmith.text.types import Sample

NAME_BYTES = 24
"""Of a row's name; longer ones are refused when they are written."""
_ROW = np.dtype([("ids", "<i8"), ("spans", "<i8"), ("supervised", "<i4"), ("name", f"S{NAME_BYTES}")])
_SPAN = np.dtype([("begin", "<i4"), ("length", "<i4"), ("weight", "<f4")])
_TOKENS_AT_ONCE = 1 << 20
"""Tokens looked through at once."""
_FILES = ("ids.bin", "rows.bin", "spans.bin")
_VERSION = 2
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """Samples as arrays, in the form of a store: `ends` of each row's ids and spans count from the first row here."""

    ids: Array
    rows: Array
    spans: Array


def id_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest type that holds every id of a vocabulary."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


def pack(samples: Iterable[Sample], dtype: np.dtype[Any]) -> Packed:
    """Samples as the arrays of a store.

    Raises `ValueError` for a name that is too long or no ASCII, and for an id that `dtype` cannot hold.
    """
    ids: list[Array] = []
    spans: list[tuple[int, int, float]] = []
    rows: list[tuple[int, int, int, bytes]] = []
    end = 0
    for sample in samples:
        name = sample.example_id.encode("ascii")
        if len(name) > NAME_BYTES:
            raise ValueError(f"the row name {sample.example_id!r} has more than {NAME_BYTES} bytes")
        ids.append(sample.ids)
        end += len(sample.ids)
        begin, supervised = 0, 0
        for length, weight in _runs(sample.weights):
            if weight:
                spans.append((begin, length, weight))
                supervised += length
            begin += length
        rows.append((end, len(spans), supervised, name))
    joined = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    if len(joined) and int(joined.max()) > np.iinfo(dtype).max:
        raise ValueError(f"the token id {int(joined.max())} is beyond the vocabulary the store was made for")
    return Packed(joined.astype(dtype), np.array(rows, dtype=_ROW), np.array(spans, dtype=_SPAN))


def _runs(weights: npt.NDArray[np.float32]) -> Iterator[tuple[int, float]]:
    """Lengths and values of the runs of equal numbers."""
    if not len(weights):
        return
    changes = np.flatnonzero(weights[1:] != weights[:-1]) + 1
    places = [0, *changes.tolist(), len(weights)]
    for begin, end in itertools.pairwise(places):
        yield end - begin, float(weights[begin])


class StoreWriter:
    """Writes a store part by part. `finish` makes it one; without it `StoredSamples.open` refuses the folder.

    Raises `ResourceError` where the disk does.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.folder, self.dtype = folder, id_type(vocabulary)
        self.rows = self.tokens = self.spans = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._streams: list[BinaryIO] = [(folder / name).open("wb") for name in _FILES]
            self._digests = [hashlib.sha256() for _ in _FILES]
        except OSError as error:
            raise resource_error(folder, error) from error

    def add(self, part: Packed) -> None:
        """Append the rows of a part."""
        rows = part.rows.copy()
        rows["ids"] += self.tokens
        rows["spans"] += self.spans
        try:
            for stream, digest, array in zip(self._streams, self._digests, (part.ids, rows, part.spans), strict=True):
                data = array.tobytes()
                stream.write(data)
                digest.update(data)
        except OSError as error:
            raise resource_error(self.folder, error) from error
        self.rows += len(rows)
        self.tokens += len(part.ids)
        self.spans += len(part.spans)

    def finish(self, facts: dict[str, Any]) -> None:
        """Close the files and write the index, with `facts` (JSON values) to be kept beside the rows."""
        self.close()
        index = {
            "version": _VERSION,
            "rows": self.rows,
            "tokens": self.tokens,
            "spans": self.spans,
            "id_type": self.dtype.str,
            "sha256": dict(zip(_FILES, (digest.hexdigest() for digest in self._digests), strict=True)),
            "facts": facts,
        }
        try:
            (self.folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise resource_error(self.folder, error) from error

    def close(self) -> None:
        """Close the files; what is there is no store yet."""
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class StoredSample(Sample):
    """A row of a store: some hundred bytes that know where it lies, read each time it is looked at.

    Its fields are never filled, so that a list of all rows of a store costs little. `dataclasses.replace` makes a
    sample of it that holds its own arrays.
    """

    __slots__ = ("_row", "_store")
    _row: int
    _store: StoredSamples

    @classmethod
    def of(cls, store: StoredSamples, row: int) -> StoredSample:
        """The row at this place in the files of `store`."""
        made = object.__new__(cls)
        object.__setattr__(made, "_store", store)
        object.__setattr__(made, "_row", row)
        return made

    @property
    def supervised(self) -> int:
        """How many tokens are learnt; known without reading them."""
        store = getattr(self, "_store", None)
        return super().supervised if store is None else store.supervised_at(self._row)

    def __getattr__(self, name: str) -> Any:
        """Called for what is not filled: the fields."""
        if name == "ids":
            return self._store.ids_at(self._row)
        if name == "weights":
            return self._store.weights_at(self._row)
        if name == "example_id":
            return self._store.name_at(self._row)
        raise AttributeError(name)

    def __reduce__(self) -> tuple[type[Sample], tuple[Any, ...]]:
        """Another process gets the arrays."""
        return Sample, (self.ids, self.weights, self.example_id)


class StoredSamples(Sequence[Sample]):
    """The rows of a store, or some of them, by place: what a training loop reads.

    Rows are read when they are looked at. `take` and `fitting` give other rows of the same store without copying it.
    In memory are 8 bytes for each row that was chosen so, and 8 more for each of `lengths` and `supervised` once asked.
    """

    def __init__(self, folder: Path, index: dict[str, Any], chosen: npt.NDArray[np.int64] | None = None) -> None:
        self.folder, self._index = folder, index
        self._ids = _mapped(folder / "ids.bin", np.dtype(index["id_type"]), index["tokens"])
        self._rows = _mapped(folder / "rows.bin", _ROW, index["rows"])
        self._spans = _mapped(folder / "spans.bin", _SPAN, index["spans"])
        self._ends, self._span_ends = self._rows["ids"], self._rows["spans"]
        self._chosen = chosen

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> StoredSamples:
        """A finished store. Raises `VerificationError` where it is not one, or is damaged.

        `verify` reads all of it once, to see that it is what was written; without it only lengths are compared.
        """
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = index["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VerificationError("this is no store of tokenised rows", where=str(folder)) from error
        if version != _VERSION:
            raise VerificationError(
                f"a store of version {version}", where=str(folder), expected=f"version {_VERSION}", fix="delete it"
            )
        try:
            store = cls(folder, index)
            for name in _FILES if verify else ():
                _verify(folder / name, index["sha256"][name])
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError("index.json is damaged", where=str(folder), fix="delete the folder") from error
        return store

    @property
    def nbytes(self) -> int:
        """Bytes of the store on the disk."""
        return self._ids.nbytes + self._rows.nbytes + self._spans.nbytes

    @property
    def facts(self) -> dict[str, Any]:
        """What was kept beside the rows."""
        return dict(self._index["facts"])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row [n]."""
        return self._of_chosen(np.diff(self._ends, prepend=0))

    @cached_property
    def supervised(self) -> npt.NDArray[np.int64]:
        """Tokens that are learnt, of each row [n]."""
        return self._of_chosen(self._rows["supervised"].astype(np.int64))

    def names(self) -> list[str]:
        """Example ids, in order."""
        return [name.decode() for name in self._of_chosen(self._rows["name"]).tolist()]

    def take(self, places: Sequence[int] | npt.NDArray[np.int64]) -> StoredSamples:
        """The rows at these places, in this order."""
        wanted = np.asarray(places, dtype=np.int64)
        return StoredSamples(self.folder, self._index, self._of_chosen(np.arange(self._index["rows"]))[wanted])

    def fitting(self, max_length: int) -> StoredSamples:
        """The rows of at most `max_length` tokens; longer ones are left out, never cut."""
        fits = self.lengths <= max_length
        return self if fits.all() else self.take(np.flatnonzero(fits))

    def __len__(self) -> int:
        return int(self._index["rows"]) if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, place: int, /) -> Sample: ...
    @overload
    def __getitem__(self, place: slice, /) -> StoredSamples: ...
    def __getitem__(self, place: int | slice, /) -> Sample | StoredSamples:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(place)
        return StoredSample.of(self, at if self._chosen is None else int(self._chosen[at]))

    def __iter__(self) -> Iterator[Sample]:
        rows = range(len(self)) if self._chosen is None else map(int, self._chosen)
        return (StoredSample.of(self, row) for row in rows)

    def ids_at(self, row: int) -> npt.NDArray[np.int64]:
        """Token ids of a row of the files [T]."""
        return self._ids[self._begin(self._ends, row) : self._ends[row]].astype(np.int64)

    def weights_at(self, row: int) -> npt.NDArray[np.float32]:
        """Loss weights of a row of the files [T]."""
        weights = np.zeros(self._ends[row] - self._begin(self._ends, row), dtype=np.float32)
        for place, length, weight in self._spans[self._begin(self._span_ends, row) : self._span_ends[row]].tolist():
            weights[place : place + length] = weight
        return weights

    def name_at(self, row: int) -> str:
        """Example id of a row of the files."""
        name: bytes = self._rows["name"][row]
        return name.decode()

    def supervised_at(self, row: int) -> int:
        """Learnt tokens of a row of the files."""
        return int(self._rows["supervised"][row])

    def learn_any(self, ids: Collection[int]) -> npt.NDArray[np.bool_]:
        """Whether each row learns, with a weight above 0, one of these ids [n]; read in parts, whatever the size."""
        wanted = np.asarray(sorted(ids), dtype=np.int64)
        found = np.zeros(self._index["rows"], dtype=np.bool_)
        begin = 0
        while begin < len(found):
            last = self._begin(self._ends, begin) + _TOKENS_AT_ONCE
            end = max(begin + 1, int(np.searchsorted(self._ends, last, side="right")))
            found[begin:end] = self._learn_any(wanted, begin, end)
            begin = end
        return self._of_chosen(found)

    def _learn_any(self, wanted: Array, begin: int, end: int) -> Array:
        """The same for the rows `begin` to `end` of the files."""
        first = int(self._begin(self._ends, begin))
        ids = self._ids[first : self._ends[end - 1]]
        before = np.concatenate([[0], np.cumsum(np.isin(ids, wanted))])
        first_span = int(self._begin(self._span_ends, begin))
        spans = self._spans[first_span : self._span_ends[end - 1]]
        counts = np.diff(self._span_ends[begin:end], prepend=first_span)
        owner = np.repeat(np.arange(end - begin), counts)
        starts = np.concatenate([[first], self._ends[begin : end - 1]])[owner] - first + spans["begin"]
        hits = (before[starts + spans["length"]] > before[starts]) & (spans["weight"] > 0)
        return np.bincount(owner[hits], minlength=end - begin) > 0

    @staticmethod
    def _begin(ends: Array, row: int) -> Any:
        return ends[row - 1] if row else 0

    def _of_chosen(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values if self._chosen is None else values[self._chosen]


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> Array:
    """A file of `count` values, read from the disk where it is touched."""
    wanted = dtype.itemsize * count
    size = path.stat().st_size if path.is_file() else -1
    if size != wanted:
        what = "is missing" if size < 0 else f"has {size:,} bytes"
        raise VerificationError(
            f"{path.name} {what}", where=str(path.parent), expected=f"{wanted:,} bytes", fix="delete the folder"
        )
    # A plain view of the map: `np.memmap` runs Python for every slice.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,))) if count else np.zeros(0, dtype)


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise VerificationError(
            f"{path.name} is not what was written",
            where=str(path.parent),
            expected=f"SHA-256 {sha256[:12]}…",
            fix="delete the folder",
        )
