"""Parquet, Arrow, folders of data sets, and data sets of a hub.

Files are read by pyarrow, in batches; a hub by `datasets`. Class labels that are numbers become their names, where the
file says what they are.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.sources.address import Address
from tunesmith.data.sources.records import RestUnreadError, UnreadableError, WrongTextError, unique_names
from tunesmith.errors import DataError

_BATCH = 1_000
_PART = re.compile(r"(?:(?P<config>[^/\[\]]+)/)?(?P<split>[^/\[\]]*)(?:\[(?P<first>\d*%?):(?P<last>\d*%?)\])?")
_SHARD = re.compile(r"(?P<split>[A-Za-z_]+?)(?:[-_.]\d+(?:-of-\d+)?)?(?:-[0-9a-f]{16})?\.(?:parquet|arrow)")
_SPLIT_NAMES = {"valid": "validation", "dev": "validation", "val": "validation"}

Records = Iterator[Mapping[str, Any] | UnreadableError]


@dataclass(frozen=True, slots=True)
class Part:
    """`config/split[first:last]`, each of which may be missing."""

    config: str | None
    split: str | None
    first: str
    last: str

    def span(self, rows: int) -> tuple[int, int]:
        """The rows meant, of so many."""

        def count(text: str, missing: int) -> int:
            if not text:
                return missing
            number = int(text.rstrip("%"))
            return min(rows, rows * number // 100 if text.endswith("%") else number)

        return count(self.first, 0), count(self.last, rows)

    @property
    def everything(self) -> bool:
        """Whether no rows are picked out."""
        return not self.first and not self.last


def part_of(address: Address) -> Part:
    """What `#` named. Raises `DataError` for something else than a split and a range of rows."""
    match = _PART.fullmatch((address.part or "").strip())
    if match is None:
        raise DataError(
            f"{address.part!r} names no part of a data set",
            where=address.shown,
            expected="#SPLIT, #SPLIT[:1000], #SPLIT[10%:20%] or #CONFIG/SPLIT",
        )
    return Part(match["config"], match["split"] or None, match["first"] or "", match["last"] or "")


def is_columnar(head: bytes, suffix: str) -> str | None:
    """`parquet` or `arrow`, by the first bytes; Arrow's streams have no mark of their own, so the name decides."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"FEA1")) or (head.startswith(b"\xff\xff\xff\xff") and suffix == ".arrow"):
        return "arrow"
    return None


def file_records(address: Address, log: FindingLog) -> tuple[tuple[str, ...], Records]:
    """Column names and records of one Parquet or Arrow file. Raises `DataError` where it cannot be read."""
    return _shards([address.path], part_of(address), log, address.shown)


def folder_records(address: Address, log: FindingLog) -> tuple[tuple[str, ...], Records]:
    """The same for a folder: one that `datasets` saved, or files named after their split."""
    part = part_of(address)
    return _shards(_files_of(address.path, part, address.shown), part, log, address.shown)


