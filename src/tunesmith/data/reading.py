"""From a source to rows: open, unpack, decode, recognise the kind, and hand the text to the reader of that kind.

Nothing is lost in silence: every record is either a row or named in a finding with its line, and one broken record
does not stop the rest from being read. `open_rows` gives rows as they are read, from a part of the file in memory;
`read_rows` holds them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.csv_rows import open_table
from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import JsonParser, read_json_array, read_json_lines
from tunesmith.data.sources.address import Address, address_of
from tunesmith.data.sources.columnar import file_records, folder_records, hub_records, is_columnar
from tunesmith.data.sources.databases import postgresql_records, sqlite_records
from tunesmith.data.sources.decoding import TextStream
from tunesmith.data.sources.plain_text import looks_tabular, looks_tagged, read_tagged, read_text
from tunesmith.data.sources.records import rows_of
from tunesmith.data.sources.yaml_rows import read_yaml
from tunesmith.data.types import Finding, Row
from tunesmith.errors import DataError

Kind = Literal["jsonl", "json", "csv", "tsv", "text", "conll", "parquet", "arrow", "dataset", "sql", "yaml"]

_SHAPES = "JSONL, a JSON array, CSV, TSV, YAML, Parquet, Arrow or text, as it is or packed with gzip, xz or zstd"
_HEAD = 400
"""Bytes by which binary files and wide encodings are recognised."""
_BINARY = {
    b"PK\x03\x04": "a zip archive or an office document; unpack it, or export the sheet as CSV",
    b"SQLite format 3": "an SQLite database; name it as sqlite:///FILE#TABLE",
    b"%PDF": "a PDF document; rows must be text",
    b"BZh": "a bzip2 archive; unpack it first",
}
_PACKED_ENDINGS = frozenset({".gz", ".xz", ".zst", ".zstd"})
_TEXT_ENDINGS = frozenset({".txt", ".text", ".md"})
_TAGGED_ENDINGS = frozenset({".conll", ".bio", ".iob", ".iob2"})
_YAML_ENDINGS = frozenset({".yaml", ".yml"})
_LINES_ENDINGS = frozenset({".jsonl", ".ndjson"})
HEAD_ROWS = 5_000
"""Rows by whose columns it is decided how all are read."""
_LOOK_AT = 50
"""Lines of which half must be rows where the first is none, before a long text is taken for rows by line."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a source held. `left_out` counts the records that are in `findings` instead of `rows`.

    `head_columns` are those by which is decided how rows are read: of the first `HEAD_ROWS`, where rows themselves say
    what columns there are, so that it is decided alike whether all rows are held or not.
    """

    rows: list[Row]
    findings: list[Finding]
    kind: Kind
    encoding: str
    columns: tuple[str, ...]
    left_out: int
    head_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenRows:
    """A source whose rows come as they are asked for; what is wrong with others is noted in `log` on the way.

    `rows` ends with a `DataError` where the source has neither rows nor broken ones. `columns` is None where rows
    themselves say what columns there are.
    """

    kind: Kind
    encoding: str
    log: FindingLog
    columns: tuple[str, ...] | None
    rows: Iterator[Row]


def read_rows(source: str | Path, *, encoding: str = "auto") -> ReadResult:
    """Read a file, a folder of data sets, a data set of a hub, or a query on a database; see `Address`.

    The kind of a file is recognised by content first and name second. `encoding="auto"` takes UTF-8 with or without
    byte-order mark; records with other bytes are reported and the rest is read.

    Raises `DataError` where nothing can be read at all: no such file, no permission, an unknown kind of archive, an
    empty file, a header without rows, an encoding that does not exist or does not fit, a database that cannot be asked.
    """
    opened = open_rows(source, encoding=encoding)
    rows = list(opened.rows)
    columns = columns_of(rows) if opened.columns is None else opened.columns
    head = columns_of(rows[:HEAD_ROWS]) if opened.columns is None else opened.columns
    return ReadResult(rows, opened.log.findings(), opened.kind, opened.encoding, columns, opened.log.left_out, head)


def columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The columns that some of these rows have, in the order in which they come first."""
    return tuple(dict.fromkeys(name for row in rows for name in row.values))


