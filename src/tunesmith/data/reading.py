"""From a source to rows: open, unpack, decode, recognise the kind, and hand the text to the reader of that kind.

Nothing is lost in silence: every record is either a row or named in a finding with its line, and one broken record
does not stop the rest from being read. All rows are held in memory; `tunesmith.data.streaming` holds a part at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import JsonParser, read_json_array, read_json_lines
from tunesmith.data.sources.address import Address, address_of
from tunesmith.data.sources.columnar import file_records, folder_records, hub_records, is_columnar
from tunesmith.data.sources.databases import postgresql_records, sqlite_records
from tunesmith.data.sources.packed import Unpacked, packing_of
from tunesmith.data.sources.plain_text import looks_tabular, looks_tagged, read_tagged, read_text
from tunesmith.data.sources.records import rows_of
from tunesmith.data.tables import read_table
from tunesmith.data.types import Finding, Row
from tunesmith.errors import DataError

Kind = Literal["jsonl", "json", "csv", "tsv", "text", "conll", "parquet", "arrow", "dataset", "sql"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHAPES = "JSONL, a JSON array, CSV, TSV, Parquet, Arrow or text, as it is or packed with gzip, xz or zstd"
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


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a source held. `left_out` counts the records that are in `findings` instead of `rows`."""

    rows: list[Row]
    findings: list[Finding]
    kind: Kind
    encoding: str
    columns: tuple[str, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the encoding it was read with, and a note on its first bad byte (then bad bytes are lone surrogates)."""

    text: str
    encoding: str
    bad_byte: str | None = None


def read_rows(source: str | Path, *, encoding: str = "auto") -> ReadResult:
    """Read a file, a folder of data sets, a data set of a hub, or a query on a database; see `Address`.

    The kind of a file is recognised by content first and name second. `encoding="auto"` takes UTF-8 with or without
    byte-order mark; records with other bytes are reported and the rest is read.

    Raises `DataError` where nothing can be read at all: no such file, no permission, an unknown kind of archive, an
    empty file, a header without rows, an encoding that does not exist or does not fit, a database that cannot be asked.
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
    return _read_text_file(address, encoding, log)


def _typed(found: tuple[tuple[str, ...], Any], log: FindingLog, kind: Kind) -> ReadResult:
    columns, records = found
    rows, left_out = rows_of(records, log)
    if not rows and not left_out:
        raise DataError("there are no rows", where=log.source, expected="at least one row")
    return ReadResult(rows, log.findings(), kind, "utf-8", columns, left_out)


def _read_text_file(address: Address, encoding: str, log: FindingLog) -> ReadResult:
    path = address.path
    data, damage = _bytes_of(path)
    name = unpacked_name(path)
    decoded = decode(str(path), data, encoding)
    if not decoded.text.strip():
        what = f"nothing can be unpacked: {damage}" if damage else "the file is empty"
        raise DataError(what, where=str(path), expected=_SHAPES, fix="check that it was saved")
    if decoded.encoding.startswith(("latin", "iso-8859", "iso8859", "cp125", "windows")) and _is_utf8(data):
        log.add("encoding_doubtful", 1, f"data.encoding is {encoding}")
    del data

    kind = recognise_kind(name, decoded.text, str(path))
    rows: list[Row]
    columns: tuple[str, ...] = ()
    if kind == "jsonl":
        rows, left_out = read_json_lines(decoded.text, log, decoded.bad_byte)
    elif kind == "json":
        rows, left_out = read_json_array(decoded.text, log, decoded.bad_byte)
    elif kind == "text":
        rows, left_out = read_text(decoded.text, log, decoded.bad_byte)
    elif kind == "conll":
        rows, left_out = read_tagged(decoded.text, log, decoded.bad_byte)
    else:
        table = read_table(decoded.text, log, decoded.bad_byte, prefer_tab=name.suffix.lower() in {".tsv", ".tab"})
        rows, left_out, columns = table.rows, table.left_out, table.columns
        kind = "tsv" if table.delimiter == "\t" else "csv"
    if kind not in ("csv", "tsv"):
        columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    if damage is not None:
        log.add("rest_unread", _line_count(decoded.text), damage)
        left_out += 1
    if not rows and not left_out:
        what = "the list is empty" if kind == "json" else "there is a header but no row"
        raise DataError(what, where=str(path), expected="at least one row", fix="check how the file was made")
    return ReadResult(rows, log.findings(), kind, decoded.encoding, columns, left_out)


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


def _bytes_of(path: Path) -> tuple[bytes, str | None]:
    """The file's bytes, unpacked, and what broke the archive off."""
    packing = packing_of(head_of(path))
    try:
        if packing is None:
            return path.read_bytes(), None
        unpacked = Unpacked(path, packing)
        return b"".join(unpacked), unpacked.damage
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), expected="a readable file") from error