def hub_records(address: Address, log: FindingLog) -> tuple[tuple[str, ...], Records]:
    """The same for a data set of the hub, which `datasets` fetches or takes from its cache."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            "data sets of a hub are fetched by the library datasets, which is not installed",
            where=address.shown,
            fix="pip install 'tunesmith[hub]', or name a local file",
        )
    import datasets

    part = part_of(address)
    try:
        found = datasets.load_dataset(address.place, part.config, split=part.split)
    except Exception as error:  # its errors have no common base: network, permission, unknown split, broken file
        raise DataError(
            f"the data set cannot be loaded: {_first_line(error)}",
            where=address.shown,
            fix="check the id and the network; #SPLIT chooses a split, #CONFIG/SPLIT also a configuration",
        ) from error
    if isinstance(found, Mapping):
        found = found[_choose(sorted(found), address.shown)]
    names = unique_names(found.column_names, log)
    labels = {name: _label_names(feature) for name, feature in found.features.items()}
    first, last = part.span(len(found))

    def records() -> Records:
        for start in range(first, last, _BATCH):
            batch = found[start : min(start + _BATCH, last)]
            columns = [_named_labels(batch[name], labels[name]) for name in found.column_names]
            for cells in zip(*columns, strict=True):
                yield dict(zip(names, cells, strict=True))

    return names, records()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _choose(splits: Sequence[str], where: str, wanted: str | None = None) -> str:
    if wanted is None:
        wanted = splits[0] if len(splits) == 1 else "train"
    if wanted not in splits:
        raise DataError(
            f"there is no split {wanted!r}",
            where=where,
            expected=f"one of: {', '.join(splits)}",
            fix="choose by #SPLIT",
        )
    return wanted


def _files_of(folder: Path, part: Part, where: str) -> list[Path]:
    """The files of the split that is asked for, in order."""
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        splits = _json(listing, where).get("splits", [])
        folder = folder / _choose([str(s) for s in splits], where, part.split)
    state = folder / "state.json"
    if state.is_file():
        names = [entry.get("filename") for entry in _json(state, where).get("_data_files", [])]
        # A name out of a file never leads out of its folder.
        files = [folder / Path(str(name)).name for name in names if name]
    else:
        by_split: dict[str, list[Path]] = {}
        for path in sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.is_file()):
            if (match := _SHARD.fullmatch(path.name)) and (part.config is None or part.config in path.parts):
                split = _SPLIT_NAMES.get(match["split"], match["split"])
                by_split.setdefault(split, []).append(path)
        if not by_split:
            near = sorted(p.name for p in folder.glob("*") if p.is_file())[:8]
            raise DataError(
                "this is a folder without a data set (Parquet or Arrow files named after a split)",
                where=where,
                expected="a file with rows, or a folder that datasets saved",
                fix=f"name a file inside it: {', '.join(near)}" if near else "name a file",
            )
        files = by_split[_choose(sorted(by_split), where, part.split)]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise DataError(
            f"the folder lacks {', '.join(missing) or 'its data files'}", where=where, fix="copy the whole folder"
        )
    return files


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read: {error}", where=where) from error
    return value if isinstance(value, dict) else {}


def _shards(files: Sequence[Path], part: Part, log: FindingLog, where: str) -> tuple[tuple[str, ...], Records]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            "Parquet and Arrow files are read by pyarrow, which is not installed",
            where=where,
            fix="pip install 'tunesmith[parquet]', or export the table as JSONL or CSV",
        )
    import pyarrow

    try:
        opened = [_open(path) for path in files]
        columns = [list(shard.schema.names) for shard in opened]
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"the file cannot be read: {_first_line(error)}", where=where, fix="write it again") from error
    schema = opened[0].schema
    names = unique_names(columns[0], log)
    labels = _labels_in(schema)
    total = sum(shard.rows for shard in opened) if not part.everything else 0
    first, last = part.span(total) if total else (0, None)

    def records() -> Records:
        number = 0
        try:
            for shard, own in zip(opened, columns, strict=True):
                if own != columns[0]:
                    raise DataError("the files of this split have different columns", where=where)
                for batch in shard.batches():
                    start = max(0, first - number)
                    end = batch.num_rows if last is None else min(batch.num_rows, last - number)
                    if start < end:
                        yield from _records(batch.slice(start, end - start), names, labels)
                    number += batch.num_rows
                if shard.damage is not None:
                    yield RestUnreadError(shard.damage)
        except (pyarrow.ArrowException, OSError) as error:
            yield RestUnreadError(_first_line(error))

    return names, records()


@dataclass(frozen=True, slots=True)
class _Shard:
    """One file of a table: `damage` says why rows behind its batches are missing."""

    schema: Any
    rows: int
    batches: Callable[[], Iterable[Any]]
    damage: str | None = None


def _open(path: Path) -> _Shard:
    import pyarrow
    import pyarrow.feather
    import pyarrow.ipc
    import pyarrow.parquet

    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(b"PAR1"):
        parquet = pyarrow.parquet.ParquetFile(path)
        return _Shard(parquet.schema_arrow, parquet.metadata.num_rows, lambda: parquet.iter_batches(batch_size=_BATCH))
    if head.startswith(b"FEA1"):
        table = pyarrow.feather.read_table(path)
        return _Shard(table.schema, table.num_rows, lambda: iter(table.to_batches(_BATCH)))
    if head.startswith(b"ARROW1"):
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    else:
        return _open_stream(path)
    return _Shard(reader.schema, sum(b.num_rows for b in batches), lambda: _smaller(batches))


def _open_stream(path: Path) -> _Shard:
    """A stream ends with a mark; without it, batches may be missing, which pyarrow does not say."""
    import pyarrow
    import pyarrow.ipc

    batches = []
    with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
        schema = stream.schema
        try:
            batches += stream
            damage = None
        except (pyarrow.ArrowException, OSError) as error:
            damage = _first_line(error)
    with path.open("rb") as file:
        file.seek(-min(8, path.stat().st_size), 2)
        if not file.read().endswith(b"\0\0\0\0"):
            damage = damage or "it breaks off without the mark that ends a stream"
    return _Shard(schema, sum(b.num_rows for b in batches), lambda: _smaller(batches), damage)


def _smaller(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _records(batch: Any, names: Sequence[str], labels: Mapping[int, list[str]]) -> Records:
    """Records of a batch; where it is broken, row by row.

    What a file says about itself is checked before it is believed: a wrong offset would read any memory.
    """
    try:
        batch.validate(full=True)
        columns = [_named_labels(column.to_pylist(), labels.get(i)) for i, column in enumerate(batch.columns)]
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            for i in range(batch.num_rows):
                yield from _records(batch.slice(i, 1), names, labels)
        elif isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            yield WrongTextError("a text that is not UTF-8")
        else:
            yield UnreadableError(f"a value that cannot be read: {_first_line(error)}")
        return
    for cells in zip(*columns, strict=True):
        yield dict(zip(names, cells, strict=True))


def _labels_in(schema: Any) -> dict[int, list[str]]:
    """Names of the classes by column index, from what `datasets` writes beside a table."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = note.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    found = {name: _label_names(feature) for name, feature in features.items()}
    return {i: names for i, name in enumerate(schema.names) if (names := found.get(name))}


def _label_names(feature: Any) -> list[str] | None:
    """Names of a feature that is a class label, or a list of them: an object of `datasets`, or its JSON."""
    inner = feature.get("feature") if isinstance(feature, dict) else getattr(feature, "feature", None)
    for candidate in (feature, inner):
        names = candidate.get("names") if isinstance(candidate, dict) else getattr(candidate, "names", None)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


def _named_labels(column: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    if names is None:
        return column

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return names[value] if 0 <= value < len(names) else value
        return value

    return [name(value) for value in column]