def open_rows(source: str | Path, *, encoding: str = "auto") -> OpenRows:
    """The same for rows that are not all held: of CSV and JSON a few pieces of the file are in memory, of Parquet and
    Arrow a batch. Raises as `read_rows` does, here or while rows are read.
    """
    address = address_of(source)
    log = FindingLog(address.shown)
    if address.kind == "folder":
        return _typed(folder_records(address, log), log, "dataset")
    if address.kind == "hub":
        return _typed(hub_records(address, log), log, "dataset")
    if address.kind == "sqlite":
        return _typed(sqlite_records(address, log), log, "sql")
    if address.kind == "postgresql":
        return _typed(postgresql_records(address, log), log, "sql")
    head = head_of(address.path)
    if (columnar := is_columnar(head, address.path.suffix.lower())) is not None:
        return _typed(file_records(address, log), log, "parquet" if columnar == "parquet" else "arrow")
    return _open_text_file(address, encoding, log)


def _typed(found: tuple[tuple[str, ...], Any], log: FindingLog, kind: Kind) -> OpenRows:
    columns, records = found

    def rows() -> Iterator[Row]:
        some = False
        for row in rows_of(records, log):
            some = True
            yield row
        if not some and not log.left_out:
            raise DataError("there are no rows", where=log.source, expected="at least one row")

    return OpenRows(kind, "utf-8", log, columns, rows())


def _open_text_file(address: Address, encoding: str, log: FindingLog) -> OpenRows:
    path = address.path
    stream = TextStream(path, encoding)
    kind = kind_of(stream)
    if stream.doubtful:
        log.add("encoding_doubtful", 1, f"data.encoding is {encoding}")
    columns: tuple[str, ...] | None = None
    if kind == "jsonl":
        rows = _lines_of(stream, log)
    elif kind == "json":
        rows = read_json_array(stream, log)
    elif kind in ("text", "conll"):
        text = stream.whole()
        rows = (read_text if kind == "text" else read_tagged)(text, log, stream.bad_byte)
    elif kind == "yaml":
        text = stream.whole()
        rows = read_yaml(text, log, stream.bad_byte)
    else:
        prefer_tab = unpacked_name(path).suffix.lower() in {".tsv", ".tab"}
        table = open_table(stream, log, prefer_tab=prefer_tab)
        rows, columns = table.rows, table.columns
        kind = "tsv" if table.delimiter == "\t" else "csv"
    return OpenRows(kind, stream.encoding, log, columns, _to_the_end(rows, stream, log, kind))


def _lines_of(stream: TextStream, log: FindingLog) -> Iterator[Row]:
    for text, first_line in stream.blocks():
        yield from read_json_lines(text, log, stream.bad_byte, first_line)


def _to_the_end(rows: Iterator[Row], stream: TextStream, log: FindingLog, kind: Kind) -> Iterator[Row]:
    """The rows, and what is known when there are no more: where the archive broke off, that there was none."""
    some = False
    for row in rows:
        some = True
        yield row
    stream.drain()
    if stream.damage is not None:
        log.leave_out("rest_unread", stream.last_line, stream.damage)
    if not some and not log.left_out:
        what = "the list is empty" if kind == "json" else "there is a header but no row"
        raise DataError(what, where=str(stream.path), expected="at least one row", fix="check how the file was made")


def kind_of(stream: TextStream) -> Kind:
    """The kind of a text, by its beginning, or by all of it where the beginning does not say.

    Raises `DataError` for an empty text, and as `recognise_kind` does.
    """
    path, (text, complete) = stream.path, stream.head()
    head = text.lstrip()
    if not head:
        what = f"nothing can be unpacked: {stream.damage}" if stream.damage else "the file is empty"
        raise DataError(what, where=str(path), expected=_SHAPES, fix="check that it was saved")
    name = unpacked_name(path)
    if not complete and not _head_says(head, name.suffix.lower()):
        text = stream.whole()
    return recognise_kind(name, text, str(path))


def _head_says(head: str, suffix: str) -> bool:
    """Whether the beginning of a text is enough to recognise it: an object over many lines looks like broken lines as
    long as its end is not in sight, and of a list the whole first line may matter.
    """
    if head.startswith("["):
        return suffix not in _LINES_ENDINGS or "\n" in head
    if not head.startswith("{"):
        return True
    lines = [line.strip() for line in head.split("\n", _LOOK_AT)[:_LOOK_AT] if line.strip()]
    parser = JsonParser()
    objects = [isinstance(parser.parse(line).value, dict) for line in lines]
    return objects[0] or sum(objects) >= len(objects) / 2