def decode(where: str, data: bytes, encoding: str, first_line: int = 1) -> Decoded:
    """Text of `data`; bad bytes of UTF-8 stay in it as lone surrogates (PEP 383) so that rows can be told apart.

    `first_line` is the number of the line with which `data` begins. Raises `DataError` for an encoding that does not
    exist or does not fit, and for UTF-16 and UTF-32, which are named.
    """
    name = "utf-8" if encoding == "auto" else encoding
    if encoding == "auto" and (wide := _wide_encoding(data)):
        raise DataError(
            f"the file is not UTF-8 but looks like {wide}",
            where=where,
            expected="UTF-8",
            fix=f"set data.encoding: {wide}, or save the file as UTF-8",
        )
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        note = _bad_byte(data, error, name, first_line)
        if name.lower().replace("_", "-") not in {"utf-8", "utf8", "utf-8-sig"}:
            raise DataError(
                f"the file is not {name}: {note}",
                where=where,
                expected=f"text in {name}",
                fix="remove data.encoding if the file is UTF-8, or try cp1252 or latin-1",
            ) from error
        return _named(data.decode("utf-8", errors="surrogateescape"), name, note)
    except (LookupError, UnicodeError, ValueError) as error:
        raise DataError(
            f"there is no text encoding called {encoding!r}",
            where="data.encoding",
            expected="auto, utf-8, latin-1, cp1252, utf-16 or another name Python knows",
        ) from error
    if _SURROGATE.search(text):  # some of Python's codecs make them
        raise DataError(f"read as {name}, the file holds half characters", where=where, fix="correct data.encoding")
    return _named(text, name, None)


def _named(text: str, encoding: str, bad_byte: str | None) -> Decoded:
    if text.startswith("\ufeff"):
        return Decoded(text[1:], "utf-8-sig" if encoding == "utf-8" else encoding, bad_byte)
    return Decoded(text, encoding.lower(), bad_byte)


def _bad_byte(data: bytes, error: UnicodeDecodeError, encoding: str, first_line: int) -> str:
    """Where the first bad byte is, and what it would be in the encodings people mostly mean."""
    before = data[: error.start].decode(encoding, errors="replace")
    line = _line_count(before) + first_line - 1
    line_start = max(data.rfind(b"\n", 0, error.start), data.rfind(b"\r", 0, error.start)) + 1
    byte = data[error.start : error.start + 1]
    readings = {name: byte.decode(name, errors="ignore") for name in ("latin-1", "cp1252")}
    guesses = ", ".join(f"{name} reads {char!r}" for name, char in readings.items() if char and char.isprintable())
    place = f"byte 0x{byte[0]:02X} on line {line}, byte {error.start - line_start + 1} of that line, is not {encoding}"
    return f"{place}; {guesses}" if guesses else place


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or UTF-16 without one by every second byte being NUL."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:400]
    if len(head) >= 8:
        half = len(head) // 2
        if head[1::2].count(0) > 0.8 * half and head[0::2].count(0) == 0:
            return "utf-16-le"
        if head[0::2].count(0) > 0.8 * half and head[1::2].count(0) == 0:
            return "utf-16-be"
    return None


def _is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8 with at least one character beyond ASCII."""
    if data.isascii():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def recognise_kind(name: Path, text: str, where: str) -> Kind:
    """The kind of a text, by the first character and line, then by the name of the file.

    Raises `DataError` for what looks like none of them.
    """
    head = text.lstrip()
    first_line = head[: head.find("\n")] if "\n" in head else head
    suffix = name.suffix.lower()
    if head.startswith("["):
        # A row may be a list by mistake; a file whose first line is a whole value, and has more lines, is JSONL.
        if suffix in {".jsonl", ".ndjson"} and JsonParser().parse(first_line).value is not None and head != first_line:
            return "jsonl"
        if suffix in {".csv", ".tsv", ".tab"} and not head[1:].lstrip().startswith(("{", "[", "]")):
            return "csv"
        return "json"
    if head.startswith("{"):
        return _objects(suffix, head, first_line, where)
    if suffix in {".jsonl", ".ndjson"}:
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


def _line_count(text: str) -> int:
    """The number of the last line."""
    return text.count("\n") + text.count("\r") - text.count("\r\n") + 1


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