def source_sha256(source: str | Path) -> str:
    """SHA-256 of what a source holds: of a file's bytes, else of the rows it gives, each as JSON.

    A folder, a hub and a database are read for it, as their bytes change without their rows. Raises as `read_rows`.
    """
    address = address_of(source)
    if address.kind == "file":
        head_of(address.path)
        with address.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for row in read_rows(source).rows:
        digest.update(json.dumps(row.values, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def unpacked_name(path: Path) -> Path:
    """The name without the ending of an archive."""
    return path.with_suffix("") if path.suffix.lower() in _PACKED_ENDINGS else path


def head_of(path: Path) -> bytes:
    """The first bytes of a file, or a `DataError` that says why there are none."""
    where = str(path)
    try:
        if path.exists() and not path.is_file():
            raise DataError("this is not a regular file", where=where, expected="a file with rows")
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.is_file())[:8] if path.parent.is_dir() else []
        fix = f"files beside it: {', '.join(near)}" if near else "check the path; it is relative to the recipe"
        raise DataError("there is no such file", where=where, expected="a file with rows", fix=fix) from error
    except PermissionError as error:
        raise DataError(
            "no permission to read the file", where=where, expected="a readable file", fix=f"chmod u+r {path}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character inside the path
        raise DataError(f"the file cannot be read: {error}", where=where, expected="a readable file") from error
    for magic, name in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"this is {name}", where=where, expected=_SHAPES)
    return head


def recognise_kind(name: Path, text: str, where: str) -> Kind:
    """The kind of a text, by the first character and line, then by the name of the file.

    Raises `DataError` for what looks like none of them.
    """
    head = text.lstrip()
    first_line = head[: head.find("\n")] if "\n" in head else head
    suffix = name.suffix.lower()
    if suffix in _YAML_ENDINGS:
        return "yaml"
    if head.startswith("["):
        # A row may be a list by mistake; a file whose first line is a whole value, and has more lines, is JSONL.
        if suffix in _LINES_ENDINGS and JsonParser().parse(first_line).value is not None and head != first_line:
            return "jsonl"
        if suffix in {".csv", ".tsv", ".tab"} and not head[1:].lstrip().startswith(("{", "[", "]")):
            return "csv"
        return "json"
    if head.startswith("{"):
        return _objects(suffix, head, first_line, where)
    if suffix in _LINES_ENDINGS:
        return "jsonl"
    if suffix == ".json":
        raise DataError(
            f"this does not look like JSON: it begins with {head[:20]!r}",
            where=where,
            expected="a JSON array of objects, or one object per line",
        )
    if suffix in _TAGGED_ENDINGS or (suffix in {*_TEXT_ENDINGS, ""} and looks_tagged(text)):
        return "conll"
    if suffix in _TEXT_ENDINGS and not looks_tabular(text):
        return "text"
    return "csv"


def _objects(suffix: str, head: str, first_line: str, where: str) -> Kind:
    """A text that begins with `{`: one object per line, or one object around everything."""
    whole = JsonParser().parse(head).value if head.rstrip() != first_line.rstrip() else None
    if isinstance(whole, dict):
        files = [v["file_name"] for v in whole.values() if isinstance(v, dict) and isinstance(v.get("file_name"), str)]
        if files:
            raise DataError(
                f"this is a catalogue of data sets, not rows; it names {', '.join(files[:8])}",
                where=where,
                expected="a file with rows",
                fix="name one of these files",
            )
        if isinstance(whole.get("tests"), list):  # promptfoo's config; JSON is YAML too
            return "yaml"
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        held = f" (it holds lists under {', '.join(map(repr, lists))})" if lists else ""
        raise DataError(
            f"the file is one JSON object over several lines{held}",
            where=where,
            expected="a JSON array of row objects, or one object per line",
            fix="save the list of rows by itself",
        )
    if suffix in {".csv", ".tsv", ".tab"} and JsonParser().parse(first_line).value is None:
        return "csv"
    return "jsonl"
